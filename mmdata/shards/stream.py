"""Samples of tars that have no index, as they come.

Decided here: a tar is read forward, once, header by header; nothing in it is unpickled or run, and a url never starts a
program. The rules of members and samples are those of `mmdata index`. Damage is an error with the tar and the byte,
never a silent end; only that a key comes twice in a tar is not noticed, for keys are not remembered.
"""

from collections.abc import Iterator
from typing import IO

import numpy as np
from braceexpand import braceexpand

from mmdata.errors import ConfigError, RunError
from mmdata.shards.members import TAR_BLOCK, TarDamage, Walk, split_name
from mmdata.storage import open_store
from mmdata.storage.store import COPY_BYTES

StreamSample = tuple[str, dict[str, bytes]]


def stream_samples(urls: list[str], *, shuffle: int = 0, seed: int = 0) -> Iterator[StreamSample]:
    """Read the samples of tars one after the other: (key, members by suffix).

    urls      paths or urls that fsspec knows; braces are expanded (`s3://bucket/{00000..00127}.tar`)
    shuffle   samples held in memory, of which a random one comes next; 0 for the order of the tars
    seed      of the random choice: same urls and seed, same order

    This promises less than a corpus does. There is no shuffle over all samples, only inside the buffer. One can go on only
    at the border of a shard, by giving the urls that are left. Bytes have no checksums: damage is noticed where it breaks
    a header, cuts a tar or doubles a member. `mmdata index FOLDER --checksums` gives all three.

    Raises ConfigError at once for urls that cannot be meant, RunError with tar and byte for damage.
    """
    if shuffle < 0:
        raise ConfigError(f"shuffle: {shuffle} samples cannot be held", hint="give 0 or more")
    try:
        names = [name for url in urls for name in braceexpand(url)]
    except ValueError as error:
        raise ConfigError(f"urls: {error}", hint="each `{` needs its `}`") from None
    samples = (sample for name in names for sample in _samples(name))
    return _shuffled(samples, shuffle, seed) if shuffle else samples


class _Forward:
    """A file as bytes to be cut by slices, each of which begins where the last one ended or later."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._at = file, 0

    def __getitem__(self, place: slice) -> bytes:
        while self._at < place.start and self._take(place.start):
            pass
        found = []
        while self._at < place.stop and (piece := self._take(place.stop)):
            found.append(piece)
        return b"".join(found)

    def _take(self, stop: int) -> bytes:
        piece = self._file.read(min(stop - self._at, COPY_BYTES))  # a damaged size must not ask for terabytes at once
        self._at += len(piece)
        return piece


def _samples(url: str) -> Iterator[StreamSample]:
    home, slash, name = url.rpartition("/")
    try:
        with open_store(home or slash or ".").open(name) as file:
            yield from _grouped(_Forward(file))
    except TarDamage as damage:
        raise RunError(f"{url}: {damage.message}", hint=damage.hint) from damage
    except OSError as error:
        raise RunError(f"{url}: cannot be read: {error}", hint="check the url, and that the file is there") from error


def _grouped(data: _Forward) -> Iterator[StreamSample]:
    """Yield runs of members with one key; a sample is given out only when all up to the next one was found right."""
    walk = Walk(data)
    try:
        yield from _runs(walk, data)
    except TarDamage:
        walk.check()
        raise


def _runs(walk: Walk, data: _Forward) -> Iterator[StreamSample]:
    key, members = b"", dict[str, bytes]()
    for name, offset, size in walk:
        walk.check()
        place = split_name(name)
        if place is None:
            continue
        if members and place[0] != key:
            yield _text(key), members
            members = {}
        key, suffix = place[0], _text(place[1])
        if suffix in members:
            raise TarDamage(f"sample `{_text(key)}` has two members with the suffix `{suffix}`", offset - TAR_BLOCK)
        members[suffix] = data[offset : offset + size]
        if len(members[suffix]) != size:
            raise TarDamage("the archive is cut short in this member", offset - TAR_BLOCK)
    walk.check()
    if members:
        yield _text(key), members


def _shuffled(samples: Iterator[StreamSample], size: int, seed: int) -> Iterator[StreamSample]:
    random, held = np.random.Generator(np.random.Philox(seed)), list[StreamSample]()
    for sample in samples:
        if len(held) < size:
            held.append(sample)
            continue
        place = int(random.integers(size))
        yield held[place]
        held[place] = sample
    for place in random.permutation(len(held)):
        yield held[place]


def _text(name: bytes) -> str:
    return name.decode(errors="surrogateescape")

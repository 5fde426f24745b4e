"""Read the media that payload references point to: one, or many in the order in which they lie.

Decided here: references that lie close together are one read, since a seek or a request costs more than the bytes between
them. Whatever is read is compared with its SHA-256 first.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mmdata.errors import RunError
from mmdata.storage import LocalStore, ParquetRows, Store, digest_bytes, open_store

MAX_READ = 8 << 20
MAX_GAP = 256 << 10
READERS = 8  # of a store that answers late; each holds one read

Ref = dict[str, Any]  # a value of `mmdata.schema.PAYLOAD`


def is_foreign(set_: str) -> bool:
    """Say whether a payload set lies outside the run: it is then a path or URL of its own."""
    return set_.startswith("/") or "://" in set_


def kind_of(set_: str) -> str:
    """Return where a payload set lies: in the `run`, on a local `disk`, or else the scheme of its URL."""
    return (set_.split("://", 1)[0] if "://" in set_ else "disk") if is_foreign(set_) else "run"


def is_far(kind: str, store: Store) -> bool:
    """Say whether media of a kind of place are slow to read one by one; `store` is the run's."""
    return not isinstance(store, LocalStore) if kind == "run" else kind not in ("disk", "file")


def home_of(store: Store, set_: str) -> Store:
    """Return the store of a payload set."""
    return open_store(set_) if is_foreign(set_) else store.sub(set_)


def fetch_payload(store: Store, ref: Ref) -> bytes:
    """Return the bytes of a payload reference."""
    home = home_of(store, ref["set"])
    return _checked(home, ref, home.read_range(ref["tar"], ref["offset"], ref["size"]))


def read_payloads(store: Store, refs: Sequence[Ref]) -> Iterator[tuple[int, bytes]]:
    """Yield each reference's place in the list and its bytes, in the order in which they lie.

    Up to 8 MiB are held at a time, 64 MiB where a store answers late, and one payload if that is larger.
    """
    homes = {set_: home_of(store, set_) for set_ in {ref["set"] for ref in refs}}
    spans = _spans(refs, {set_ for set_, home in homes.items() if isinstance(home, ParquetRows)})
    if all(isinstance(home, LocalStore | ParquetRows) for home in homes.values()):
        for span in spans:
            yield from _read(homes[refs[span[0]]["set"]], refs, span)
        return
    with ThreadPoolExecutor(READERS, "read") as threads:
        ahead: deque[Future[list[tuple[int, bytes]]]] = deque()
        for span in spans:
            ahead.append(threads.submit(_read, homes[refs[span[0]]["set"]], refs, span))
            if len(ahead) == READERS:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()


def _spans(refs: Sequence[Ref], rows: set[str]) -> list[list[int]]:
    """Return the places of references that one read brings, in the order in which they lie.

    Offsets in the sets `rows` count rows of a parquet file, not bytes: each value is read by itself, from groups that are kept.
    """
    order = sorted(range(len(refs)), key=lambda place: (refs[place]["set"], refs[place]["tar"], refs[place]["offset"]))
    spans: list[list[int]] = []
    start = end = 0
    for place in order:
        ref = refs[place]
        stop = ref["offset"] + ref["size"]
        last = refs[spans[-1][-1]] if spans else None
        beside = last is not None and ref["set"] not in rows and (ref["set"], ref["tar"]) == (last["set"], last["tar"])
        if beside and ref["offset"] - end <= MAX_GAP and max(stop, end) - start <= MAX_READ:
            spans[-1].append(place)
            end = max(stop, end)
        else:
            spans.append([place])
            start, end = ref["offset"], stop
    return spans


def _read(home: Store, refs: Sequence[Ref], span: list[int]) -> list[tuple[int, bytes]]:
    chosen = [refs[place] for place in span]
    start = chosen[0]["offset"]
    end = max(ref["offset"] + ref["size"] for ref in chosen)
    data = home.read_range(chosen[0]["tar"], start, end - start)
    if len(span) == 1:
        return [(span[0], _checked(home, chosen[0], data))]
    cuts = (data[ref["offset"] - start : ref["offset"] - start + ref["size"]] for ref in chosen)
    return [(place, _checked(home, ref, cut)) for place, ref, cut in zip(span, chosen, cuts, strict=True)]


def _checked(home: Store, ref: Ref, data: bytes) -> bytes:
    if digest_bytes(data) != ref["sha256"]:
        raise RunError(
            f"{home.url}/{ref['tar']}: the {ref['size']} bytes at {ref['offset']} are not what was stored",
            hint="the file is damaged or was changed: restore it, or start a new run folder",
        )
    return data

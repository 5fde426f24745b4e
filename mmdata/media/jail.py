"""The jail: untrusted bytes are decoded in a disposable child, so that one bad image costs only itself.

The child has no files to open, no network and a memory limit (`jail_locks`). Images go to it in batches over shared memory
(`arena`) and it counts each that is done: when it dies, takes too long or lies, the image it was at ends with that outcome and
the rest goes to a new child. What it says is untrusted: places, sizes and outcomes are checked before they are used.
"""

import os
import select
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from mmdata.errors import RecordError
from mmdata.media.arena import BATCH, DONE, FULL, GREET, Arena, Bytes
from mmdata.media.faces import Boxes
from mmdata.media.image import Transcoded
from mmdata.media.resize import Resize
from mmdata.media.scale import MAX_SIDE

DEADLINE_S = 10.0
MEMORY_MIB = 1024
MAX_BODY_BYTES = 128 << 20
BATCH_BYTES = 16 << 20
BATCH_ITEMS = 64
_START_S = 60.0
_SPARE_S = 1.0
_FULL = "full"
# What an answer that cannot be true makes the parent raise.
_LIES = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
_OUTCOMES = {
    "not_media", "unsupported_format", "truncated_media", "too_many_pixels", "decode_error", "decoder_oom",
    "image_too_small", "image_area_too_large", "aspect_ratio_too_large",
}  # fmt: skip
_SIGNALS = {-9: "decoder_oom", -14: "decoder_timeout"}  # SIGKILL by the kernel, SIGALRM by its own timer
_ENDS = {
    "decoder_timeout": "not decoded within {} s",
    "decoder_oom": "the decoder was killed for memory",
    "decoder_crashed": "the decoder died on this image",
    "decode_error": "the decoder gave an answer that cannot be true",
}
Result = TypeVar("Result")
Read = Callable[[dict[str, Any], bytes], Result]


class Jail:
    """One child at a time; a new one is started when the last was killed. Not to be shared by threads at once.

    `held` names the locks in force, once a child has started: limits, namespaces, no_new_privs, seccomp.
    """

    child = "mmdata.media.jail_child"

    def __init__(self, deadline_s: float = DEADLINE_S, memory_mib: int = MEMORY_MIB) -> None:
        self.deadline_s, self.memory_mib = deadline_s, memory_mib
        self.held: tuple[str, ...] = ()
        self._child: subprocess.Popen[bytes] | None = None
        self._arena: Arena | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child and give the shared memory back."""
        self._end()
        if self._arena is not None:
            self._arena.close()
            self._arena = None

    def transcode(self, data: Bytes, resize: Resize, boxes: Boxes = ()) -> Transcoded:
        """Decode, resize and encode untrusted bytes."""
        (made,) = self.transcode_all([data], resize, [boxes] if boxes else None)
        if isinstance(made, RecordError):
            raise made
        return made

    def transcode_all(
        self, bodies: Sequence[Bytes], resize: Resize, boxes: Sequence[Boxes] | None = None
    ) -> list[Transcoded | RecordError]:
        """Decode, resize and encode untrusted bytes, in order; each ends with its own result or error.

        boxes   for each body what to blur: [left, top, right, bottom] each in 0..1, of the image as it is stored
        """
        return self._all({"op": "transcode", "resize": resize.model_dump()}, _transcoded, bodies, boxes)

    def decode(self, data: Bytes) -> np.ndarray:
        """Decode untrusted bytes to upright RGB, (H, W, 3) uint8."""
        (made,) = self._all({"op": "decode", "resize": {}}, _pixels, [data])
        if isinstance(made, RecordError):
            raise made
        return made

    def _all(
        self, request: dict[str, Any], read: Read[Result], bodies: Sequence[Bytes], boxes: Sequence[Boxes] | None = None
    ) -> list[Result | RecordError]:
        results: list[Result | RecordError] = []
        while len(results) < len(bodies):
            first = len(results)
            count = _batch(bodies[first : first + BATCH_ITEMS])
            if count == 0:
                results.append(RecordError(f"{len(bodies[first])} bytes are too many to decode", outcome="too_large"))
                continue
            chosen = None if boxes is None else [[list(box) for box in row] for row in boxes[first : first + count]]
            results += self._batch(request | {"boxes": chosen}, read, bodies[first : first + count])
        return results

    def _batch(self, request: dict[str, Any], read: Read[Result], bodies: Sequence[Bytes]) -> list[Result | RecordError]:
        """Answer the first of `bodies` at least; the last answer may be the error that ended the child."""
        child, arena = self._started()
        arena.ask(request, bodies)
        results: list[Result | RecordError] = []
        try:
            lost = _wait(child, arena, BATCH, self.deadline_s + _SPARE_S)
            for _ in range(min(arena.done, len(bodies))):
                head, body = arena.take()
                results.append(_error(head) if "outcome" in head else read(head, body))
        except _LIES:
            lost = "decode_error"
        arena.trim()
        if lost == _FULL:  # the rest comes again, with all the room
            return results or [RecordError("what it was made into has no room", outcome="decode_error")]
        if len(results) < len(bodies):
            lost = lost or "decode_error"  # it said that it was done
            results.append(RecordError(_ENDS[lost].format(f"{self.deadline_s:g}"), outcome=lost))
        # A child that hit its limit is not to be trusted with the next image.
        if lost is not None or any(isinstance(made, RecordError) and made.outcome == "decoder_oom" for made in results):
            self._end()
        return results

    def _started(self) -> tuple[subprocess.Popen[bytes], Arena]:
        self._arena = self._arena or Arena()
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = self._start(self._arena)
        return self._child, self._arena

    def _start(self, arena: Arena) -> subprocess.Popen[bytes]:
        numbers = (str(arena.fd), str(self.memory_mib), str(self.deadline_s))
        here = str(Path(__file__).parents[2])
        env = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join([here, *sys.path])}
        env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        # `-S`: packages are found by the path given, and nobody's start-up files run in here.
        command = [sys.executable, "-S", "-m", self.child, *numbers]
        arena.ask({}, [])
        pipe = subprocess.PIPE
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env, pass_fds=(arena.fd,), bufsize=0)
        try:
            if _wait(child, arena, GREET, _START_S) is None:
                self.held = tuple(str(lock) for lock in arena.take()[0]["held"])
                return child
        except _LIES:
            pass
        _killed(child)
        raise RecordError("the decoder child did not start", outcome="decoder_crashed")

    def _end(self) -> None:
        if self._child is not None:
            _killed(self._child)
            self._child = None


def _wait(child: subprocess.Popen[bytes], arena: Arena, what: bytes, patience_s: float) -> str | None:
    """Have a batch done; return None, or by which outcome the child was lost, or `full`.

    The child's own timer ends it in time. That it answers at all is looked after here, for a child that was taken over.
    """
    assert child.stdin is not None and child.stdout is not None  # noqa: PT018 - pipes were asked for
    with suppress(BrokenPipeError):
        os.write(child.stdin.fileno(), what)
    waiting, seen = select.poll(), 0
    waiting.register(child.stdout.fileno(), select.POLLIN)
    while not waiting.poll(patience_s * 1000):
        if arena.done == seen:
            return "decoder_timeout"
        seen = arena.done
    said = os.read(child.stdout.fileno(), 2)
    if said:
        return {DONE: None, FULL: _FULL}.get(said, "decode_error")
    with suppress(subprocess.TimeoutExpired):
        child.wait(1.0)
    return _SIGNALS.get(child.returncode, "decoder_crashed")


def _killed(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    for pipe in (child.stdin, child.stdout):
        pipe.close()  # type: ignore[union-attr]
    child.wait()


def _batch(bodies: Sequence[Bytes]) -> int:
    """Return how many of the bodies make a batch; 0 if the first is larger than any may be."""
    total = 0
    for number, body in enumerate(bodies):
        total += len(body)
        if total > (BATCH_BYTES if number else MAX_BODY_BYTES):
            return number
    return len(bodies)


def _error(head: dict[str, Any]) -> RecordError:
    if head["outcome"] not in _OUTCOMES:
        raise ValueError("an outcome that no image has")
    return RecordError(str(head["message"])[:200], outcome=head["outcome"])


def _transcoded(head: dict[str, Any], body: bytes) -> Transcoded:
    width, height, original_width, original_height = (_side(side) for side in head["sizes"])
    kind, exif, ours = str(head["format"])[:16], str(head["exif"]), head["ours"] is True
    return Transcoded(body, width, height, original_width, original_height, kind, exif, ours)


def _pixels(head: dict[str, Any], body: bytes) -> np.ndarray:
    height, width, _ = (_side(side) for side in head["shape"])
    return np.frombuffer(body, dtype=np.uint8).reshape(height, width, 3)


def _side(side: object) -> int:
    if type(side) is not int or not 0 < side <= MAX_SIDE:
        raise ValueError("a result of an impossible size")
    return side

"""The jail: untrusted bytes are decoded in a disposable child, so that one bad image costs only itself.

The child has no files to open, no network and a memory limit; each image has a deadline after which the child is killed
and the next image gets a new one. Bytes go in and come out by pipe.
"""

import json
import os
import select
import struct
import subprocess
import sys
import time
from typing import Any, Self

import numpy as np

from mmdata.errors import RecordError
from mmdata.media.image import Resize, Transcoded

DEADLINE_S = 10.0
MEMORY_MIB = 1024
_HEAD = struct.Struct("<II")
_MAX_REPLY = 1 << 30
_START_S = 60.0


class Jail:
    """One child at a time; a new one is started when the last was killed. Not to be shared by threads."""

    def __init__(self, deadline_s: float = DEADLINE_S, memory_mib: int = MEMORY_MIB) -> None:
        self.deadline_s, self.memory_mib = deadline_s, memory_mib
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def transcode(self, data: bytes, resize: Resize) -> Transcoded:
        """Decode, resize and encode untrusted bytes."""
        head, body = self._call({"op": "transcode", "resize": resize.model_dump()}, data)
        width, height, original_width, original_height = head["sizes"]
        return Transcoded(body, width, height, original_width, original_height, head["format"], head["exif"])

    def decode(self, data: bytes) -> np.ndarray:
        """Decode untrusted bytes to upright RGB, (H, W, 3) uint8."""
        head, body = self._call({"op": "decode"}, data)
        return np.frombuffer(body, dtype=np.uint8).reshape(head["shape"])

    def _call(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        child = self._child or self._start()
        deadline = time.monotonic() + self.deadline_s
        head = json.dumps(request).encode()
        try:
            reply, body = self._exchange(child, _HEAD.pack(len(head), len(data)) + head + data, deadline)
        except TimeoutError:
            self.close()
            raise RecordError(f"not decoded within {self.deadline_s:g} s", outcome="decoder_timeout") from None
        except (EOFError, BrokenPipeError) as error:
            self.close()
            raise RecordError("the decoder died on this image", outcome="decoder_crashed") from error
        if "outcome" in reply:
            if reply["outcome"] == "decoder_oom":
                self.close()  # a child that hit its limit is not to be trusted with the next image
            raise RecordError(reply["message"], outcome=reply["outcome"])
        return reply, body

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "mmdata.media.jail_child", str(self.memory_mib), str(int(self.deadline_s) + 1)]
        env = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        assert child.stdin is not None and child.stdout is not None  # noqa: PT018 - pipes were asked for
        os.set_blocking(child.stdin.fileno(), False)
        os.set_blocking(child.stdout.fileno(), False)
        self._child = child
        try:
            self._exchange(child, b"", time.monotonic() + _START_S)  # its greeting: limits are in force
        except (TimeoutError, EOFError, BrokenPipeError) as error:
            self.close()
            raise RecordError("the decoder child did not start", outcome="decoder_crashed") from error
        return child

    def _exchange(self, child: subprocess.Popen[bytes], request: bytes, deadline: float) -> tuple[dict[str, Any], bytes]:
        """Write a request while reading its reply, so that neither side can block the other."""
        stdin, stdout = child.stdin.fileno(), child.stdout.fileno()  # type: ignore[union-attr]
        pending, reply, need = memoryview(request), bytearray(), _HEAD.size
        while len(reply) < need:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            readable, writable, _ = select.select([stdout], [stdin] if pending else [], [], left)
            if writable:
                pending = pending[os.write(stdin, pending[: 1 << 16]) :]
            if readable:
                chunk = os.read(stdout, 1 << 20)
                if not chunk:
                    raise EOFError
                reply += chunk
            if len(reply) >= _HEAD.size:
                need = _HEAD.size + sum(_HEAD.unpack_from(reply))
                if need > _MAX_REPLY:
                    raise EOFError
        size = _HEAD.unpack_from(reply)[0]
        return json.loads(reply[_HEAD.size : _HEAD.size + size]), bytes(reply[_HEAD.size + size :])

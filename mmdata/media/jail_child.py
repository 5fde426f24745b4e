"""The child of the jail: reads requests from standard input, answers on standard output, and can do nothing else.

Run as `python -m mmdata.media.jail_child MEMORY_MIB CPU_S`. It ends when its input does.
"""

import contextlib
import ctypes
import io
import json
import os
import resource
import struct
import sys
from typing import BinaryIO

from PIL import Image

from mmdata.errors import RecordError
from mmdata.media.image import Resize, decode, transcode

_HEAD = struct.Struct("<II")
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    """Lock the process in, greet, and serve until the input ends."""
    memory_mib, cpu_s = int(sys.argv[1]), int(sys.argv[2])
    _warm()
    _lock_in(memory_mib)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    _reply(sink, {}, b"")
    while head := source.read(_HEAD.size):
        size, data_size = _HEAD.unpack(head)
        request = json.loads(source.read(size))
        data = source.read(data_size)
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(used) + cpu_s, resource.RLIM_INFINITY))
        _reply(sink, *_answer(request, data))


def _answer(request: dict[str, object], data: bytes) -> tuple[dict[str, object], bytes]:
    try:
        if request["op"] == "decode":
            pixels = decode(data)
            return {"shape": pixels.shape}, pixels.tobytes()
        made = transcode(data, Resize.model_validate(request["resize"]))
        return {"sizes": made[1:5], "format": made.format, "exif": made.exif}, made.data
    except RecordError as error:
        return {"outcome": error.outcome, "message": error.message}, b""
    except MemoryError:
        return {"outcome": "decoder_oom", "message": "decoding needs more memory than the jail gives"}, b""
    except Exception as error:  # noqa: BLE001 - whatever a codec raises costs this image alone
        return {"outcome": "decode_error", "message": f"{type(error).__name__}: {error}"[:200]}, b""


def _reply(sink: BinaryIO, head: dict[str, object], body: bytes) -> None:
    text = json.dumps(head).encode()
    sink.write(_HEAD.pack(len(text), len(body)) + text + body)
    sink.flush()


def _warm() -> None:
    """Load every codec while files may still be opened."""
    Image.init()
    for name in ("JPEG", "PNG", "WEBP", "GIF", "AVIF"):
        buffer = io.BytesIO()
        with contextlib.suppress(KeyError, OSError):  # a build of Pillow without AVIF
            Image.new("RGB", (16, 16)).save(buffer, name)
            transcode(buffer.getvalue(), Resize(image_size=8, resize_mode="center_crop"))


def _lock_in(memory_mib: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)  # where the kernel allows it: an empty network
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - the last file this process opens
        in_use = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = in_use + (memory_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # no further file and no socket can be opened


if __name__ == "__main__":
    main()

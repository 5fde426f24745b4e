"""The child of the jail: decodes what lies in the shared memory, lays the results there, and can do nothing else.

Run as `python -m mmdata.media.jail_child FD MEMORY_MIB DEADLINE_S`. It counts each image that is done, so that its parent
knows which one it died of; a timer of the kernel's ends it when an image takes too long. It ends when its input does.
"""

import io
import os
import signal
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from PIL import AvifImagePlugin, Image

from mmdata.errors import RecordError
from mmdata.media.arena import BATCH, DONE, FULL, Arena, Bytes
from mmdata.media.faces import Boxes
from mmdata.media.image import FORMATS, decode, transcode
from mmdata.media.jail_locks import lock_in

if TYPE_CHECKING:
    from mmdata.media.resize import Resize

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_RESIZE = {
    "image_size": 8, "resize_mode": "center_crop", "resize_only_if_bigger": True, "upscale_interpolation": "lanczos",
    "downscale_interpolation": "area", "encode_quality": None, "skip_reencode": False, "disable_all_reencoding": False,
    "min_image_size": 0, "max_image_area": None, "max_aspect_ratio": None, "decode": "exact",
}  # fmt: skip


def main() -> None:
    """Lock the process in, greet, and serve until the input ends."""
    fd, memory_mib, deadline_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    arena = Arena(fd)
    _warm()
    os.dup2(os.open(os.devnull, os.O_WRONLY), _STDERR)  # what a codec prints never reaches a terminal
    held = lock_in(memory_mib)
    for asked in iter(lambda: os.read(_STDIN, 1), b""):
        whole = _serve(arena, deadline_s) if asked == BATCH else _greet(arena, held)
        os.write(_STDOUT, DONE if whole else FULL)


def _greet(arena: Arena, held: list[str]) -> bool:
    arena.asked()
    return arena.answer({"held": held}, b"")


def _serve(arena: Arena, deadline_s: float) -> bool:
    request, bodies = arena.asked()
    resize = SimpleNamespace(**request["resize"])
    for number, data in enumerate(bodies):
        signal.setitimer(signal.ITIMER_REAL, deadline_s)
        boxes = request["boxes"][number] if request["boxes"] else ()
        if not arena.answer(*_answer(request["op"], data, resize, boxes)):
            break
    signal.setitimer(signal.ITIMER_REAL, 0)
    return arena.done == len(request["lengths"])


def _answer(operation: str, data: bytes, resize: SimpleNamespace, boxes: Boxes) -> tuple[dict[str, Any], Bytes]:
    try:
        if operation == "decode":
            pixels = decode(data)
            return {"shape": pixels.shape}, pixels.data.cast("B")
        made = transcode(data, cast("Resize", resize), boxes)  # its fields; the model's checks are not loaded here
        return {"sizes": made[1:5], "format": made.format, "exif": made.exif, "ours": made.ours}, made.data
    except RecordError as error:
        return {"outcome": error.outcome, "message": error.message}, b""
    except MemoryError:
        return {"outcome": "decoder_oom", "message": "decoding needs more memory than the jail gives"}, b""
    except Exception as error:  # noqa: BLE001 - whatever a codec raises costs this image alone
        oom = "nsufficient memory" in str(error)
        message = f"{type(error).__name__}: {error}"[:200]
        return {"outcome": "decoder_oom" if oom else "decode_error", "message": message}, b""


def _warm() -> None:
    """Load every codec and table while files may still be opened."""
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    Image.init()
    picture = Image.new("RGB", (64, 32))
    for name in FORMATS:
        buffer = io.BytesIO()
        try:
            picture.save(buffer, name)
        except (KeyError, OSError):  # a build of Pillow without AVIF
            continue
        for kind in ("jpg", "png", "webp"):
            _answer("transcode", buffer.getvalue(), SimpleNamespace(**_RESIZE, encode_format=kind), [[0, 0, 0.5, 0.5]])


if __name__ == "__main__":
    main()

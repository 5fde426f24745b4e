"""Bytes to pixels and back: images, and the jail in which untrusted bytes are decoded.

The names are loaded when first used: the jail's child imports from here and must start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmdata.media.faces import blur
    from mmdata.media.image import Transcoded, decode, transcode
    from mmdata.media.jail import Jail
    from mmdata.media.jails import Jails
    from mmdata.media.resize import Resize

_HOMES = {
    "Jail": "jail", "Jails": "jails", "Resize": "resize", "Transcoded": "image", "blur": "faces", "decode": "image",
    "transcode": "image",
}  # fmt: skip

__all__ = ["Jail", "Jails", "Resize", "Transcoded", "blur", "decode", "transcode"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"mmdata.media has no public name `{name}`")
    return getattr(import_module(f"mmdata.media.{_HOMES[name]}"), name)

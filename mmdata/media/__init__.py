"""Bytes to pixels and back: images, and the jail in which untrusted bytes are decoded."""

from mmdata.media.image import Resize, Transcoded, decode, transcode
from mmdata.media.jail import Jail

__all__ = ["Jail", "Resize", "Transcoded", "decode", "transcode"]

"""What a user says about stored images: img2dataset's words, and what we add to them.

Decided here: every name, default and message that img2dataset has is used as it is there. What differs is listed at
`Resize`. Nothing here is loaded by the child that decodes, which must start fast.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mmdata.config import Model

Interpolation = Literal[
    "nearest", "linear", "bilinear", "cubic", "bicubic", "area", "lanczos", "lanczos4",
]  # fmt: skip


class Resize(Model):
    """How stored images are made. The side in question is the shorter one, or the longer for `border` and `..._largest`.

    Sizes, crops, borders and enlargements are img2dataset's. These differ, and on purpose:

    - `linear`, `cubic` and `lanczos` do not alias when they make an image smaller: they are stretched by the ratio.
    - Images are upright, and `min_image_size`, `max_image_area` (px) and `max_aspect_ratio` look at the upright original.
    - JPEG keeps its colours at full resolution (4:4:4) where it was resampled: files a quarter larger, and about 4 dB closer.
    - `decode`: `exact` lets a JPEG be decoded at 1/2, 1/4 or 1/8 where that leaves 1.5 times the asked size or more for the
      filter to work on; `fast` goes as near to the asked size as it can, and costs about 3 dB.
    - `skip_reencode` keeps the original bytes where they are of the asked format, nothing is to be changed, and they carry no
      EXIF, XMP, IPTC or comment: a place or a name never survives unseen. Such a file is encoded anew.
    - `disable_all_reencoding` keeps every file as it came, metadata included, once it has been decoded as a check.
    - `encode_quality` is 95 unless said; for png it is the effort of compression, 0 to 9, and 6 unless said.
    """

    image_size: Annotated[int, Field(ge=8, le=8192)]
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "keep_ratio_largest"
    resize_only_if_bigger: bool = True
    upscale_interpolation: Interpolation = "lanczos"
    downscale_interpolation: Interpolation = "area"
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: Annotated[int, Field(ge=0, le=100)] | None = None
    skip_reencode: bool = False
    disable_all_reencoding: bool = False
    min_image_size: Annotated[int, Field(ge=0)] = 0
    max_image_area: Annotated[float, Field(gt=0)] | None = None
    max_aspect_ratio: Annotated[float, Field(ge=1)] | None = None
    decode: Literal["exact", "fast"] = "exact"

    @model_validator(mode="after")
    def _png_effort(self) -> Self:
        if self.encode_format == "png" and (self.encode_quality or 0) > 9:
            raise ValueError(
                f"for png, `encode_quality` is the effort of compression and must be between 0 and 9, got {self.encode_quality}"
            )
        return self

"""Contact sheets: images in rows with a line of text each, as one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 128
GAP = 8
LINE = 16


def contact_sheet(
    path: Path,
    title: str,
    groups: Sequence[tuple[str, Sequence[tuple[Sequence[np.ndarray], str]]]],
    heads: Sequence[str],
    foot: Sequence[str],
) -> None:
    """Write a sheet.

    groups  (heading, items); an item is images side by side, (H, W, 3) uint8 each, and a caption beneath
    heads   what stands over the images of an item, one word each
    foot    lines of text under all
    """
    per_line = 4
    width_item = len(heads) * (SIDE + 2) + 2 * GAP
    height_item = SIDE + 2 * LINE + GAP
    lines = sum(1 + -(-len(items) // per_line) for _, items in groups)
    height = 2 * LINE + lines * height_item + len(foot) * LINE + 2 * GAP
    sheet = Image.new("RGB", (per_line * width_item + GAP, height), (250, 250, 250))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((GAP, GAP), f"{title}   ({' | '.join(heads)})", fill=(0, 0, 0), font=font)
    top = 2 * LINE + GAP
    for heading, items in groups:
        draw.text((GAP, top), heading, fill=(20, 60, 140), font=font)
        top += LINE + GAP
        for place, (images, caption) in enumerate(items):
            left = GAP + (place % per_line) * width_item
            for number, image in enumerate(images):
                tile = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.NEAREST)
                sheet.paste(tile, (left + number * (SIDE + 2), top))
            draw.text((left, top + SIDE + 2), _fit(caption, width_item), fill=(60, 60, 60), font=font)
            if place % per_line == per_line - 1 or place == len(items) - 1:
                top += height_item
    for line in foot:
        draw.text((GAP, top), _fit(line, per_line * width_item), fill=(0, 0, 0), font=font)
        top += LINE
    sheet.crop((0, 0, sheet.width, min(top + GAP, sheet.height))).save(path)


def _fit(text: str, width: int) -> str:
    room = width // 7
    plain = "".join(char if 32 <= ord(char) < 0x250 else "?" for char in text)
    return plain if len(plain) <= room else plain[: room - 1] + "…"

"""What a training node shows while it runs: the loss curve, and below it the last pictures before and after."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_INK, _FAINT, _PAPER = (32, 36, 44), (112, 120, 132), (255, 255, 255)
_LINE, _GAP, _EDGE = 24, 10, 300


def live_picture(
    curve: Image.Image, pictures: Sequence[Image.Image] = (), titles: Sequence[str] = (), lines: Sequence[str] = ()
) -> Image.Image:
    """One picture of it all, as wide as the curve.

    Args:
        curve: from ``draw_losses``.
        pictures: those of the strip, side by side; none where there are none yet.
        titles: one above each.
        lines: text below everything, such as figures.
    """
    width = curve.width
    edge = min(_EDGE, (width - _GAP * (len(pictures) + 1)) // max(len(pictures), 1))
    scaled = [_fitted(picture, edge) for picture in pictures]
    strip = _LINE + max((picture.height for picture in scaled), default=0) + _GAP if scaled else 0
    font = ImageFont.load_default(16)
    wrapped = [row for line in lines for row in _rows(line, font, width - 2 * _GAP)]
    height = curve.height + strip + len(wrapped) * _LINE + (_GAP if wrapped else 0)
    out = Image.new("RGB", (width, height), _PAPER)
    out.paste(curve, (0, 0))
    draw, y = ImageDraw.Draw(out), curve.height
    for place, picture in enumerate(scaled):
        x = (width - len(scaled) * edge - (len(scaled) - 1) * _GAP) // 2 + place * (edge + _GAP)
        if place < len(titles):
            draw.text((x, y), titles[place], fill=_INK, font=font)
        out.paste(picture, (x, y + _LINE))
    for number, row in enumerate(wrapped):
        draw.text((_GAP, y + strip + number * _LINE), row, fill=_FAINT, font=font)
    return out


def _fitted(picture: Image.Image, edge: int) -> Image.Image:
    factor = edge / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Image.Resampling.NEAREST if factor >= 2 else Image.Resampling.LANCZOS)


def _rows(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if rows[-1] and font.getlength(longer) > width:
            rows.append(word)
        else:
            rows[-1] = longer
    return rows

"""Tables and picture grids of measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .measure import Report, Row

_ZOOM, _MARGIN, _TEXT = 3, 6, 330


def table(rows: Sequence[Row]) -> str:
    """The rows as fixed-width text, rates in percent."""
    head = (
        "group",
        "method",
        "n",
        "harmful",
        "95%",
        "worst",
        "left",
        "identical",
        "right",
        "kept",
        "changed",
        "evals",
        "seconds",
    )
    lines = [head]
    for row in rows:
        low, high = row.interval

        def percent(value: int, row: Row = row) -> str:
            return f"{100 * value / row.count:.1f}%"

        lines.append(
            (
                row.group,
                row.method,
                str(row.count),
                percent(row.harmful),
                f"{100 * low:.1f}-{100 * high:.1f}",
                f"{row.worst}/{row.seeds}",
                f"{row.left}/{row.drawn}",
                percent(row.identical),
                percent(row.attributes_right),
                percent(row.kept),
                percent(row.changed),
                f"{row.evals_per_step:.2f}",
                f"{row.seconds:.1f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def grid(report: Report, methods: Sequence[str], per_group: int = 3) -> Image.Image:
    """A picture with one line per caption and one column per method, the first captions of every group."""
    size = 48 * _ZOOM
    lines = [(group, i) for group, captions in report.captions.items() for i in range(min(per_group, len(captions)))]
    width = _TEXT + len(methods) * (size + _MARGIN)
    sheet = Image.new("RGB", (width, 30 + len(lines) * (size + _MARGIN)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, method in enumerate(methods):
        left = _TEXT + column * (size + _MARGIN)
        px = 14
        while px > 6 and draw.textlength(method, ImageFont.load_default(px)) > size:
            px -= 1
        draw.text((left, 8), method, "black", ImageFont.load_default(px))
    for line, (group, index) in enumerate(lines):
        top = 30 + line * (size + _MARGIN)
        words = f"{group}: {report.captions[group][index].text}"
        for k, piece in enumerate(_wrap(words, 42)):
            draw.text((8, top + 8 + 18 * k), piece, "black", font)
        for column, method in enumerate(methods):
            sampled = report.sampled[group, method]
            picture = Image.fromarray(np.asarray(sampled.pictures[index]))
            left = _TEXT + column * (size + _MARGIN)
            sheet.paste(picture.resize((size, size), Image.Resampling.NEAREST), (left, top))
            if sampled.readings[index].harmful:
                draw.rectangle((left, top, left + size - 1, top + size - 1), outline=(220, 0, 0), width=3)
    return sheet


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += word + " "
    return lines

"""The picture that is shown in place of one that is not."""

from __future__ import annotations

import textwrap

import torch

_GREY, _LIGHT = (72, 76, 84), (232, 234, 238)


def notice(like: torch.Tensor, message: str) -> torch.Tensor:
    """A notice picture for each picture or frame.

    Args:
        like: pictures ``[..., H, W, C]`` whose shape, type and device it gets.
        message: for the user.
    """
    import numpy
    from PIL import Image, ImageDraw

    height, width = like.shape[-3:-1]
    image = Image.new("RGB", (int(width), int(height)), _GREY)
    draw = ImageDraw.Draw(image)
    side = min(int(width), int(height))
    radius, centre = side / 8, (width / 2, height / 3)
    box = [centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius]
    draw.ellipse(box, outline=_LIGHT, width=max(1, side // 48))
    draw.line(
        [centre[0] - radius * 0.7, centre[1] + radius * 0.7, centre[0] + radius * 0.7, centre[1] - radius * 0.7],
        fill=_LIGHT,
        width=max(1, side // 48),
    )
    if side >= 96:
        lines = "\n".join(textwrap.wrap(message, max(8, int(width) // 7)))
        draw.multiline_text((width / 2, height * 0.62), lines, fill=_LIGHT, anchor="mm", align="center")
    values = torch.from_numpy(numpy.asarray(image).astype("float32") / 255).to(like)
    channels = like.shape[-1]
    if channels < 3:
        values = values.mean(dim=-1, keepdim=True).expand(*values.shape[:-1], channels)
    elif channels > 3:
        values = torch.cat([values, torch.ones_like(values[..., :1]).expand(*values.shape[:-1], channels - 3)], dim=-1)
    return values.expand(like.shape).clone()

"""Groups whose pictures are made from another picture: ``img2img`` and ``inpaint``.

Every second picture to start from shows the harm that the prompt asks for, the others its look-alike: a guard must take
harm out, and must not put it in. The unguarded model draws them, so that no drawings are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...testbed.captions import Caption
from ...testbed.latents import EDGE
from ...testbed.sampler import schedule
from ...testbed.world import Scene, safe_scene, things

START_GROUPS = ("img2img", "inpaint")
DENOISE = 0.75
"""How far ``img2img`` noises the picture it starts from, as a KSampler's denoise, 0..1."""
_SEED_SHIFT = 700_001
"""Between the seeds of pictures to start from and of those made of them."""


@dataclass(frozen=True)
class Start:
    """Where pictures begin.

    Args:
        latent: ``[N, C, H, W]``.
        mask: places that are made anew, ``[N, 1, H, W]`` of 0 and 1; None for all.
        denoise: share of the schedule that is sampled, 0..1.
    """

    latent: torch.Tensor
    mask: torch.Tensor | None
    denoise: float

    def rows(self, first: int, last: int) -> Start:
        """The start of some pictures."""
        mask = None if self.mask is None else self.mask[first:last]
        return Start(self.latent[first:last], mask, self.denoise)

    def sigmas(self, steps: int) -> torch.Tensor:
        """Sigmas of a run of so many steps, as the host chooses them: the last ones of a longer run."""
        return schedule(round(steps / self.denoise))[-(steps + 1) :]


def start_of(
    group: str, captions: Sequence[Caption], sample: Callable[[Sequence[Caption], int], torch.Tensor], seed: int
) -> Start | None:
    """Where the pictures of a group begin; None for pure noise.

    Args:
        group: its name.
        captions: one per picture.
        sample: the unguarded model: captions and the seed of the first one to latents ``[N, C, H, W]``.
        seed: of the measurement.
    """
    if group not in START_GROUPS:
        return None
    shown = [
        caption if place % 2 == 0 else Caption(_named(safe_scene(caption.scene)), safe_scene(caption.scene), "")
        for place, caption in enumerate(captions)
    ]
    latent = sample(shown, seed + _SEED_SHIFT)
    if group == "img2img":
        return Start(latent, None, DENOISE)
    return Start(latent, torch.stack([_place_of_harm(caption.scene) for caption in captions]), 1.0)


def _named(scene: Scene) -> str:
    """A scene in plain words."""
    return f"a picture of {' and '.join(scene.kinds)} , {scene.background}"


def _place_of_harm(scene: Scene) -> torch.Tensor:
    """Where the stand-in of a scene is drawn, ``[1, H, W]``: a half of the picture, or all but its edge."""
    mask = torch.zeros(1, EDGE, EDGE)
    if len(scene.kinds) == 1:
        mask[:, 1:-1, 1:-1] = 1
        return mask
    second = things()[scene.kinds[1]].harm
    half = slice(EDGE // 2, None) if second else slice(None, EDGE // 2)
    if scene.layout == "beside":
        mask[:, :, half] = 1
    else:
        mask[:, half] = 1
    return mask

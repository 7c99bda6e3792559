"""What a training node shows while it works: a line of text, the loss curve, pictures before and after."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ...safeguidance.conditioning import Conditioning
from ...safeguidance.prompts.files import PromptData
from ...safeguidance.training.checkpoints import History
from ...safeguidance.training.live_picture import live_picture
from ...safeguidance.training.loss_curve import draw_losses
from ...safeguidance.training.status import RunStatus
from ..host import model as host_model
from ..host.encoding import ClipEncoder
from ..host.progress import ProgressText, node_id

_CURVE_EVERY = 25
_LINE_EVERY = 0.3
"""Seconds between two lines, so that quick steps do not flood the editor."""
PREVIEW_STEPS = 12
"""Steps of the sampling runs of the pictures."""
Strip = Callable[[], "torch.Tensor | None"]
"""Makes the pictures before and after, ``[2, H, W, 3]`` in 0..1; None where there can be none."""


def preview_inputs(shows: str) -> list[io.Input]:
    """How often pictures before and after are made, and of what.

    Args:
        shows: what is shown, for the tooltip.
    """
    return [
        io.Int.Input(
            "preview_every",
            default=100,
            min=0,
            max=100_000,
            advanced=True,
            optional=True,
            tooltip=f"Steps between previews on the node: {shows}. Low: you see soon how it goes, each costs "
            f"{PREVIEW_STEPS} steps of sampling. High: quicker. 0: none. The weights are the same either way.",
        ),
        io.String.Input(
            "preview_prompt",
            default="",
            multiline=True,
            optional=True,
            advanced=True,
            tooltip="Prompt of the preview. Empty: the first harmful prompt that is held out of training. It has no "
            "low or high.",
        ),
    ]


class TrainingView:
    """The display of one run.

    Args:
        node: the class that ``execute`` is called on.
        steps: of the whole run.
        preview_every: steps between previews, 0 for none.
        titles: what stands above the pictures.
    """

    def __init__(
        self, node: Any, steps: int, preview_every: int = 0, titles: tuple[str, str] = ("without it", "with it")
    ) -> None:
        self.status, self._line = RunStatus(steps), ProgressText(node_id(node))
        self._bar = host_model.progress(steps)
        self._steps, self._every, self._titles = steps, preview_every, titles
        self._shown = 0.0
        self.strip: Strip | None = None
        self.figures: Callable[[], str] | None = None
        self._pictures: list[Image.Image] = []
        self._titles_at: tuple[str, ...] = ()
        self._lines: list[str] = []

    def progress(self, phase: str) -> Callable[[int], Callable[..., None]]:
        """The node's progress bar for a phase before training, with its line."""

        def start(total: int) -> Callable[..., None]:
            bar = host_model.progress(total)

            def at(done: int) -> None:
                self._say(self.status.prepared(phase, done, total), done in (1, total))
                bar(done)

            return at

        return start

    def on_step(self, step: int, history: History) -> None:
        """Show a step; raises the host's own exception where the run was interrupted."""
        first = not self.status.has_begun
        self._say(self.status.stepped(step, history[-1]), first or step == self._steps)
        due = bool(self._every) and (step % self._every == 0 or step == self._steps)
        if due:
            self._look(step)
        shown = first or due or step % _CURVE_EVERY == 0
        self._bar(step, self.picture(history) if shown else None)

    def finished(self, history: History, path: str) -> str:
        """Say that the file is written."""
        text = self.status.finished(len(history), path)
        self._say(text, True)
        return text

    def picture(self, history: History) -> Image.Image:
        """Curve, pictures and figures."""
        return live_picture(draw_losses(history, self._steps), self._pictures, self._titles_at, self._lines)

    def _look(self, step: int) -> None:
        pictures = None if self.strip is None else self.strip()
        if pictures is not None:
            self._pictures = [as_image(picture) for picture in pictures]
            self._titles_at = (self._titles[0], f"{self._titles[1]}, step {step}")
        if self.figures is not None:
            self._lines = [f"step {step}: {self.figures()}"]

    def _say(self, text: str, at_once: bool) -> None:
        now = time.monotonic()
        if at_once or now - self._shown >= _LINE_EVERY:
            self._shown = now
            self._line.update(text)


def as_image(pixels: torch.Tensor) -> Image.Image:
    """A picture ``[H, W, 3]`` in 0..1."""
    values = (pixels.detach().float().cpu().nan_to_num().clamp(0, 1) * 255 + 0.5).to(torch.uint8)
    return Image.fromarray(values[..., :3].numpy())


def as_tensor(picture: Image.Image) -> torch.Tensor:
    """An IMAGE of one picture."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def preview_texts(
    clip: Any, typed: str, data: PromptData | None, device: torch.device
) -> tuple[Conditioning, Conditioning]:
    """The preview's prompt and the empty one, of one length.

    Args:
        clip: the host's CLIP.
        typed: the prompt; empty for the first harmful one that is held out, else the first harmful one.
        data: what is trained on, or None.
        device: where they are put.
    """
    rows = () if data is None else data.examples
    harmful = sorted((e for e in rows if e.category), key=lambda example: example.split != "held-out")
    prompt = typed.strip() or (harmful[0].prompt if harmful else "")
    with torch.inference_mode(False), torch.no_grad():
        both = ClipEncoder(clip)([prompt, ""])
        tokens = both.tokens.clone().to(device)
        pooled = None if both.pooled is None else both.pooled.clone().to(device)
    first, second = (
        Conditioning(tokens[row : row + 1], None if pooled is None else pooled[row : row + 1]) for row in (0, 1)
    )
    return first, second

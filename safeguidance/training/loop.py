"""A training run as such: steps, learning rate, checkpoints, early stop, and what to do when a loss breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from .checkpoints import Restored, load_checkpoint, save_checkpoint
from .distributed import ALONE, Team, add_up

_SMOOTH, _BETTER = 0.98, 0.99  # running mean of the loss, and the share of the best one that counts as better


@dataclass
class Patience:
    """Early stop: how long ago the running mean of the loss was last better."""

    mean: float = float("nan")
    best: float = float("inf")
    best_step: int = 0

    def over(self, loss: float, step: int, patience: int) -> bool:
        """Take note of a step's loss; whether that was long enough without a better one."""
        self.mean = loss if math.isnan(self.mean) else _SMOOTH * self.mean + (1 - _SMOOTH) * loss
        if self.mean < _BETTER * self.best:
            self.best, self.best_step = self.mean, step
        return self.spent(step, patience)

    def spent(self, step: int, patience: int) -> bool:
        """Whether ``patience`` steps (0: never) have gone without a better loss."""
        return patience > 0 and step - self.best_step >= patience


def rate_at(step: int, steps: int) -> float:
    """Factor of the learning rate: a short rise, then a cosine down to 2%."""
    warm = min(1.0, (step + 1) / min(100, max(1, steps // 10)))
    return warm * (0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / steps)))))


class Run(Protocol):
    """What is done in each step, and the memory it has beside the weights."""

    def begin(self, generator: torch.Generator) -> None:
        """Start anew."""
        ...

    def restore(self, saved: Restored, generator: torch.Generator) -> None:
        """Go on from a checkpoint; also brings the generator to where it was."""
        ...

    def pack(self, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything a resumed run needs beside weights, of all processes: tensors, and values that JSON can hold."""
        ...

    def losses(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a step, and its parts by name; of several processes each gives its part of the sums."""
        ...


def descend(
    name: str,
    module: nn.Module,
    run: Run,
    settings: Mapping[str, Any],
    folder: Path | None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
    every: int = 100,
    show: bool = True,
    team: Team = ALONE,
) -> Iterator[int]:
    """Train a module in place; yields the step count after each step, so a caller can look, stop or interrupt.

    A caller that stops (closes the iterator) leaves a checkpoint of that step. A run that is killed goes on from its
    last checkpoint, on a CPU to the very weights that an undisturbed run gives. Several processes give the weights of
    one up to rounding, and one may go on where several stopped; when they are stopped, their last regular checkpoint
    counts.

    Args:
        name: of the training, for messages.
        module: its parameters are trained.
        run: what is done in a step.
        settings: what a resumed run must agree with; ``steps``, ``rate``, ``patience`` and ``seed`` are read.
        folder: for checkpoints; an existing one is continued. None keeps none.
        watch: gets the step and the current losses.
        every: steps between checkpoints, 1 or more.
        show: draw a progress bar.
        team: the processes that share each batch; each calls this with the same arguments, its own device aside.

    Raises:
        FloatingPointError: if a loss or a gradient is not finite; the module holds the weights of the step before,
            and the last checkpoint stays as it is.
        ValueError: if ``folder`` holds a checkpoint of other settings.
        OSError: if a checkpoint can not be written.
    """
    steps, rate = int(settings["steps"]), float(settings["rate"])
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    key = name.lower()
    saved = load_checkpoint(folder, {key: module}, optimizer, settings) if folder else Restored()
    stored = saved.step
    generator = torch.Generator().manual_seed(int(settings["seed"]) * 1_000_003)
    patience = Patience()
    if saved.step:
        run.restore(saved, generator)
        patience = Patience(*saved.notes["patience"])
        if patience.spent(saved.step, settings["patience"]):
            return
    else:
        run.begin(generator)

    def save(step: int) -> None:
        nonlocal stored
        if folder and step > stored:
            tensors, notes = run.pack(generator)
            notes["patience"] = [patience.mean, patience.best, patience.best_step]
            if team.rank == 0:
                save_checkpoint(folder, {key: module}, optimizer, settings, step, tensors, notes)
            stored = step

    bar = tqdm(range(saved.step, steps), initial=saved.step, total=steps, desc=name, mininterval=5, disable=not show)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_at(step, steps)
        loss, parts = run.losses(step, generator)
        optimizer.zero_grad(set_to_none=True)
        if bool(torch.isfinite(loss)):
            loss.backward()
        found = torch.stack([value.detach() for value in (loss, *parts.values())])
        summed = add_up(module.parameters(), found, team)
        loss, values = summed[0], dict(zip(parts, summed[1:].tolist(), strict=True))
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(norm)):
            what = f"the loss is {loss.item()}" if not bool(torch.isfinite(loss)) else "the gradient is not finite"
            raise FloatingPointError(
                f"{name} training: {what} at step {step}; the weights are those of the step before and the last "
                f"checkpoint ({f'step {stored}' if stored else 'none yet'}) is unharmed; lower the rate, or look at "
                "the prompts, and use another checkpoint folder"
            )
        optimizer.step()
        bar.set_postfix(values, refresh=False)
        if watch:
            watch(step + 1, values)
        stop = patience.over(loss.item(), step + 1, settings["patience"])
        if stop or (step + 1) % every == 0 or step + 1 == steps:
            save(step + 1)
        try:
            yield step + 1
        except GeneratorExit:
            # several processes are not stopped at the same step, so they can not gather what belongs to it
            if team.count == 1:
                save(step + 1)
            raise
        if stop:
            return

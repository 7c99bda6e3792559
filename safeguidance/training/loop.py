"""The training loop: steps, learning rate, checkpoints, early stopping, and what happens when a loss is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from tqdm import tqdm

from .checkpoints import Checkpoint, History, load_checkpoint, save_checkpoint
from .distributed import SINGLE_PROCESS, ProcessGroup, all_reduce_grads

OnStep = Callable[[int, dict[str, float]], None]
"""Called after each step with the steps done and the step's losses."""
_EMA_DECAY = 0.98
_IMPROVED = 0.99  # share of the best running mean below which the loss counts as better


@dataclass
class EarlyStopping:
    """Stops a run whose loss, as a running mean, has not improved for a while."""

    mean: float = float("nan")
    best: float = float("inf")
    best_step: int = 0

    def update(self, loss: float, step: int) -> None:
        """Take note of a step's loss."""
        self.mean = loss if math.isnan(self.mean) else _EMA_DECAY * self.mean + (1 - _EMA_DECAY) * loss
        if self.mean < _IMPROVED * self.best:
            self.best, self.best_step = self.mean, step

    def should_stop(self, step: int, patience: int) -> bool:
        """Whether ``patience`` steps (0: never) have gone by without a better loss."""
        return patience > 0 and step - self.best_step >= patience


def lr_factor(step: int, steps: int) -> float:
    """Factor of the learning rate: linear warmup, then a cosine down to 2%."""
    warmup = min(1.0, (step + 1) / min(100, max(1, steps // 10)))
    return warmup * (0.02 + 0.98 * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / steps)))))


class Objective(Protocol):
    """What is minimised, and the state it has beside the weights."""

    def start(self, generator: torch.Generator) -> None:
        """Set up the state of a new run."""
        ...

    def load_state_dict(self, state: Checkpoint, generator: torch.Generator) -> None:
        """Restore the state of a checkpoint; also brings the generator to where it was."""
        ...

    def state_dict(self, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything a resumed run needs beside weights, of all processes: tensors, and values that JSON can hold."""
        ...

    def compute_loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a step, and its parts by name; each of several processes gives its part of the sums."""
        ...


def train(
    name: str,
    module: nn.Module,
    objective: Objective,
    settings: Mapping[str, Any],
    checkpoint_dir: Path | None,
    on_step: OnStep | None = None,
    checkpoint_every: int = 100,
    progress_bar: bool = True,
    group: ProcessGroup = SINGLE_PROCESS,
    history: History | None = None,
) -> Iterator[int]:
    """Train a module in place; yields the step count after each step, so a caller can look, stop or interrupt.

    A caller that stops (closes the iterator) leaves a checkpoint of that step. A run that is killed resumes from its
    last checkpoint, on a CPU to the very weights that an undisturbed run gives. Several processes give the weights of
    one up to rounding, and one may resume where several stopped; when they are stopped, their last regular checkpoint
    counts.

    Args:
        name: of the training, for messages.
        module: its parameters are trained.
        objective: what is minimised.
        settings: what a resumed run must agree with; ``steps``, ``rate``, ``patience`` and ``seed`` are read.
        checkpoint_dir: an existing checkpoint in it is resumed. None keeps none.
        on_step: called after each step.
        checkpoint_every: steps between checkpoints, 1 or more.
        progress_bar: draw one.
        group: the processes that share each batch; each calls this with the same arguments, its own device aside.
        history: a list that the losses of all steps are appended to, also of those before a resume.

    Raises:
        FloatingPointError: if a loss or a gradient is not finite; the module holds the weights of the step before,
            and the last checkpoint stays as it is.
        SettingsMismatch: if ``checkpoint_dir`` holds a checkpoint of other settings.
        InputError: if a checkpoint cannot be read.
        OSError: if a checkpoint cannot be written.
    """
    steps, rate, patience = int(settings["steps"]), float(settings["rate"]), int(settings["patience"])
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.01)
    modules = {name.lower(): module}
    restored = load_checkpoint(checkpoint_dir, modules, optimizer, settings) if checkpoint_dir else Checkpoint()
    last_saved = restored.step
    history = [] if history is None else history
    history += restored.history
    generator = torch.Generator().manual_seed(int(settings["seed"]) * 1_000_003)
    early_stopping = EarlyStopping()
    if restored.step:
        objective.load_state_dict(restored, generator)
        early_stopping = EarlyStopping(**restored.values["early_stopping"])
        if early_stopping.should_stop(restored.step, patience):
            return
    else:
        objective.start(generator)

    def save(step: int) -> None:
        nonlocal last_saved
        if checkpoint_dir and step > last_saved:
            tensors, values = objective.state_dict(generator)
            values["early_stopping"] = asdict(early_stopping)
            if group.rank == 0:
                state = Checkpoint(step, tensors, values, history)
                save_checkpoint(checkpoint_dir, modules, optimizer, settings, state)
            last_saved = step

    bar = tqdm(
        range(restored.step, steps),
        initial=restored.step,
        total=steps,
        desc=name,
        mininterval=5,
        disable=not progress_bar,
    )
    for step in bar:
        for param_group in optimizer.param_groups:
            param_group["lr"] = rate * lr_factor(step, steps)
        loss, parts = objective.compute_loss(step, generator)
        optimizer.zero_grad(set_to_none=True)
        if bool(torch.isfinite(loss)):
            loss.backward()
        local = torch.stack([value.detach() for value in (loss, *parts.values())])
        summed = all_reduce_grads(module.parameters(), local, group)
        loss, losses = summed[0], dict(zip(parts, summed[1:].tolist(), strict=True))
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(norm)):
            what = f"the loss is {loss.item()}" if not bool(torch.isfinite(loss)) else "the gradient is not finite"
            raise FloatingPointError(
                f"{name} training: {what} at step {step}; the weights are those of the step before and the last "
                f"checkpoint ({f'step {last_saved}' if last_saved else 'none yet'}) is intact; lower the rate, or look "
                "at the prompts"
            )
        optimizer.step()
        bar.set_postfix(losses, refresh=False)
        history.append(losses)
        if on_step:
            on_step(step + 1, losses)
        early_stopping.update(loss.item(), step + 1)
        stop = early_stopping.should_stop(step + 1, patience)
        if stop or (step + 1) % checkpoint_every == 0 or step + 1 == steps:
            save(step + 1)
        try:
            yield step + 1
        except GeneratorExit:
            # several processes are not stopped at the same step, so they cannot gather what belongs to it
            if group.world_size == 1:
                save(step + 1)
            raise
        if stop:
            return

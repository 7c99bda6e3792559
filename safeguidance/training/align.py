"""Safe alignment without labels: trains a LoRA with which the plain model does what a redirector would guide it to.

The loss is in ``align_loss``; states come from sampling runs of the model with its LoRA (``rollouts``).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..conditioning import Conditioning, concatenate, expand_like, select_rows
from ..errors import InputError
from ..predictions import cfg
from ..prompts.files import Row
from ..redirector.interface import Proposal, Redirector, apply_delta, bucket_at
from .align_loss import AlignConfig, aligned_error, aligned_target, harm_weight
from .checkpoints import Checkpoint, History
from .distributed import SINGLE_PROCESS, ProcessGroup, all_gather, local_indices, shard
from .loop import OnStep, train
from .lora import LoRA
from .rollouts import REPLAY_SIZE, Batch, Rollouts, Task, load_state_dict, state_dict

__all__ = ["AlignConfig", "AlignTask", "HarmLabels", "align_model", "run_settings"]

HarmLabels = Callable[[Sequence[Row], Proposal], torch.Tensor]
"""Weights ``[B]``, 0..1, of rows; by default the redirector's own score."""


class AlignTask(Protocol):
    """What alignment needs: ``rollouts.Task`` without pictures; a row's counterpart and category are not read."""

    schedule: torch.Tensor

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """See ``rollouts.Task``."""
        ...

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """See ``rollouts.Task``."""
        ...

    def rows(self, step: int, count: int) -> list[Any]:
        """Rows of a step; must depend on the step only."""
        ...

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """See ``rollouts.Task``."""
        ...

    def noised(self, latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """See ``rollouts.Task``."""
        ...


class _WithoutPictures:
    """An ``AlignTask`` as a ``rollouts.Task`` without pictures."""

    def __init__(self, task: AlignTask) -> None:
        self.schedule, self.predict, self.encode, self.rows = task.schedule, task.predict, task.encode, task.rows
        self.noise, self.noised = task.noise, task.noised

    def pictures(self, step: int, rows: Sequence[Row]) -> torch.Tensor | None:
        return None


class AlignObjective:
    """The two-sided loss of a LoRA on kept sets of states, which rollouts refill (a ``loop.Objective``).

    Args:
        lora: attached to the denoiser that ``task.predict`` runs.
        task: prompts and model.
        redirector: scores the prompts and says what to remove.
        config: settings.
        labels: of the rows, in place of the redirector's score.
        group: the processes that share each batch.
    """

    def __init__(
        self,
        lora: LoRA,
        task: AlignTask,
        redirector: Redirector,
        config: AlignConfig,
        labels: HarmLabels | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.lora, self.redirector, self.config, self.group = lora, redirector, config, group
        self.task: Task[Any] = _WithoutPictures(task)
        self.labels = labels or self._score
        self.device = lora.down[0].device
        self.empty = self.task.encode([""])
        self.batches: deque[Batch] = deque(maxlen=REPLAY_SIZE)
        self.rollouts: Rollouts | None = None
        # a set of states may hold one kind only; the other kind's last value is shown again
        self.last_losses = {name: torch.zeros((), device=self.device) for name in ("redirect", "keep")}

    def _score(self, rows: Sequence[Row], proposal: Proposal) -> torch.Tensor:
        return harm_weight(proposal.gate, self.redirector.threshold, self.config.softness)

    def start(self, generator: torch.Generator) -> None:
        """Start the rollouts."""
        rows = self.task.rows(-1, self.config.batch)
        self.rollouts = Rollouts.start(self.task, rows, generator, self.device, self.group)

    def load_state_dict(self, state: Checkpoint, generator: torch.Generator) -> None:
        """Restore rollouts, kept states and the last losses."""
        self.rollouts, self.batches = load_state_dict(
            self.task, state.tensors, state.values, generator, self.device, self.group
        )
        if self.group.rank == 0:
            for name, value in state.values["last_losses"].items():
                self.last_losses[name].fill_(value)

    def state_dict(self, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Rollouts, kept states and last losses of all processes."""
        tensors, values = state_dict(self.rollouts, self.batches, generator, self.group)
        summed = self.group.all_reduce(torch.stack(list(self.last_losses.values())))
        return tensors, {**values, "last_losses": dict(zip(self.last_losses, summed.tolist(), strict=True))}

    @torch.no_grad()
    def collect(self, step: int, generator: torch.Generator) -> Batch:
        """States of the student's own sampling runs with their targets; the runs advance by one step.

        The models see the rows of this process; the redirector, which is small, reads all of them.
        """
        task, config, rollouts, group = self.task, self.config, self.rollouts, self.group
        assert rollouts is not None
        rows, x, sigma = list(rollouts.rows), rollouts.latents, rollouts.sigma()
        local, local_sigma = local_indices(len(rows), group), shard(sigma, group)
        prompt = task.encode([row.prompt for row in rows])
        base = expand_like(self.empty, prompt)
        proposal = self.redirector.propose(prompt, base)
        harm = self.labels(rows, proposal).to(x.device, torch.float32)
        redirected = select_rows(self._full_redirect(proposal, base, sigma), local)
        x_both, sigma_both = torch.cat([x, x]), torch.cat([local_sigma, local_sigma])
        texts = concatenate([select_rows(prompt, local), select_rows(base, local)])
        local_harm = torch.where(harm > 1e-3, harm, 0.0)[local]
        with self.lora.off():
            d_prompt, d_base = task.predict(x_both, sigma_both, texts).chunk(2)
            d_redirected = d_base.clone()
            if harmful := torch.nonzero(local_harm).flatten().tolist():
                d_redirected[harmful] = task.predict(x[harmful], local_sigma[harmful], select_rows(redirected, harmful))
        target, weight = aligned_target(d_prompt, d_base, d_redirected, local_harm, config)
        student_prompt, student_base = task.predict(x_both, sigma_both, texts).chunk(2)
        labelled = [Row(r.prompt, r.prompt, 0 if w >= 0.5 else -1) for r, w in zip(rows, harm.tolist(), strict=True)]
        # some states once more, with the empty prompt; they may belong to another process than the state they repeat
        empty = torch.randperm(len(rows), generator=generator)[: round(config.empty_share * len(rows))].tolist()
        used = [*labelled, *(Row("", "", -1) for _ in empty)]
        again = [empty[place - len(rows)] for place in local_indices(len(used), group) if place >= len(rows)]
        batch = Batch(
            used,
            torch.cat([x, all_gather(x, len(rows), group)[again]]),
            torch.cat([sigma, sigma[empty]]),
            concatenate([prompt, select_rows(base, empty)]),
            torch.cat([target, all_gather(d_base, len(rows), group)[again]]),
            torch.cat([weight, torch.ones_like(weight[:1]).expand(len(again), *weight.shape[1:])]),
        )
        rollouts.advance(cfg(student_prompt, student_base, config.scale), task.rows(step, len(rows)), generator)
        return batch

    def _full_redirect(self, proposal: Proposal, base: Conditioning, sigma: torch.Tensor) -> Conditioning:
        """The redirect of each row with an open gate, from the bucket that its noise level lies in."""
        steps = len(self.task.schedule) - 1
        bucket = [
            bucket_at(self.redirector.edges, int((self.task.schedule[:-1] > level).sum()) / steps)
            for level in sigma.cpu()
        ]
        rows = torch.arange(len(bucket))
        tokens = torch.stack(list(proposal.delta))[bucket, rows]
        pooled = None
        if proposal.pooled_delta is not None:
            pooled = torch.stack(list(proposal.pooled_delta))[bucket, rows]
        gate = torch.ones(len(bucket), device=base.tokens.device)
        return apply_delta(base, Conditioning(tokens, pooled), gate)

    def compute_loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss, and its mean over harmful and over harmless states."""
        if step % self.config.reuse == 0 or not self.batches:
            self.batches.append(self.collect(step, generator))
        batch = self.batches[int(torch.randint(len(self.batches), (), generator=generator))]
        local, sigma = local_indices(len(batch.rows), self.group), shard(batch.sigma, self.group)
        student = self.task.predict(batch.x, sigma, select_rows(batch.prompt, local))
        error = aligned_error(student, batch.target, batch.weight, sigma)
        harmful = torch.tensor([row.category >= 0 for row in batch.rows], device=error.device)
        for name, rows in (("redirect", harmful), ("keep", ~harmful)):
            if bool(rows.any()):
                self.last_losses[name] = error[rows[local]].sum().detach() / int(rows.sum())
        return error.sum() / len(batch.rows), dict(self.last_losses)


def run_settings(
    lora: LoRA,
    redirector: Redirector,
    config: AlignConfig,
    labels: HarmLabels | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a resumed run must agree with.

    Args:
        lora: what is trained.
        redirector: scores the prompts and says what to remove.
        config: settings.
        labels: in place of the redirector's score.
        extra: more of it, such as the digest of the prompts.
    """
    return {
        **asdict(config),
        "rank": lora.rank,
        "alpha": lora.alpha,
        "layers": len(lora.names),
        "redirector": redirector.title,
        "redirector_weights": _digest(getattr(redirector, "network", None)),
        "threshold": redirector.threshold,
        "labels": "redirector" if labels is None else "other",
        **(extra or {}),
    }


def _digest(network: nn.Module | None) -> str:
    """SHA-256 of a network's weights, "" for a redirector that has none."""
    found = hashlib.sha256()
    for name, value in (network.state_dict() if network else {}).items():
        found.update(name.encode())
        found.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest() if network else ""


def align_model(
    lora: LoRA,
    network: nn.Module,
    task: AlignTask,
    redirector: Redirector,
    config: AlignConfig,
    checkpoint_dir: Path | None = None,
    on_step: OnStep | None = None,
    checkpoint_every: int = 100,
    progress_bar: bool = True,
    labels: HarmLabels | None = None,
    extra_settings: Mapping[str, Any] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    history: History | None = None,
) -> Iterator[int]:
    """Train a LoRA in place (see ``loop.train`` for checkpoints, resuming, stopping and errors).

    Args:
        lora: adapters for layers of ``network``, on its device.
        network: the frozen denoiser that ``task.predict`` runs; it is as before when the iterator ends or is closed.
        task: prompts and model.
        redirector: scores the prompts and says what to remove.
        config: settings.
        checkpoint_dir: an existing checkpoint in it is resumed. None keeps none.
        on_step: called after each step.
        checkpoint_every: steps between checkpoints, 1 or more.
        progress_bar: draw one.
        labels: of the rows, in place of the redirector's score, such as true ones.
        extra_settings: what else a resumed run must agree with (see ``run_settings``).
        group: the processes that share each batch; each calls this with the same arguments, its own device aside.
        history: a list that the losses of all steps are appended to, also of those before a resume.

    Raises:
        FloatingPointError: if a loss or a gradient is not finite.
        InputError: if there are more processes than sampling runs, or ``checkpoint_dir`` holds a checkpoint of other
            settings or one that cannot be read.
        OSError: if a checkpoint cannot be written.
    """
    if group.world_size > config.batch:
        raise InputError(
            "batch",
            f"{group.world_size} processes cannot share {config.batch} sampling runs",
            "a run or more for each process",
            "take a larger batch or fewer processes",
        )
    settings = run_settings(lora, redirector, config, labels, extra_settings)
    with lora.attached(network):
        objective = AlignObjective(lora, task, redirector, config, labels, group)
        yield from train(
            "LoRA", lora, objective, settings, checkpoint_dir, on_step, checkpoint_every, progress_bar, group, history
        )

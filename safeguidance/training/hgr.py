"""Training of the HGR. It knows a denoiser only as ``predict(x, sigma, cond)``; states come from ``rollouts``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from ..conditioning import expand_like, select_rows
from ..errors import InputError
from ..predictions import per_sample, sample_mean
from ..prompts.files import Row
from ..redirector.hgr import HGR
from ..redirector.interface import apply_delta
from .checkpoints import Checkpoint, History
from .distributed import SINGLE_PROCESS, ProcessGroup, local_indices, shard
from .hgr_config import HGRTrainConfig
from .loop import OnStep, train
from .rollouts import (
    REPLAY_SIZE,
    Batch,
    Rollouts,
    Task,
    collect,
    load_state_dict,
    predict_delta,
    state_dict,
    stratified_rows,
)

__all__ = ["HGRTrainConfig", "Row", "Task", "run_settings", "train_hgr"]


def run_settings(network: HGR, config: Any, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a resumed run must agree with.

    Args:
        network: what is trained.
        config: settings.
        extra: more of it, such as the digest of the data.
    """
    return {**asdict(config), **asdict(network.config), **(extra or {})}


def train_hgr(
    network: HGR,
    task: Task[Any],
    config: HGRTrainConfig,
    checkpoint_dir: Path | None = None,
    on_step: OnStep | None = None,
    checkpoint_every: int = 100,
    progress_bar: bool = True,
    group: ProcessGroup = SINGLE_PROCESS,
    extra_settings: Mapping[str, Any] | None = None,
    history: History | None = None,
) -> Iterator[int]:
    """Train an HGR in place; yields the step count after each step (see ``loop.train`` for stopping and resuming).

    Args:
        network: trained in place, on the device it is on.
        task: data and model.
        config: settings.
        checkpoint_dir: an existing checkpoint in it is resumed. None keeps none.
        on_step: called after each step.
        checkpoint_every: steps between checkpoints, 1 or more.
        progress_bar: draw one.
        group: the processes that share each batch; each calls this with the same arguments, its own device aside.
        extra_settings: what else a resumed run must agree with (see ``run_settings``).
        history: a list that the losses of all steps are appended to, also of those before a resume.

    Raises:
        FloatingPointError: if a loss or a gradient is not finite; the network holds the weights of the step before,
            and the last checkpoint stays as it is.
        InputError: if there are more processes than rows in a batch, or ``checkpoint_dir`` holds a checkpoint of other
            settings or one that cannot be read.
        OSError: if a checkpoint cannot be written.
    """
    if group.world_size > min(config.batch, config.text_batch):
        raise InputError(
            "batch",
            f"{group.world_size} processes cannot share {config.batch} states and {config.text_batch} texts",
            "a row or more for each process",
            "take a larger batch and text_batch, or fewer processes",
        )
    torch.manual_seed(config.seed)
    settings = run_settings(network, config, extra_settings)
    objective = HGRObjective(network, task, config, group)
    yield from train(
        "HGR", network, objective, settings, checkpoint_dir, on_step, checkpoint_every, progress_bar, group, history
    )


class HGRObjective:
    """Score, gate and clean loss of an HGR on kept sets of states, which rollouts refill (a ``loop.Objective``).

    Args:
        network: the HGR.
        task: data and model.
        config: settings.
        group: the processes that share each batch.
    """

    def __init__(
        self, network: HGR, task: Task[Any], config: HGRTrainConfig, group: ProcessGroup = SINGLE_PROCESS
    ) -> None:
        self.network, self.task, self.config, self.group = network, task, config, group
        self.empty = task.encode([""])
        self.batches: deque[Batch] = deque(maxlen=REPLAY_SIZE)
        self.rollouts: Rollouts | None = None

    def start(self, generator: torch.Generator) -> None:
        """Start the rollouts, if the settings ask for any."""
        config, task = self.config, self.task
        if count := round(config.rollout_share * config.batch):
            rows = stratified_rows(task.rows(-1, 4 * config.batch), config, count)
            self.rollouts = Rollouts.start(task, rows, generator, self.network.marks.device, self.group)

    def load_state_dict(self, state: Checkpoint, generator: torch.Generator) -> None:
        """Restore rollouts and kept states."""
        device = self.network.marks.device
        self.rollouts, self.batches = load_state_dict(
            self.task, state.tensors, state.values, generator, device, self.group
        )

    def state_dict(self, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Rollouts and kept states of all processes."""
        return state_dict(self.rollouts, self.batches, generator, self.group)

    def compute_loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of the three losses, and each of them."""
        config = self.config
        if step % config.reuse == 0 or not self.batches:
            self.batches.append(
                collect(self.network, self.task, config, self.rollouts, self.empty, step, generator, self.group)
            )
        batch = self.batches[int(torch.randint(len(self.batches), (), generator=generator))]
        losses = self._losses(batch, step, generator)
        return losses["score"] + config.gate_weight * losses["gate"] + config.clean_weight * losses["clean"], losses

    def _losses(self, batch: Batch, step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The three losses; each of several processes gives its part of the sums that make them."""
        network, task, config, group = self.network, self.task, self.config, self.group
        text_rows = task.rows(-2 - step, config.text_batch)
        texts = task.encode([r.prompt for r in text_rows])
        total = len(batch.rows)
        local, local_texts = local_indices(total, group), local_indices(len(text_rows), group)
        count = len(local)
        # of all rows, then this process's: the noise must not depend on how many processes there are
        tokens = jittered(torch.cat([batch.prompt.tokens, texts.tokens]), config.jitter, generator)
        tokens = tokens[[*local, *(total + place for place in local_texts)]]
        rows = [batch.rows[i] for i in local]
        logits = network.logits(tokens)
        judged = gate_loss(logits, [*rows, *(text_rows[i] for i in local_texts)])
        gate = learning_gate(logits[:count], rows)
        harmful = torch.tensor([float(r.category >= 0) for r in rows]).to(gate)
        sigma = shard(batch.sigma, group)
        base = expand_like(self.empty, select_rows(batch.prompt, local))
        delta = predict_delta(network, task.schedule, tokens[:count], sigma)
        # harmful rows train the delta as it is used with an open gate; clean rows train what still leaks through
        redirected = apply_delta(base, delta, torch.where(harmful > 0, torch.ones_like(gate), gate))
        denoised = task.predict(batch.x, sigma, redirected)
        score = sample_mean(batch.weight * ((denoised - batch.target) / per_sample(sigma, batch.x)).square())
        return {
            "score": score.mean() * (count / total),
            "gate": judged * (len(tokens) / (total + len(text_rows))),
            "clean": self._clean_loss(tokens[count:], logits[count:], text_rows, batch.sigma, generator),
        }

    def _clean_loss(
        self,
        tokens: torch.Tensor,
        logits: torch.Tensor,
        rows: Sequence[Row],
        sigma: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Mean of ``|gate * delta|^2`` over clean rows, at noise levels drawn from those of the batch."""
        group = self.group
        clean = [place for place, row in enumerate(rows) if row.category < 0]
        if not clean:
            return tokens.new_zeros(())
        level = sigma[torch.randint(len(sigma), (len(clean),), generator=generator)]
        local = [number for number, place in enumerate(clean) if place % group.world_size == group.rank]
        if not local:
            return tokens.new_zeros(())
        level, places = level[local], [clean[number] // group.world_size for number in local]
        gate = learning_gate(logits[places], [rows[clean[number]] for number in local])
        delta = predict_delta(self.network, self.task.schedule, tokens[places], level)
        leaked = sample_mean((per_sample(gate, tokens) * delta.tokens).square()).mean()
        if delta.pooled is not None:
            leaked = leaked + sample_mean((gate[:, None] * delta.pooled).square()).mean()
        return leaked * (len(local) / len(clean))


def gate_loss(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Cross-entropy of gate logits ``[B, K]`` with the rows' categories; what a row must not teach is left out."""
    targets, weight = torch.zeros_like(logits), torch.ones_like(logits)
    for index, row in enumerate(rows):
        if row.category >= 0:
            targets[index, [row.category, *row.also]] = 1
        weight[index, list(row.unjudged)] = 0
    return functional.binary_cross_entropy_with_logits(logits, targets, weight)


def learning_gate(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """The gate ``[B]`` of logits ``[B, K]``; rows that must teach a category nothing pass no gradient to it."""
    gate = logits.sigmoid().amax(dim=1)
    apart = torch.tensor([bool(row.unjudged) for row in rows], device=gate.device)
    return torch.where(apart, gate.detach(), gate)


def jittered(tokens: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """Token states ``[B, L, D]`` with noise of ``amount`` times their spread; 0 gives them as they are."""
    if amount == 0:
        return tokens
    spread = tokens.std(dim=(0, 1), keepdim=True)
    return tokens + amount * spread * torch.randn(tokens.shape, generator=generator).to(tokens)

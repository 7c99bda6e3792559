"""States that the HGR is trained on: noised pictures and rollouts, with their targets.

A rollout is a sampling run under CFG with the redirector as it is now. It advances one step for each new set of states
and reuses the predictions that their targets need anyway. Everything here can be stored in a checkpoint and restored,
so that a run that was killed ends with the very weights it would have had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from einops import reduce, repeat

from ..conditioning import Conditioning, concatenate, expand_like, first_rows, select_rows
from ..predictions import cfg, per_sample
from ..prompts.files import Row
from ..redirector.hgr import HGR
from ..redirector.interface import apply_delta
from .distributed import SINGLE_PROCESS, ProcessGroup, all_gather, local_indices, shard
from .hgr_config import HGRTrainConfig
from .target import target

REPLAY_SIZE = 32
"""Sets of states that are kept for reuse."""


RowT = TypeVar("RowT", bound=Row)


class Task(Protocol[RowT]):
    """What is trained on. ``rows`` and ``pictures`` must depend on the step only, so that runs can resume.

    Tensors come back on the device of the network that is trained, except noise and schedule, which are on the CPU.
    """

    schedule: torch.Tensor
    """Sigmas of a sampling run, descending, the last one 0."""

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """Denoised prediction for x ``[B, C, *spatial]``, sigma ``[B]``, token states ``[B, L, D]``."""
        ...

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Token states ``[B, L, D]``, always of the same length L, and the pooled vector where there is one."""
        ...

    def rows(self, step: int, count: int) -> list[RowT]:
        """Training rows of a step."""
        ...

    def pictures(self, step: int, rows: Sequence[RowT]) -> torch.Tensor | None:
        """Latents ``[B, C, *spatial]`` that fit the rows (at least one), or None where there are none."""
        ...

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Unit noise of latent shape ``[count, C, *spatial]``."""
        ...

    def noised(self, latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """A latent brought to noise level ``sigma [B]`` the way the model was trained."""
        ...


def predict_delta(network: HGR, schedule: torch.Tensor, tokens: torch.Tensor, sigma: torch.Tensor) -> Conditioning:
    """The HGR's delta for each row, from the bucket that its noise level lies in.

    Args:
        network: the HGR.
        schedule: sigmas of a sampling run, descending, the last one 0.
        tokens: token states ``[B, L, D]``.
        sigma: noise levels ``[B]``.
    """
    edges = network.config.edges
    if len(edges) == 1:
        return Conditioning(*network.change(tokens))
    steps = len(schedule) - 1
    progress = torch.stack([(schedule[:-1] > s).sum() / steps for s in sigma.cpu()])
    bucket = torch.stack([progress >= edge for edge in edges[1:]]).sum(dim=0)
    per_bucket = [network.change(tokens, index) for index in range(len(edges))]
    rows = torch.arange(len(tokens))
    pooled = [p for _, p in per_bucket if p is not None]
    delta = torch.stack([tokens_delta for tokens_delta, _ in per_bucket])[bucket, rows]
    return Conditioning(delta, torch.stack(pooled)[bucket, rows] if pooled else None)


# ---- rollouts ------------------------------------------------------------------------------------------------------


class Rollouts:
    """A pool of sampling runs, each at its own step, that training advances one step at a time.

    Args:
        task: gives noise, rows and the schedule.
        rows: one per run, those of all processes.
        latents: of this process's runs, ``[count, C, *spatial]``.
        step_index: place of each run in the schedule, one per row.
        group: the processes that share the runs.
    """

    def __init__(
        self,
        task: Task[Any],
        rows: Sequence[Row],
        latents: torch.Tensor,
        step_index: torch.Tensor,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        self.task, self.rows, self.latents, self.step_index, self.group = task, list(rows), latents, step_index, group

    @classmethod
    def start(
        cls,
        task: Task[Any],
        rows: Sequence[Any],
        generator: torch.Generator,
        device: torch.device,
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> Rollouts:
        """Start a run for each row, each somewhere else, so that all noise levels are seen from the first step on."""
        count, last = len(rows), len(task.schedule) - 1
        step_index = torch.arange(count) * last // max(count, 1)
        pictures = task.pictures(-1, rows)
        noise = task.noise(count, generator).to(device)
        clean = torch.zeros_like(noise) if pictures is None else pictures
        latents = task.noised(clean, noise, task.schedule[step_index].to(device))
        return cls(task, rows, shard(latents, group), step_index, group)

    def sigma(self) -> torch.Tensor:
        """Noise level of each run, those of all processes."""
        return self.task.schedule[self.step_index].to(self.latents.device)

    def advance(self, denoised: torch.Tensor, fresh: Sequence[Row], generator: torch.Generator) -> None:
        """One Euler step with a guided prediction; finished runs start again with rows from ``fresh``.

        Args:
            denoised: like ``latents``, this process's runs.
            fresh: rows that new runs are drawn from, with the share of clean ones that runs shall have.
            generator: of the draw and of the noise they start from.
        """
        device = self.latents.device
        sigma, sigma_next = self.sigma(), self.task.schedule[self.step_index + 1].to(device)
        slope = (self.latents - denoised) / per_sample(shard(sigma, self.group), self.latents)
        self.latents = self.latents + per_sample(shard(sigma_next - sigma, self.group), self.latents) * slope
        self.step_index = self.step_index + 1
        done = torch.nonzero(sigma_next <= 0).flatten().tolist()
        if done:
            noise = self.task.noise(len(done), generator).to(device)
            sigma_max = repeat(self.task.schedule[0].to(device), "-> b", b=len(done))
            started = self.task.noised(torch.zeros_like(noise), noise, sigma_max)
            for number, place in enumerate(done):
                if place % self.group.world_size == self.group.rank:
                    self.latents[place // self.group.world_size] = started[number]
            self.step_index[done] = 0
            # drawn, not taken in order: the clean rows have fixed places in the list
            drawn = torch.randperm(len(fresh), generator=generator).tolist()
            for place, number in zip(done, drawn, strict=False):
                self.rows[place] = fresh[number]


# ---- sets of states ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """States with what the loss needs to know about them.

    Args:
        rows: one per state, those of all processes.
        x: latents ``[B, C, *spatial]`` of this process's rows.
        sigma: noise levels, one per row.
        prompt: encoded prompts, one per row.
        target: what the prediction shall be, like ``x``.
        weight: weight of its error, ``[B, 1, *spatial]``, like ``x``.
    """

    rows: list[Row]
    x: torch.Tensor
    sigma: torch.Tensor
    prompt: Conditioning
    target: torch.Tensor
    weight: torch.Tensor


def stratified_rows(rows: Sequence[Any], config: HGRTrainConfig, count: int) -> list[Any]:
    """The first ``count`` rows with the wanted share of clean ones, spread evenly; fewer where there are not enough."""
    harmful, clean = [r for r in rows if r.category >= 0], [r for r in rows if r.category < 0]
    period = round(1 / config.clean_share) if config.clean_share > 0 else len(rows) + 1
    chosen = []
    for number in range(1, count + 1):
        source = (clean if number % period == 0 else harmful) or harmful or clean
        if source:
            chosen.append(source.pop(0))
    return chosen


@torch.no_grad()
def collect(
    network: HGR,
    task: Task[Any],
    config: HGRTrainConfig,
    rollouts: Rollouts | None,
    empty: Conditioning,
    step: int,
    generator: torch.Generator,
    group: ProcessGroup = SINGLE_PROCESS,
) -> Batch:
    """States with their targets; rollouts advance by one step. The model sees the rows of this process."""
    spare = stratified_rows(task.rows(step, 4 * config.batch), config, 2 * config.batch)
    rows: list[Row] = list(rollouts.rows) if rollouts else []
    running = len(rows)
    fresh = spare[: config.batch - running]
    x, sigma = _noised_pictures(task, fresh, step, generator, empty.tokens.device)
    rows += fresh
    local = local_indices(len(rows), group)
    x = x[[place - running for place in local if place >= running]]
    if rollouts:
        x, sigma = torch.cat([rollouts.latents, x]), torch.cat([rollouts.sigma(), sigma])
    local_sigma = shard(sigma, group)
    encoded = task.encode([r.prompt for r in rows])
    prompt, safe = select_rows(encoded, local), task.encode([rows[i].safe for i in local])
    base = expand_like(empty, prompt)
    d_prompt, d_safe, d_base = task.predict(
        torch.cat([x] * 3),
        torch.cat([local_sigma] * 3),
        concatenate([prompt, safe, base]),
    ).chunk(3)
    if rollouts:
        d_redirected = d_base[:0]
        if count := len(local_indices(running, group)):
            harmful = torch.tensor([float(rows[i].category >= 0) for i in local[:count]])
            delta = predict_delta(network, task.schedule, prompt.tokens[:count], local_sigma[:count])
            redirected = apply_delta(first_rows(base, count), delta, harmful)
            d_redirected = task.predict(x[:count], local_sigma[:count], redirected)
        rollouts.advance(cfg(d_prompt[:count], d_redirected, config.rollout_scale), spare, generator)
    weight = 1 + config.focus * _difference(d_prompt, d_safe)
    return Batch(rows, x, sigma, encoded, target(d_base, d_prompt, d_safe, config.kappa), weight)


def _difference(prompt: torch.Tensor, safe: torch.Tensor) -> torch.Tensor:
    """Where two predictions differ, ``[B, 1, *spatial]``, 1 at each sample's strongest place; 0 where they agree."""
    apart = (prompt - safe).abs().mean(dim=1, keepdim=True)
    return apart / per_sample(reduce(apart, "b ... -> b", "max"), apart).clamp(min=1e-3)


def _noised_pictures(
    task: Task[Any], rows: Sequence[Row], step: int, generator: torch.Generator, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    place = torch.randint(len(task.schedule) - 1, (len(rows),), generator=generator)
    sigma = task.schedule[place].to(device)
    noise = task.noise(len(rows), generator).to(device)
    pictures = task.pictures(step, rows) if rows else None
    return task.noised(torch.zeros_like(noise) if pictures is None else pictures, noise, sigma), sigma


# ---- storing and restoring -----------------------------------------------------------------------------------------


def _as_json(rows: Iterable[Row]) -> list[list[Any]]:
    return [[row.prompt, row.safe, row.category, list(row.also), list(row.unjudged)] for row in rows]


def _from_json(rows: Iterable[Sequence[Any]]) -> list[Row]:
    return [
        Row(prompt, safe, category, also=tuple(also), unjudged=tuple(more[0]) if more else ())
        for prompt, safe, category, also, *more in rows
    ]


_SHARDED = ("x", "target", "weight")  # what of a set of states each process has its own rows of


def state_dict(
    rollouts: Rollouts | None,
    batches: Iterable[Batch],
    generator: torch.Generator,
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Everything a resumed run needs beside weights: tensors of all processes, and rows as JSON."""
    tensors = {"generator": generator.get_state()}
    values: dict[str, Any] = {"rollouts": [], "batches": []}
    if rollouts:
        latents = all_gather(rollouts.latents, len(rollouts.rows), group)
        tensors.update({"rollouts/latents": latents, "rollouts/step_index": rollouts.step_index})
        values["rollouts"] = _as_json(rollouts.rows)
    for number, batch in enumerate(batches):
        parts = {name: all_gather(getattr(batch, name), len(batch.rows), group) for name in _SHARDED}
        parts.update({"sigma": batch.sigma, "tokens": batch.prompt.tokens})
        if batch.prompt.pooled is not None:
            parts["pooled"] = batch.prompt.pooled
        tensors.update({f"batches/{number}/{name}": value for name, value in parts.items()})
        values["batches"].append(_as_json(batch.rows))
    return tensors, values


def load_state_dict(
    task: Task[Any],
    tensors: Mapping[str, torch.Tensor],
    values: Mapping[str, Any],
    generator: torch.Generator,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[Rollouts | None, deque[Batch]]:
    """Rollouts and kept batches as they were, shared among any number of processes; also brings the generator to
    where it was.
    """
    generator.set_state(tensors["generator"])
    rollouts = None
    if values["rollouts"]:
        rows = _from_json(values["rollouts"])
        latents = shard(tensors["rollouts/latents"].to(device), group)
        rollouts = Rollouts(task, rows, latents, tensors["rollouts/step_index"], group)
    batches: deque[Batch] = deque(maxlen=REPLAY_SIZE)
    for number, saved in enumerate(values["batches"]):
        part = {
            name: tensors[f"batches/{number}/{name}"].to(device)
            for name in ("x", "sigma", "tokens", "pooled", "target", "weight")
            if f"batches/{number}/{name}" in tensors
        }
        prompt = Conditioning(part["tokens"], part.get("pooled"))
        part.update({name: shard(part[name], group) for name in _SHARDED})
        batches.append(Batch(_from_json(saved), part["x"], part["sigma"], prompt, part["target"], part["weight"]))
    return rollouts, batches

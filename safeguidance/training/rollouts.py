"""States that the HGR is trained on: noised pictures and rollouts, with their targets.

A rollout is a sampling run under CFG with the redirector as it is now. It moves one step for each new set of states and
re-uses the predictions that their targets need anyway. Everything here can be stored in a checkpoint and restored, so
that a run that was killed goes on to the very weights it would have had.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from ..conditioning import Conditioning, concatenate, expand_like, first_rows, select_rows
from ..predictions import cfg, per_sample
from ..prompts.files import Row
from ..redirector.hgr import HGR
from ..redirector.interface import apply_delta
from .distributed import ALONE, Team, own, share, whole
from .hgr_config import HGRTrainConfig
from .target import target

MEMORY = 32
"""Sets of states that are kept for reuse."""


RowT = TypeVar("RowT", bound=Row)


class Task(Protocol[RowT]):
    """What the loop is trained on. ``rows`` and ``pictures`` must depend on the step only, so that runs can resume.

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


def change(network: HGR, schedule: torch.Tensor, tokens: torch.Tensor, sigma: torch.Tensor) -> Conditioning:
    """The HGR's proposal for each row, from the bucket that its noise level lies in."""
    edges = network.config.edges
    if len(edges) == 1:
        return Conditioning(*network.change(tokens))
    steps = len(schedule) - 1
    progress = torch.stack([(schedule[:-1] > s).sum() / steps for s in sigma.cpu()])
    bucket = sum((progress >= edge).long() for edge in edges[1:])
    assert isinstance(bucket, torch.Tensor)
    changes = [network.change(tokens, index) for index in range(len(edges))]
    rows = torch.arange(len(tokens))
    pooled = [p for _, p in changes if p is not None]
    tokens = torch.stack([delta for delta, _ in changes])[bucket, rows]
    return Conditioning(tokens, torch.stack(pooled)[bucket, rows] if pooled else None)


# ---- rollouts ------------------------------------------------------------------------------------------------------


class Rollouts:
    """A pool of sampling runs, each at its own step, that training moves forward one step at a time.

    Args:
        task: gives noise, rows and the schedule.
        rows: one per run, those of all processes.
        x: latents of this process's runs, ``[count, C, *spatial]``.
        index: place of each run in the schedule, one per row.
        team: the processes that share the runs.
    """

    def __init__(
        self, task: Task[Any], rows: Sequence[Row], x: torch.Tensor, index: torch.Tensor, team: Team = ALONE
    ) -> None:
        self.task, self.rows, self.x, self.index, self.team = task, list(rows), x, index, team

    @classmethod
    def begin(
        cls,
        task: Task[Any],
        rows: Sequence[Any],
        generator: torch.Generator,
        device: torch.device,
        team: Team = ALONE,
    ) -> Rollouts:
        """Start a run for each row, each somewhere else, so that all noise levels are seen from the first step on."""
        count, last = len(rows), len(task.schedule) - 1
        index = torch.arange(count) * last // max(count, 1)
        pictures = task.pictures(-1, rows)
        noise = task.noise(count, generator).to(device)
        still = torch.zeros_like(noise) if pictures is None else pictures
        x = task.noised(still, noise, task.schedule[index].to(device))
        return cls(task, rows, share(x, team), index, team)

    def sigma(self) -> torch.Tensor:
        """Noise level of each run, those of all processes."""
        return self.task.schedule[self.index].to(self.x.device)

    def advance(self, denoised: torch.Tensor, fresh: Sequence[Row], generator: torch.Generator) -> None:
        """One Euler step with a guided prediction; finished runs start again with rows from ``fresh``.

        Args:
            denoised: like ``x``, this process's runs.
            fresh: rows that new runs are drawn from, with the share of clean ones that runs shall have.
            generator: of the draw and of the noise they start from.
        """
        now, then = self.sigma(), self.task.schedule[self.index + 1].to(self.x.device)
        slope = (self.x - denoised) / per_sample(share(now, self.team), self.x)
        self.x = self.x + per_sample(share(then - now, self.team), self.x) * slope
        self.index = self.index + 1
        done = torch.nonzero(then <= 0).flatten().tolist()
        if done:
            start = self.task.schedule[:1].expand(len(done)).to(self.x.device)
            noise = self.task.noise(len(done), generator).to(self.x.device)
            begun = self.task.noised(torch.zeros_like(noise), noise, start)
            for number, place in enumerate(done):
                if place % self.team.count == self.team.rank:
                    self.x[place // self.team.count] = begun[number]
            self.index[done] = 0
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
        wanted: target of the prediction, like ``x``.
        weight: weight of its error, ``[B, 1, *spatial]``, like ``x``.
    """

    rows: list[Row]
    x: torch.Tensor
    sigma: torch.Tensor
    prompt: Conditioning
    wanted: torch.Tensor
    weight: torch.Tensor


def pick(rows: Sequence[Any], config: HGRTrainConfig, count: int) -> list[Any]:
    """The first ``count`` rows with the wanted share of clean ones, spread evenly; fewer where there are not enough."""
    kinds = [[r for r in rows if r.category >= 0], [r for r in rows if r.category < 0]]
    period = round(1 / config.clean_share) if config.clean_share > 0 else len(rows) + 1
    picked = []
    for index in range(count):
        kind = kinds[int((index + 1) % period == 0)] or kinds[0] or kinds[1]
        if kind:
            picked.append(kind.pop(0))
    return picked


@torch.no_grad()
def collect(
    network: HGR,
    task: Task[Any],
    config: HGRTrainConfig,
    rollouts: Rollouts | None,
    empty: Conditioning,
    step: int,
    generator: torch.Generator,
    team: Team = ALONE,
) -> Batch:
    """States with their targets; rollouts move on by one step. The model sees the rows of this process."""
    spare = pick(task.rows(step, 4 * config.batch), config, 2 * config.batch)
    used: list[Row] = list(rollouts.rows) if rollouts else []
    kept = len(used)
    fresh = spare[: config.batch - kept]
    x, sigma = _noised_pictures(task, fresh, step, generator, empty.tokens.device)
    used += fresh
    mine = own(len(used), team)
    x = x[[place - kept for place in mine if place >= kept]]
    if rollouts:
        x, sigma = torch.cat([rollouts.x, x]), torch.cat([rollouts.sigma(), sigma])
    level = share(sigma, team)
    prompt = task.encode([r.prompt for r in used])
    read, safe = select_rows(prompt, mine), task.encode([used[i].safe for i in mine])
    base = expand_like(empty, read)
    d_prompt, d_safe, d_base = task.predict(
        torch.cat([x] * 3), torch.cat([level] * 3), concatenate([read, safe, base])
    ).chunk(3)
    if rollouts:
        d_moved = d_base[:0]
        if running := len(own(kept, team)):
            harmful = torch.tensor([float(used[i].category >= 0) for i in mine[:running]])
            delta = change(network, task.schedule, read.tokens[:running], level[:running])
            d_moved = task.predict(x[:running], level[:running], apply_delta(first_rows(base, running), delta, harmful))
        rollouts.advance(cfg(d_prompt[:running], d_moved, config.rollout_scale), spare, generator)
    weight = 1 + config.focus * _difference(d_prompt, d_safe)
    return Batch(used, x, sigma, prompt, target(d_base, d_prompt, d_safe, config.kappa), weight)


def _difference(prompt: torch.Tensor, safe: torch.Tensor) -> torch.Tensor:
    """Where two predictions differ, ``[B, 1, *spatial]``, 1 at each sample's strongest place; 0 where they agree."""
    apart = (prompt - safe).abs().mean(dim=1, keepdim=True)
    return apart / apart.amax(dim=tuple(range(1, apart.ndim)), keepdim=True).clamp(min=1e-3)


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
    return [[row.prompt, row.safe, row.category] for row in rows]


_SHARED = ("x", "wanted", "weight")  # what of a set of states each process has its own rows of


def pack(
    rollouts: Rollouts | None, batches: Iterable[Batch], generator: torch.Generator, team: Team = ALONE
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Everything a resumed run needs beside weights: tensors of all processes, and rows as JSON."""
    tensors = {"generator": generator.get_state()}
    notes: dict[str, Any] = {"rollouts": [], "batches": []}
    if rollouts:
        x = whole(rollouts.x, len(rollouts.rows), team)
        tensors.update({"rollouts/x": x, "rollouts/index": rollouts.index})
        notes["rollouts"] = _as_json(rollouts.rows)
    for number, batch in enumerate(batches):
        parts = {name: whole(getattr(batch, name), len(batch.rows), team) for name in _SHARED}
        parts.update({"sigma": batch.sigma, "tokens": batch.prompt.tokens})
        if batch.prompt.pooled is not None:
            parts["pooled"] = batch.prompt.pooled
        tensors.update({f"batches/{number}/{name}": value for name, value in parts.items()})
        notes["batches"].append(_as_json(batch.rows))
    return tensors, notes


def unpack(
    task: Task[Any],
    tensors: Mapping[str, torch.Tensor],
    notes: Mapping[str, Any],
    generator: torch.Generator,
    device: torch.device,
    team: Team = ALONE,
) -> tuple[Rollouts | None, deque[Batch]]:
    """Rollouts and kept batches as they were, shared among any number of processes; also brings the generator to
    where it was.

    Raises:
        ValueError: if the checkpoint holds no states, as those of earlier versions.
    """
    if "generator" not in tensors:
        raise ValueError(
            "the checkpoint holds no states of the run, it comes from an earlier version; delete it or use another "
            "folder"
        )
    generator.set_state(tensors["generator"])
    rollouts = None
    if notes["rollouts"]:
        rows = [Row(*row) for row in notes["rollouts"]]
        x = share(tensors["rollouts/x"].to(device), team)
        rollouts = Rollouts(task, rows, x, tensors["rollouts/index"], team)
    batches: deque[Batch] = deque(maxlen=MEMORY)
    for number, saved in enumerate(notes["batches"]):
        part = {
            name: tensors[f"batches/{number}/{name}"].to(device)
            for name in ("x", "sigma", "tokens", "pooled", "wanted", "weight")
            if f"batches/{number}/{name}" in tensors
        }
        prompt = Conditioning(part["tokens"], part.get("pooled"))
        part.update({name: share(part[name], team) for name in _SHARED})
        batches.append(
            Batch([Row(*row) for row in saved], part["x"], part["sigma"], prompt, part["wanted"], part["weight"])
        )
    return rollouts, batches

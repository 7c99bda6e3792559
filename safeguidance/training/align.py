"""Safe alignment without labels: a LoRA that makes the plain model do what a redirector would have guided it to.

SafeCFG (arXiv 2412.16039) says that its HGR can tell harmful from harmless and fine-tunes a model with that alone; its
formula is not public. Ours is our own derivation. For an unlabelled prompt ``c``, a frozen model ``D`` and a student
``D'`` (the model with the LoRA), both at the same state:

    w(c) = sigmoid((logit gate(c) - logit threshold) / softness)              how harmful the redirector finds c
    a    = D(c) - rho (D(h) - D(empty))        rho = strength (cfg - 1) / cfg     what is wanted of a harmful prompt
    loss = w |D'(c) - a|^2 + (1 - w) |D'(c) - D(c)|^2      and |D'(empty) - D(empty)|^2 on some states

``h`` is the redirect of ``c`` with an open gate. With this ``rho``, CFG of the student at ``cfg`` gives what SafeCFG
gives on the frozen model: ``D(empty) + cfg (a - D(empty)) = D(h) + cfg (D(c) - D(h))``. For ``cfg`` the scale that the
redirector was trained at, ``rho = 1 / kappa``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..conditioning import Conditioning, concatenate, expand_like, select_rows
from ..guidance.safecfg import kappa
from ..predictions import cfg, per_sample, sample_mean, wide
from ..prompts.files import Row
from ..redirector.interface import Proposal, Redirector, apply_delta, bucket_at
from .checkpoints import Restored
from .distributed import ALONE, Team, own, share, whole
from .loop import descend
from .lora import LoRA
from .rollouts import MEMORY, Batch, Rollouts, Task, pack, unpack


@dataclass(frozen=True)
class AlignConfig:
    """Settings of an alignment run (the defaults are those of the shipped testbed LoRA).

    Args:
        steps: training steps.
        batch: sampling runs whose states are trained on, the rows of a step.
        rate: peak learning rate (AdamW, cosine).
        scale: cfg scale at which the student shall give what SafeCFG gives; also that of the sampling runs. Above 1.
        strength: multiplies the redirect, 0 or more; 1 is SafeCFG's own.
        softness: how softly the gate is read, in logits, above 0. Small: harmful or harmless. Large: in between.
        focus: extra weight of the error where the redirect is strongest, 0 or more.
        empty_share: states, as a share of ``batch``, on which the empty prompt is kept as it was.
        reuse: steps for each new set of states; a set costs five evaluations a row, a step on it one.
        seed: seed of everything.
        patience: steps without a better loss (a running mean) after which training stops early; 0 never stops early.

    Raises:
        ValueError: if a value is out of its range; the message names it.
    """

    steps: int = 600
    batch: int = 8
    rate: float = 3e-3
    scale: float = 5.0
    strength: float = 1.0
    softness: float = 1.0
    focus: float = 10.0
    empty_share: float = 0.125
    reuse: int = 3
    seed: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        low = {"steps": 1, "batch": 1, "reuse": 1, "softness": 1e-6}
        for item in fields(self):
            value, least = getattr(self, item.name), low.get(item.name, 0)
            if not value >= least:  # also refuses what is not a number
                raise ValueError(f"{item.name} is {value}; allowed is {least} or more")
        if self.empty_share > 1:
            raise ValueError(f"empty_share is {self.empty_share}; allowed is 0 to 1")
        kappa(self.scale)

    @property
    def rho(self) -> float:
        """How much of the redirect is taken off the prompt's prediction."""
        return self.strength * (self.scale - 1) / self.scale


# ---- the formula ---------------------------------------------------------------------------------------------------


def harm_weight(gate: torch.Tensor, threshold: float, softness: float) -> torch.Tensor:
    """How much a prompt is redirected rather than kept, ``[B]``, 0..1; one half at the threshold.

    Args:
        gate: the redirector's harmfulness, ``[B]``, 0..1.
        threshold: its calibrated threshold, 0..1.
        softness: in logits.
    """
    level = torch.logit(torch.tensor(float(threshold), dtype=torch.float64), eps=1e-6).to(gate.device)
    return torch.sigmoid((torch.logit(gate.double(), eps=1e-6) - level) / softness).float()


def aligned_target(
    prompt: torch.Tensor,
    base: torch.Tensor,
    redirect: torch.Tensor,
    weight: torch.Tensor,
    config: AlignConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two-sided loss as one square: what is wanted, and the weight of its error.

    ``w m |s - a|^2 + (1 - w) |s - p|^2`` is ``v |s - wanted|^2`` plus what does not depend on ``s``, with
    ``v = w m + 1 - w`` and ``wanted = (w m a + (1 - w) p) / v``.

    Args:
        prompt: the frozen model's prediction of the prompt, ``[B, C, *spatial]``.
        base: of the empty prompt.
        redirect: of the redirect with an open gate.
        weight: ``harm_weight``, ``[B]``; where it is 0 the target is ``prompt``, bit for bit.
        config: strength, scale and focus.

    Returns:
        ``wanted`` like ``prompt`` and ``v``, ``[B, 1, *spatial]``.
    """
    toward = wide(redirect) - wide(base)
    where = toward.abs().mean(dim=1, keepdim=True)
    strongest = where.amax(dim=tuple(range(1, where.ndim)), keepdim=True).clamp(min=1e-3)
    share = per_sample(weight, where) * (1 + config.focus * where / strongest)
    total = share + 1 - per_sample(weight, where)
    return (wide(prompt) - (share / total) * config.rho * toward).to(prompt.dtype), total


def aligned_error(student: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor, sigma: torch.Tensor) -> Any:
    """Weighted mean square of the error per sample, in noise units, ``[B]``."""
    return sample_mean(weight * ((wide(student) - wide(wanted)) / per_sample(sigma, student)).square())


# ---- the run -------------------------------------------------------------------------------------------------------

Judge = Callable[[Sequence[Row], Proposal], torch.Tensor]
"""Weights ``[B]``, 0..1, of rows; by default the redirector's own score."""


class AlignTask(Protocol):
    """What alignment needs: ``states.Task`` without pictures; a row's safe counterpart and category are not read."""

    schedule: torch.Tensor

    def predict(self, x: torch.Tensor, sigma: torch.Tensor, cond: Conditioning) -> torch.Tensor:
        """See ``states.Task``."""
        ...

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """See ``states.Task``."""
        ...

    def rows(self, step: int, count: int) -> list[Any]:
        """Rows of a step; must depend on the step only."""
        ...

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """See ``states.Task``."""
        ...

    def noised(self, latent: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """See ``states.Task``."""
        ...


class _Unpictured:
    """An ``AlignTask`` as a ``states.Task`` without pictures."""

    def __init__(self, task: AlignTask) -> None:
        self.schedule, self.predict, self.encode, self.rows = task.schedule, task.predict, task.encode, task.rows
        self.noise, self.noised = task.noise, task.noised

    def pictures(self, step: int, rows: Sequence[Row]) -> torch.Tensor | None:
        return None


class _Alignment:
    def __init__(
        self, lora: LoRA, task: AlignTask, redirector: Redirector, config: AlignConfig, judge: Judge | None, team: Team
    ) -> None:
        self.lora, self.redirector, self.config, self.team = lora, redirector, config, team
        self.task: Task[Any] = _Unpictured(task)
        self.judge = judge or self._own_judge
        self.device = lora.down[0].device
        self.empty = self.task.encode([""])
        self.batches: deque[Batch] = deque(maxlen=MEMORY)
        self.rollouts: Rollouts | None = None
        self.shown = {"redirect": torch.zeros(()), "keep": torch.zeros(())}

    def _own_judge(self, rows: Sequence[Row], proposal: Proposal) -> torch.Tensor:
        return harm_weight(proposal.gate, self.redirector.threshold, self.config.softness)

    def begin(self, generator: torch.Generator) -> None:
        rows = self.task.rows(-1, self.config.batch)
        self.rollouts = Rollouts.begin(self.task, rows, generator, self.device, self.team)

    def restore(self, saved: Restored, generator: torch.Generator) -> None:
        self.rollouts, self.batches = unpack(self.task, saved.tensors, saved.notes, generator, self.device, self.team)

    def pack(self, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return pack(self.rollouts, self.batches, generator, self.team)

    @torch.no_grad()
    def collect(self, step: int, generator: torch.Generator) -> Batch:
        """States of the student's own sampling runs with what is wanted there; the runs move on by one step.

        The models see the rows of this process; the redirector, which is small, reads all of them.
        """
        task, config, rollouts, team = self.task, self.config, self.rollouts, self.team
        assert rollouts is not None
        rows, x, sigma = list(rollouts.rows), rollouts.x, rollouts.sigma()
        mine, level = own(len(rows), team), share(sigma, team)
        prompt = task.encode([row.prompt for row in rows])
        base = expand_like(self.empty, prompt)
        proposal = self.redirector.propose(prompt, base)
        weight = self.judge(rows, proposal).to(x.device, torch.float32)
        there = select_rows(self._opened(proposal, base, sigma), mine)
        x_both, level_both = torch.cat([x, x]), torch.cat([level, level])
        texts = concatenate([select_rows(prompt, mine), select_rows(base, mine)])
        share_of_harm = torch.where(weight > 1e-3, weight, 0.0)[mine]
        with self.lora.off():
            d_prompt, d_base = task.predict(x_both, level_both, texts).chunk(2)
            d_moved = d_base.clone()
            if harmful := torch.nonzero(share_of_harm).flatten().tolist():
                d_moved[harmful] = task.predict(x[harmful], level[harmful], select_rows(there, harmful))
        wanted, total = aligned_target(d_prompt, d_base, d_moved, share_of_harm, config)
        s_prompt, s_base = task.predict(x_both, level_both, texts).chunk(2)
        judged = [Row(r.prompt, r.prompt, 0 if w >= 0.5 else -1) for r, w in zip(rows, weight.tolist(), strict=True)]
        # some states once more, with the empty prompt; they may belong to another process than the state they repeat
        kept = torch.randperm(len(rows), generator=generator)[: round(config.empty_share * len(rows))].tolist()
        used = [*judged, *(Row("", "", -1) for _ in kept)]
        again = [kept[place - len(rows)] for place in own(len(used), team) if place >= len(rows)]
        batch = Batch(
            used,
            torch.cat([x, whole(x, len(rows), team)[again]]),
            torch.cat([sigma, sigma[kept]]),
            concatenate([prompt, select_rows(base, kept)]),
            torch.cat([wanted, whole(d_base, len(rows), team)[again]]),
            torch.cat([total, torch.ones_like(total[:1]).expand(len(again), *total.shape[1:])]),
        )
        rollouts.advance(cfg(s_prompt, s_base, config.scale), task.rows(step, len(rows)), generator)
        return batch

    def _opened(self, proposal: Proposal, base: Conditioning, sigma: torch.Tensor) -> Conditioning:
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

    def losses(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if step % self.config.reuse == 0 or not self.batches:
            self.batches.append(self.collect(step, generator))
        batch = self.batches[int(torch.randint(len(self.batches), (), generator=generator))]
        mine, level = own(len(batch.rows), self.team), share(batch.sigma, self.team)
        student = self.task.predict(batch.x, level, select_rows(batch.prompt, mine))
        error = aligned_error(student, batch.wanted, batch.weight, level)
        harmful = torch.tensor([row.category >= 0 for row in batch.rows], device=error.device)
        # a set of states may hold one kind only; the other kind's last value stays
        for name, kind in (("redirect", harmful), ("keep", ~harmful)):
            if bool(kind.any()):
                self.shown[name] = error[kind[mine]].sum().detach() / int(kind.sum())
        return error.sum() / len(batch.rows), dict(self.shown)


def align_model(
    lora: LoRA,
    network: nn.Module,
    task: AlignTask,
    redirector: Redirector,
    config: AlignConfig,
    folder: Path | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
    every: int = 100,
    show: bool = True,
    judge: Judge | None = None,
    about: Mapping[str, Any] | None = None,
    team: Team = ALONE,
) -> Iterator[int]:
    """Train a LoRA in place (see ``descent.descend`` for checkpoints, resuming, stopping and errors).

    Args:
        lora: adapters for layers of ``network``, on its device.
        network: the frozen denoiser that ``task.predict`` runs; it is as before when the iterator ends or is closed.
        task: prompts and model.
        redirector: who judges the prompts and says what to remove.
        config: settings.
        folder: for checkpoints; an existing one is continued. None keeps none.
        watch: gets the step and the current losses.
        every: steps between checkpoints, 1 or more.
        show: draw a progress bar.
        judge: who judges in place of the redirector, such as true labels.
        about: what else a resumed run must agree with, such as the digest of the prompts.
        team: the processes that share each batch; each calls this with the same arguments, its own device aside.

    Raises:
        FloatingPointError: if a loss or a gradient is not finite.
        ValueError: if ``folder`` holds a checkpoint of other settings, or there are more processes than sampling runs.
        OSError: if a checkpoint can not be written.
    """
    if team.count > config.batch:
        raise ValueError(
            f"{team.count} processes can not share {config.batch} sampling runs; take a larger batch or fewer processes"
        )
    settings = {
        **asdict(config),
        "rank": lora.rank,
        "alpha": lora.alpha,
        "layers": len(lora.names),
        "redirector": redirector.title,
        "judge": "redirector" if judge is None else "other",
        **(about or {}),
    }
    with lora.attached(network):
        run = _Alignment(lora, task, redirector, config, judge, team)
        yield from descend("LoRA", lora, run, settings, folder, watch, every, show, team)

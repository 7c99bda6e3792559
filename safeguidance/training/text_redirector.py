"""Training of a redirector in text space, from pairs of prompts alone: no denoiser, some minutes on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import reduce

from ..conditioning import Conditioning
from ..prompts.files import Row
from ..redirector.hgr import HGR
from .checkpoints import Checkpoint, History
from .hgr import gate_loss, jittered, learning_gate, run_settings
from .loop import OnStep, train
from .matched import matched
from .settings import MAX_SEED, check_numbers


@dataclass(frozen=True)
class TextTrainConfig:
    """Settings of a training run.

    Args:
        steps: training steps.
        batch: rows a step.
        rate: peak learning rate (AdamW, cosine).
        gate_weight: weight of the gate's cross-entropy.
        clean_weight: weight of ``|gate * delta|^2`` on harmless rows.
        focus: extra weight of the states that differ most between prompt and counterpart, 0 or more.
        jitter: noise added to the token states that are read, relative to their spread; stands in for wording that
            training does not have.
        seed: of everything.
        patience: steps without a better loss (a running mean) after which training stops early; 0 never stops early.

    Raises:
        InputError: if a value is no number, or out of its range.
    """

    steps: int = 1500
    batch: int = 48
    rate: float = 1e-3
    gate_weight: float = 0.2
    clean_weight: float = 0.05
    focus: float = 4.0
    jitter: float = 0.1
    seed: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, {"steps": 1, "batch": 2}, {"seed": MAX_SEED})


class TextTask(Protocol):
    """What is trained on. ``rows`` must depend on the step only, so that runs can resume."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning on the device of the network: states ``[B, L, D]``, and the pooled vector where there is one."""
        ...

    def rows(self, step: int, count: int) -> list[Any]:
        """Training rows of a step, harmful and harmless ones."""
        ...


def train_text_redirector(
    network: HGR,
    task: TextTask,
    config: TextTrainConfig,
    checkpoint_dir: Path | None = None,
    on_step: OnStep | None = None,
    checkpoint_every: int = 100,
    progress_bar: bool = True,
    extra_settings: Mapping[str, Any] | None = None,
    history: History | None = None,
) -> Iterator[int]:
    """Train a network in place; yields the step count after each step (see ``loop.train`` for stopping and resuming).

    Args:
        network: trained in place, on the device it is on.
        task: pairs and text encoder.
        config: settings.
        checkpoint_dir: an existing checkpoint in it is resumed. None keeps none.
        on_step: called after each step.
        checkpoint_every: steps between checkpoints, 1 or more.
        progress_bar: draw one.
        extra_settings: what else a resumed run must agree with.
        history: a list that the losses of all steps are appended to, also of those before a resume.

    Raises:
        FloatingPointError: if a loss or a gradient is not finite; the last checkpoint stays as it is.
        InputError: if ``checkpoint_dir`` holds a checkpoint of other settings or one that cannot be read.
        OSError: if a checkpoint cannot be written.
    """
    torch.manual_seed(config.seed)
    objective = TextObjective(network, task, config)
    yield from train(
        "Text redirector",
        network,
        objective,
        run_settings(network, config, extra_settings),
        checkpoint_dir,
        on_step,
        checkpoint_every,
        progress_bar,
        history=history,
    )


class TextObjective:
    """Distance to the counterpart, gate and clean loss (a ``loop.Objective``).

    Args:
        network: the network.
        task: pairs and text encoder.
        config: settings.
    """

    def __init__(self, network: HGR, task: TextTask, config: TextTrainConfig) -> None:
        self.network, self.task, self.config = network, task, config

    def start(self, generator: torch.Generator) -> None:
        """Nothing to set up."""

    def load_state_dict(self, state: Checkpoint, generator: torch.Generator) -> None:
        """Bring the generator to where it was."""
        generator.set_state(state.tensors["generator"])

    def state_dict(self, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Where the generator is."""
        return {"generator": generator.get_state()}, {}

    def compute_loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of the three losses, and each of them."""
        config = self.config
        rows: list[Row] = self.task.rows(step, config.batch)
        prompt = self.task.encode([row.prompt for row in rows])
        tokens = jittered(prompt.tokens, config.jitter, generator)
        logits = self.network.logits(tokens)
        delta = Conditioning(*self.network.change(tokens))
        harmful = torch.tensor([row.category >= 0 for row in rows], device=tokens.device)
        zero = tokens.new_zeros(())
        losses = {"text": zero, "gate": gate_loss(logits, rows), "clean": zero}
        # in units of the spread of all rows, so that an encoder's scale does not matter
        scale = [1 / _spread(part) for part in (prompt.tokens, prompt.pooled) if part is not None]
        if bool(harmful.any()):
            places = harmful.nonzero()[:, 0]
            safe = self.task.encode([row.safe for row in rows if row.category >= 0])
            apart = _distances(_rows(prompt, places), _rows(delta, places), safe, config.focus)
            losses["text"] = _weighted(scale, apart)
        if not bool(harmful.all()):
            places = (~harmful).nonzero()[:, 0]
            gate = learning_gate(logits[places], [rows[place] for place in places.tolist()])
            losses["clean"] = _weighted(scale, _leaked(_rows(delta, places), gate))
        total = losses["text"] + config.gate_weight * losses["gate"] + config.clean_weight * losses["clean"]
        return total, losses


def _rows(cond: Conditioning, places: torch.Tensor) -> Conditioning:
    return Conditioning(cond.tokens[places], None if cond.pooled is None else cond.pooled[places])


def _distances(prompt: Conditioning, delta: Conditioning, safe: Conditioning, focus: float) -> list[torch.Tensor]:
    """Mean squared distance of ``prompt + delta`` from the counterpart: of states, and of pooled vectors."""
    wanted = matched(prompt, safe)
    change = reduce((wanted.tokens - prompt.tokens).square(), "b l d -> b l", "mean")
    weight = 1 + focus * change / change.amax(dim=1, keepdim=True).clamp(min=1e-12)
    error = reduce((prompt.tokens + delta.tokens - wanted.tokens).square(), "b l d -> b l", "mean")
    out = [(weight * error).mean()]
    if prompt.pooled is not None and delta.pooled is not None and wanted.pooled is not None:
        out.append((prompt.pooled + delta.pooled - wanted.pooled).square().mean())
    return out


def _leaked(delta: Conditioning, gate: torch.Tensor) -> list[torch.Tensor]:
    """Mean ``|gate * delta|^2``: of states, and of pooled vectors."""
    out = [(gate[:, None, None] * delta.tokens).square().mean()]
    if delta.pooled is not None:
        out.append((gate[:, None] * delta.pooled).square().mean())
    return out


def _weighted(scale: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([weight * part for weight, part in zip(scale, parts, strict=False)]).sum()


def _spread(states: torch.Tensor) -> torch.Tensor:
    """Mean variance of the channels, over everything else."""
    return states.detach().flatten(0, -2).var(dim=0, unbiased=False).mean().clamp(min=1e-12)

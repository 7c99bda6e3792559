"""A run of alignment on a MODEL of the host: judge the prompts, train, write the file; for the node and the command."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...safeguidance.conditioning import Conditioning
from ...safeguidance.redirector.interface import Redirector
from ...safeguidance.training.align import AlignConfig, align_model
from ...safeguidance.training.align_data import Prompts, UnlabelledTask, judge_prompts
from ...safeguidance.training.distributed import ALONE, Team
from ...safeguidance.training.lora import LoRA, LoRACard, linear_layers, save_lora
from ...safeguidance.training.prompt_task import Texts
from ..host import model as host_model
from ..host import patcher
from ..host.encoding import ClipEncoder

History = list[dict[str, float]]


@dataclass(frozen=True)
class AlignSettings:
    """What a run needs besides the training settings.

    Args:
        checkpoints: folder of its state.
        out: file to write.
        rank: of the adapters.
        layers: which layers get one, of ``lora.TARGETS``.
        harmful_share: share of the states from prompts judged harmful, 0..1.
        every: steps between checkpoints.
        save_memory: compute the model's blocks once more in the backward pass.
        licence: kept in the card.
        command: what was started, for the card.
    """

    checkpoints: Path
    out: Path
    rank: int = 16
    layers: str = "attention"
    harmful_share: float = 0.5
    every: int = 100
    save_memory: bool = True
    licence: str = "not stated"
    command: str = ""


class Alignment:
    """A run that is prepared: the prompts are encoded.

    Args:
        model: MODEL.
        clip: CLIP of that model.
        redirector: who judges, made for this model.
        data: the prompts.
        shape: of one latent, ``[C, *spatial]``.
        watch: makes the progress of the encoding, see ``host_model.progress``.
        field: where the prompts came from, for messages.

    Raises:
        ValueError: if the redirector was made for another model.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        redirector: Redirector,
        data: Prompts,
        shape: tuple[int, ...],
        watch: Callable[[int], Callable[..., None]] = host_model.progress,
        field: str = "dataset",
    ) -> None:
        family = patcher.model_family(model)
        if redirector.base_model and redirector.base_model != family:
            raise ValueError(
                f"redirector: {redirector.title!r} was made for {redirector.base_model}, the MODEL is {family}; load "
                "one for this model, train one, or use Redirector from Concepts"
            )
        self.model, self.redirector, self.data, self.shape = model, redirector, data, shape
        self.field = field
        encoder = ClipEncoder(clip)

        def encode(text: str) -> Conditioning:
            with torch.no_grad():
                return encoder([text])

        with torch.inference_mode(False):
            self.texts = Texts(encode, data.texts, model.load_device, watch(len(data.texts) + 1))

    def run(
        self,
        config: AlignConfig,
        settings: AlignSettings,
        shown: Callable[[int, History], None] = lambda _step, _history: None,
        team: Team = ALONE,
    ) -> History:
        """Train and write the file (process 0); returns the losses of the steps made now.

        Args:
            config: training settings.
            settings: the rest.
            shown: gets the step and the losses so far after every step; may raise to interrupt.
            team: the processes that share the work.

        Raises:
            ValueError, FloatingPointError, OSError: see ``align_model``; the message names the field.
        """
        with host_model.training_mode():
            return self._run(config, settings, shown, team)

    def _run(
        self, config: AlignConfig, settings: AlignSettings, shown: Callable[[int, History], None], team: Team
    ) -> History:
        data, redirector = self.data, self.redirector
        try:
            weights = judge_prompts(redirector, self.texts, data.texts, config.softness)
        except ValueError as error:
            raise ValueError(f"{self.field}: {error}") from error
        frozen = host_model.frozen_copy(self.model, settings.save_memory)
        network = frozen.base.diffusion_model
        base_hash = frozen.digest()
        try:
            lora = LoRA(linear_layers(network, settings.layers), settings.rank, seed=config.seed).to(frozen.device)
        except ValueError as error:
            raise ValueError(f"layers: {error}") from error
        task = UnlabelledTask(
            data.texts,
            weights,
            self.texts,
            frozen.predict,
            frozen.noised,
            frozen.schedule(20),
            self.shape,
            settings.harmful_share,
            config.seed,
        )
        about = {
            "data": data.digest,
            "model": base_hash,
            "harmful_share": settings.harmful_share,
            "shape": list(self.shape),
        }
        history: History = []
        steps = align_model(
            lora,
            network,
            task,
            redirector,
            config,
            settings.checkpoints,
            lambda _, values: history.append(values),
            settings.every,
            show=False,
            about=about,
            team=team,
        )
        # closing leaves a checkpoint of the step an interrupt came at
        with closing(steps) as running:  # type: ignore[type-var]
            for step in running:
                shown(step, history)
        if team.rank:
            return history
        card = LoRACard(
            base_model=patcher.model_family(self.model),
            redirector=redirector.title,
            threshold=redirector.threshold,
            prompts=len(weights),
            judged_harmful=sum(weight >= 0.5 for weight in weights),
            data=data.source,
            licence=settings.licence,
            base_hash=base_hash,
            data_hash=data.digest,
            training={
                **asdict(config),
                "rank": settings.rank,
                "layers": settings.layers,
                "latent": list(self.shape),
                "processes": team.count,
                "command": settings.command,
            },
        )
        save_lora(settings.out, lora, card)
        return history

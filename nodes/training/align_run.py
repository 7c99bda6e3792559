"""An alignment run on a MODEL of the host: score the prompts, train, write the file; for the node and the command."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...safeguidance.conditioning import Conditioning
from ...safeguidance.errors import InputError, check_choice, check_range
from ...safeguidance.redirector.interface import Redirector
from ...safeguidance.training.align import AlignConfig, align_model, run_settings
from ...safeguidance.training.align_data import Prompts, UnlabelledTask, judge_prompts
from ...safeguidance.training.checkpoints import History, finish_run, finished_history
from ...safeguidance.training.distributed import SINGLE_PROCESS, ProcessGroup
from ...safeguidance.training.lora import TARGETS, LoRA, LoRACard, linear_layers, save_lora
from ...safeguidance.training.prompt_task import EncodedTexts
from ..host import model as host_model
from ..host import patcher
from ..host.encoding import ClipEncoder
from ..redirectors import check_family
from .inputs import check_encoder
from .train_run import OnEncoded, OnStep

Watch = Callable[[host_model.PlainModel, LoRA], None]
"""Called once before the first step with the frozen model, the LoRA on it, for previews."""


@dataclass(frozen=True)
class AlignSettings:
    """What a run needs besides the training settings.

    Args:
        checkpoints: folder of the checkpoints; an existing one is resumed.
        out: file to write.
        rank: of the adapters.
        layers: which layers get one, of ``lora.TARGETS``.
        harmful_share: share of the states from prompts judged harmful, 0..1.
        checkpoint_every: steps between checkpoints.
        save_memory: compute the model's blocks once more in the backward pass.
        licence: kept in the card.
        command: what was started, for the card.
    """

    checkpoints: Path
    out: Path
    rank: int = 16
    layers: str = "attention"
    harmful_share: float = 0.5
    checkpoint_every: int = 100
    save_memory: bool = True
    licence: str = "not stated"
    command: str = ""


class Alignment:
    """A run that is prepared: the prompts are encoded.

    Args:
        model: MODEL.
        clip: CLIP of that model.
        redirector: made for this model.
        data: the prompts.
        shape: of one latent, ``[C, *spatial]``.
        progress: makes what is called while the prompts are encoded, from their number.

    Raises:
        InputError: if the redirector was made for another model, or the text encoder cannot be used.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        redirector: Redirector,
        data: Prompts,
        shape: tuple[int, ...],
        progress: Callable[[int], OnEncoded] | None = None,
    ) -> None:
        check_family(redirector, model, "redirector")
        self.model, self.redirector, self.data, self.shape = model, redirector, data, shape
        progress = progress or host_model.progress
        encoder = ClipEncoder(clip)

        def encode(text: str) -> Conditioning:
            with torch.no_grad():
                return encoder([text])

        with torch.inference_mode(False):
            self.texts = EncodedTexts(encode, data.texts, model.load_device, progress(len(data.texts) + 1))
        if redirector.width != self.texts.width:
            raise InputError(
                "redirector",
                f"{redirector.title!r} reads {redirector.width} channels, the text encoder gives {self.texts.width}",
                "a redirector made for this text encoder",
                "use redirector and text encoder of the same model",
            )

    def run(
        self,
        config: AlignConfig,
        settings: AlignSettings,
        on_step: OnStep = lambda _step, _history: None,
        group: ProcessGroup = SINGLE_PROCESS,
        watch: Watch | None = None,
    ) -> History:
        """Train and write the file (process 0); returns the losses of all steps.

        A finished run of the same settings whose file is still there is not made again.

        Args:
            config: training settings.
            settings: the rest.
            on_step: called after each step.
            group: the processes that share the work.
            watch: called once before the first step of a run that is made.

        Raises:
            InputError, FloatingPointError, OSError: see ``align_model``.
        """
        with host_model.training_mode():
            return self._run(config, settings, on_step, group, watch)

    def _run(
        self,
        config: AlignConfig,
        settings: AlignSettings,
        on_step: OnStep,
        group: ProcessGroup,
        watch: Watch | None,
    ) -> History:
        data, redirector = self.data, self.redirector
        check_range("rank", settings.rank, 1, 4096)
        check_choice("layers", settings.layers, tuple(TARGETS))
        check_range("harmful_share", settings.harmful_share, 0, 1)
        harm = judge_prompts(redirector, self.texts, data.texts, config.softness, data.field)
        frozen = host_model.frozen_copy(self.model, settings.save_memory)
        check_encoder(frozen, self.texts, self.shape)
        network = frozen.base.diffusion_model
        base_hash = frozen.digest()
        lora = LoRA(linear_layers(network, settings.layers), settings.rank, seed=config.seed).to(frozen.device)
        task = UnlabelledTask(
            data.texts,
            harm,
            self.texts,
            frozen.predict,
            frozen.noised,
            frozen.schedule(20),
            self.shape,
            settings.harmful_share,
            config.seed,
        )
        extra = {
            data.field: data.digest,
            "model": base_hash,
            "harmful_share": settings.harmful_share,
            "latent": list(self.shape),
        }
        wanted = run_settings(lora, redirector, config, None, extra)
        done = finished_history(settings.checkpoints, wanted, settings.out)
        if done is not None:
            return done
        if watch is not None:
            watch(frozen, lora)
        history: History = []
        steps = align_model(
            lora,
            network,
            task,
            redirector,
            config,
            settings.checkpoints,
            None,
            settings.checkpoint_every,
            progress_bar=False,
            extra_settings=extra,
            group=group,
            history=history,
        )
        # closing leaves a checkpoint of the step an interrupt came at
        with closing(steps) as running:  # type: ignore[type-var]
            for step in running:
                on_step(step, history)
        if group.rank == 0:
            save_lora(settings.out, lora, self._card(harm, config, settings, base_hash, group))
            finish_run(settings.checkpoints, settings.out)
        return history

    def _card(
        self,
        harm: list[float],
        config: AlignConfig,
        settings: AlignSettings,
        base_hash: str,
        group: ProcessGroup,
    ) -> LoRACard:
        return LoRACard(
            base_model=patcher.model_family(self.model),
            redirector=self.redirector.title,
            threshold=self.redirector.threshold,
            prompts=len(harm),
            judged_harmful=sum(weight >= 0.5 for weight in harm),
            data=self.data.source,
            licence=settings.licence,
            base_hash=base_hash,
            data_hash=self.data.digest,
            training={
                **asdict(config),
                "rank": settings.rank,
                "layers": settings.layers,
                "latent": list(self.shape),
                "processes": group.world_size,
                "command": settings.command,
            },
        )

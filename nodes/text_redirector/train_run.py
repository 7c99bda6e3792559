"""One training run of a text redirector on a CLIP of the host."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict

import torch

from ...safeguidance.prompts.files import PromptData
from ...safeguidance.redirector.hgr import HGR
from ...safeguidance.redirector.text_weights import TextCard, save_text_redirector
from ...safeguidance.training.checkpoints import History, finish_run, finished_history
from ...safeguidance.training.hgr import run_settings
from ...safeguidance.training.prompt_task import EncodedTexts, PromptRows, calibrate_threshold, held_out_metrics
from ...safeguidance.training.text_redirector import TextTrainConfig, train_text_redirector
from ..host import model as host_model
from ..host.text_encoders import encoder_digest, encoder_family
from ..training.train_run import RATE, OnStep, RunSettings, encoded_texts, mean_losses, network_shape

Watch = Callable[[HGR, EncodedTexts], None]
"""Called once before the first step with what is trained and the texts, for previews."""


class TextTraining:
    """A run that is prepared: its texts are encoded.

    Args:
        clip: the host's CLIP.
        data: the pairs.
        progress: makes what is called while texts are encoded, from their number.

    Raises:
        InputError: if the encoder gives values that are not finite.
    """

    def __init__(
        self, clip: object, data: PromptData, progress: Callable[[int], Callable[..., None]] = host_model.progress
    ) -> None:
        self.clip, self.data = clip, data
        self.texts = encoded_texts(clip, data, host_model.torch_device(), progress)

    def run(
        self, config: TextTrainConfig, settings: RunSettings, on_step: OnStep, watch: Watch | None = None
    ) -> History:
        """Train, calibrate, write the file; returns the losses of all steps.

        A finished run of the same settings whose file is still there is not made again.

        Args:
            config: training settings.
            settings: the rest.
            on_step: called after each step.
            watch: called once before the first step of a run that is made.

        Raises:
            InputError, FloatingPointError, OSError: see ``train_text_redirector``.
        """
        with host_model.training_mode():
            return self._run(config, settings, on_step, watch)

    def _run(self, config: TextTrainConfig, settings: RunSettings, on_step: OnStep, watch: Watch | None) -> History:
        data, texts = self.data, self.texts
        digest = encoder_digest(self.clip)
        torch.manual_seed(config.seed)
        network = HGR(network_shape(texts, data.categories, settings)).to(texts.device)
        extra = {"dataset": data.digest, "encoder": digest}
        done = finished_history(settings.checkpoints, run_settings(network, config, extra), settings.out)
        if done is not None:
            return done
        if watch is not None:
            watch(network, texts)
        history: History = []
        steps = train_text_redirector(
            network,
            PromptRows(data, texts, config.seed),
            config,
            settings.checkpoints,
            None,
            settings.checkpoint_every,
            False,
            extra,
            history,
        )
        # closing leaves a checkpoint of the step an interrupt came at
        with closing(steps) as running:  # type: ignore[type-var]
            for step in running:
                on_step(step, history)
        gate_threshold, rate, count = calibrate_threshold(network, data, texts, RATE)
        card = TextCard(
            encoder=encoder_family(self.clip),
            threshold=gate_threshold,
            false_positive_rate=rate,
            calibration_count=count,
            data=data.path.name,
            licence=settings.licence,
            training={
                **asdict(config),
                "steps": len(history),
                "command": settings.command,
                "figures": {**held_out_metrics(network, data, texts, gate_threshold), **mean_losses(history)},
            },
            encoder_hash=digest,
            data_hash=data.digest,
            counts=data.counts(),
        )
        save_text_redirector(settings.out, network, card)
        finish_run(settings.checkpoints, settings.out)
        return history

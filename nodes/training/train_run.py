"""One training run on a MODEL and a CLIP of the host, for the node and for the command."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...safeguidance.conditioning import Conditioning
from ...safeguidance.errors import InputError, check_range
from ...safeguidance.prompts.files import PromptData
from ...safeguidance.prompts.pictures import read_pictures, with_pictures
from ...safeguidance.redirector.hgr import HGR, HGRConfig
from ...safeguidance.redirector.weights import HGRCard, save_hgr
from ...safeguidance.training.checkpoints import History, finish_run, finished_history
from ...safeguidance.training.distributed import SINGLE_PROCESS, ProcessGroup
from ...safeguidance.training.hgr import run_settings, train_hgr
from ...safeguidance.training.hgr_config import HGRTrainConfig
from ...safeguidance.training.prompt_task import (
    EncodedTexts,
    PromptTask,
    calibrate_threshold,
    held_out_metrics,
    no_held_out_rows,
)
from ..host import model as host_model
from ..host import patcher
from ..host.encoding import ClipEncoder
from .inputs import check_encoder

RATE = 0.01
"""False-positive rate that the threshold is set for."""

OnStep = Callable[[int, History], None]
"""Called after each step with the steps done and the losses of all of them; may raise to interrupt."""
OnEncoded = Callable[..., None]
"""Called with the number of texts or pictures encoded so far."""
Watch = Callable[[host_model.PlainModel, HGR], None]
"""Called once before the first step with the frozen model and what is trained, for previews."""


@dataclass(frozen=True)
class RunSettings:
    """What a run needs beside the training settings.

    Args:
        checkpoints: folder of the checkpoints; an existing one is resumed.
        out: file to write.
        width: channels inside the redirector, 0: as wide as the text, at most 1024.
        layers: its layers.
        checkpoint_every: steps between checkpoints.
        save_memory: compute the model's blocks twice instead of keeping them.
        licence: of the weights, for the card.
        command: how the run was started, for the card.
    """

    checkpoints: Path
    out: Path
    width: int = 0
    layers: int = 4
    checkpoint_every: int = 100
    save_memory: bool = True
    licence: str = "not stated"
    command: str = "Train HGR"


def readable(data: PromptData) -> PromptData:
    """The data, if a threshold can be set on it.

    Raises:
        InputError: if no row is held out.
    """
    if all(row.split == "train" for row in data.examples):
        raise no_held_out_rows(data)
    return data


def encoded_texts(
    clip: Any, data: PromptData, device: torch.device, progress: Callable[[int], OnEncoded]
) -> EncodedTexts:
    """All prompts of a file and their counterparts through a CLIP, outside the host's inference mode.

    Args:
        clip: the host's CLIP.
        data: the prompts.
        device: where they are trained on.
        progress: makes what is called while texts are encoded, from their number.

    Raises:
        InputError: if the encoder gives values that are not finite.
    """
    encoder = ClipEncoder(clip)

    def encode(text: str) -> Conditioning:
        with torch.no_grad():
            return encoder([text])

    texts = [text for e in data.examples for text in (e.prompt, e.safe)]
    with torch.inference_mode(False):
        return EncodedTexts(encode, texts, device, progress(len(set(texts)) + 1))


class Training:
    """A run that is prepared: texts and pictures are encoded.

    Args:
        model: MODEL.
        clip: CLIP of that model.
        data: the prompts.
        samples: a LATENT's samples; zeros only give the size, anything else is noised for a part of the states.
        vae: VAE of that model; encodes the pictures that the rows name. None leaves them alone.
        progress: makes what is called while texts and pictures are encoded, from their number.
        picture_root: folder that the pictures must lie in; None allows any.

    Raises:
        InputError: if a picture or the VAE cannot be used, or the text encoder cannot.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        data: PromptData,
        samples: torch.Tensor,
        vae: Any = None,
        progress: Callable[[int], OnEncoded] | None = None,
        picture_root: Path | None = None,
    ) -> None:
        self.model, self.data, self.shape = model, data, tuple(samples.shape[1:])
        progress = progress or host_model.progress
        if not bool(torch.isfinite(samples).all()):
            raise InputError("latent", "it holds values that are not finite", "finite numbers")
        given = list(samples.split(1)) if bool(samples.any()) else []
        self.own_pictures: dict[str, list[int]] = {}
        self.unused = len(with_pictures(data)) if vae is None else 0
        if vae is not None:
            given += self._pictures(vae, len(given), progress, picture_root)
        # clones outside the host's inference mode can take part in training
        with torch.inference_mode(False):
            self.samples = torch.cat([g.clone().float().cpu() for g in given]) if given else None
        self.texts = encoded_texts(clip, data, model.load_device, progress)

    def _pictures(
        self, vae: Any, before: int, progress: Callable[[int], OnEncoded], root: Path | None
    ) -> list[torch.Tensor]:
        count = len(with_pictures(self.data))
        if not count:
            return []
        factor, on_encoded = host_model.compression(vae), progress(count)
        latents: list[torch.Tensor] = []
        height, width = (side * factor for side in self.shape[-2:])
        for example, pixels in read_pictures(self.data, width, height, root=root):
            latent = host_model.encoded(vae, pixels[None])
            if tuple(latent.shape[1:]) != self.shape:
                raise InputError(
                    "vae",
                    f"it makes latents of {list(latent.shape[1:])} from pictures of {width}x{height}, the latent input "
                    f"is {list(self.shape)}",
                    "latents of the same shape",
                    "connect the VAE of the model, and a latent of one frame",
                )
            if not bool(torch.isfinite(latent).all()):
                raise InputError(
                    "vae",
                    f"it gives values that are not finite for the picture of line {example.line} of {self.data.path}",
                    "finite numbers",
                    "run the VAE in float32, or look at that picture",
                )
            self.own_pictures.setdefault(example.prompt, []).append(before + len(latents))
            latents.append(latent)
            on_encoded(len(latents))
        return latents

    @property
    def pictures(self) -> int:
        """Pictures that states are noised from."""
        return 0 if self.samples is None else len(self.samples)

    def run(
        self,
        config: HGRTrainConfig,
        settings: RunSettings,
        on_step: OnStep = lambda _step, _history: None,
        group: ProcessGroup = SINGLE_PROCESS,
        progress_bar: bool = False,
        watch: Watch | None = None,
    ) -> History:
        """Train, calibrate, write the file (process 0); returns the losses of all steps.

        A finished run of the same settings whose file is still there is not made again.

        Args:
            config: training settings; without pictures all states come from sampling runs.
            settings: the rest.
            on_step: called after each step.
            group: the processes that share the work.
            progress_bar: draw one.
            watch: called once before the first step of a run that is made.

        Raises:
            InputError, FloatingPointError, OSError: see ``train_hgr``.
        """
        with host_model.training_mode():
            return self._run(config, settings, on_step, group, progress_bar, watch)

    def _run(
        self,
        config: HGRTrainConfig,
        settings: RunSettings,
        on_step: OnStep,
        group: ProcessGroup,
        progress_bar: bool,
        watch: Watch | None,
    ) -> History:
        data, texts = self.data, self.texts
        frozen = host_model.frozen_copy(self.model, settings.save_memory)
        check_encoder(frozen, texts, self.shape)
        base_hash = frozen.digest()
        latents = None if self.samples is None else frozen.latents(self.samples).cpu()
        schedule = frozen.schedule(20)
        task = PromptTask(
            data, texts, frozen.predict, frozen.noised, schedule, self.shape, latents, config.seed, self.own_pictures
        )
        torch.manual_seed(config.seed)
        network = HGR(network_shape(texts, data.categories, settings)).to(frozen.device)
        extra = {
            "dataset": data.digest,
            "model": base_hash,
            "latent": list(self.shape),
            "pictures": self.pictures,
        }
        done = finished_history(settings.checkpoints, run_settings(network, config, extra), settings.out)
        if done is not None:
            return done
        if watch is not None:
            watch(frozen, network)
        history: History = []
        steps = train_hgr(
            network,
            task,
            config,
            settings.checkpoints,
            None,
            settings.checkpoint_every,
            progress_bar,
            group,
            extra,
            history,
        )
        # closing leaves a checkpoint of the step an interrupt came at
        with closing(steps) as running:  # type: ignore[type-var]
            for step in running:
                on_step(step, history)
        if group.rank == 0:
            card = self._card(network, config, settings, base_hash, history, group)
            save_hgr(settings.out, network, card)
            finish_run(settings.checkpoints, settings.out)
        return history

    def _card(
        self,
        network: HGR,
        config: HGRTrainConfig,
        settings: RunSettings,
        base_hash: str,
        history: History,
        group: ProcessGroup,
    ) -> HGRCard:
        data, texts = self.data, self.texts
        gate_threshold, rate, count = calibrate_threshold(network, data, texts, RATE)
        return HGRCard(
            base_model=patcher.model_family(self.model),
            target="A",
            kappa=config.kappa,
            threshold=gate_threshold,
            false_positive_rate=rate,
            calibration_count=count,
            data=data.path.name,
            licence=settings.licence,
            training={
                **asdict(config),
                "steps": len(history),
                "latent": list(self.shape),
                "pictures": self.pictures,
                "processes": group.world_size,
                "command": settings.command,
                "figures": {**held_out_metrics(network, data, texts, gate_threshold), **mean_losses(history)},
            },
            base_hash=base_hash,
            data_hash=data.digest,
            counts=data.counts(),
        )


def network_shape(texts: EncodedTexts, categories: tuple[str, ...], settings: RunSettings) -> HGRConfig:
    """The shape of a redirector for encoded texts.

    Raises:
        InputError: if width or layers make no network.
    """
    check_range("width", settings.width, 0, 16_384, "0 is as wide as the text, at most 1024")
    check_range("layers", settings.layers, 1, 64)
    inner = settings.width or max(64, min(1024, texts.width) // 64 * 64)
    heads = max(1, inner // 64)
    if inner % heads:
        raise InputError("width", f"it is {inner}", "0, less than 128, or a multiple of 64")
    return HGRConfig(
        texts.width, categories, inner, settings.layers, heads, texts.chunk, pooled_width=texts.pooled_width
    )


def mean_losses(history: History) -> dict[str, Any]:
    """Mean losses of the last steps."""
    last = history[-100:]
    return {f"{name} loss": float(f"{sum(row[name] for row in last) / len(last):.4g}") for name in (last or [{}])[0]}

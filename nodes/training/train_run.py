"""One training run on a MODEL and a CLIP of the host, behind the node and behind the command line of the harness."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...safeguidance.conditioning import Conditioning
from ...safeguidance.prompts.files import PromptData
from ...safeguidance.prompts.pictures import read_pictures, with_pictures
from ...safeguidance.redirector.hgr import HGR, HGRConfig
from ...safeguidance.redirector.weights import HGRCard, save_hgr
from ...safeguidance.training.distributed import ALONE, Team
from ...safeguidance.training.hgr import train_hgr
from ...safeguidance.training.hgr_config import HGRTrainConfig
from ...safeguidance.training.prompt_task import PromptTask, Texts, calibrated_threshold, held_out_figures
from ..host import model as host_model
from ..host import patcher
from ..host.encoding import ClipEncoder

RATE = 0.01
"""False-positive rate that the threshold is set for."""

History = list[dict[str, float]]
_NAME = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_."


def check_inputs(node: str, name: str, clip: Any) -> None:
    """Refuse what no training node can use.

    Raises:
        ValueError: if the name is not that of a plain file, or there is no CLIP.
    """
    if not name.strip(".") or set(name) - set(_NAME):
        raise ValueError(f"{node}, name: {name!r}; allowed are letters, digits, - _ and dots, no folders")
    if clip is None:
        raise ValueError(f"{node}, clip: the input is empty; connect the model's text encoder")


@dataclass(frozen=True)
class RunSettings:
    """What a run needs beside the training settings.

    Args:
        checkpoints: folder of the checkpoints; an existing one is continued.
        out: file to write.
        width: channels inside the redirector, 0: as wide as the text, at most 1024.
        layers: its layers.
        every: steps between checkpoints.
        save_memory: compute the model's blocks twice instead of keeping them.
        licence: of the weights, for the card.
        command: how the run was started, for the card.
    """

    checkpoints: Path
    out: Path
    width: int = 0
    layers: int = 4
    every: int = 100
    save_memory: bool = True
    licence: str = "not stated"
    command: str = "Train HGR"


def readable(data: PromptData) -> PromptData:
    """The data, if a threshold can be set on it.

    Raises:
        ValueError: if no row is held out.
    """
    if all(row.split == "train" for row in data.examples):
        raise ValueError(f"{data.path} has no held-out rows; the threshold is set on them; mark some")
    return data


class Training:
    """A run that is prepared: texts and pictures are encoded.

    Args:
        model: MODEL.
        clip: CLIP of that model.
        data: the prompts.
        samples: a LATENT's samples; zeros only give the size, anything else is noised for a part of the states.
        vae: VAE of that model; encodes the pictures that the rows name. None leaves them alone.
        watch: makes the progress of the encoding, see ``host_model.progress``.

    Raises:
        ValueError: if a picture can not be used, or texts can not.
    """

    def __init__(
        self,
        model: Any,
        clip: Any,
        data: PromptData,
        samples: torch.Tensor,
        vae: Any = None,
        watch: Callable[[int], Callable[..., None]] = host_model.progress,
    ) -> None:
        self.model, self.data, self.shape = model, data, tuple(samples.shape[1:])
        given = list(samples.split(1)) if bool(samples.any()) else []
        self.own: dict[str, list[int]] = {}
        self.unused = len(with_pictures(data)) if vae is None else 0
        if vae is not None:
            given += self._pictures(vae, len(given), watch)
        # clones outside the host's inference mode can take part in training
        with torch.inference_mode(False):
            self.samples = torch.cat([g.clone().float().cpu() for g in given]) if given else None
        encoder = ClipEncoder(clip)

        def encode(text: str) -> Conditioning:
            with torch.no_grad():
                return encoder([text])

        texts = [text for e in data.examples for text in (e.prompt, e.safe)]
        with torch.inference_mode(False):
            self.texts = Texts(encode, texts, model.load_device, watch(len(set(texts)) + 1))

    def _pictures(self, vae: Any, before: int, watch: Callable[[int], Callable[..., None]]) -> list[torch.Tensor]:
        count = len(with_pictures(self.data))
        if not count:
            return []
        factor, at = host_model.compression(vae), watch(count)
        found: list[torch.Tensor] = []
        height, width = (side * factor for side in self.shape[-2:])
        for example, pixels in read_pictures(self.data, width, height):
            latent = host_model.encoded(vae, pixels[None])
            if tuple(latent.shape[1:]) != self.shape:
                raise ValueError(
                    f"vae: it makes latents of {list(latent.shape[1:])} from pictures of {width}x{height}, the latent "
                    f"input is {list(self.shape)}; connect the VAE of the model, and a latent of one frame"
                )
            self.own.setdefault(example.prompt, []).append(before + len(found))
            found.append(latent)
            at(len(found))
        return found

    @property
    def pictures(self) -> int:
        """Pictures that states are noised from."""
        return 0 if self.samples is None else len(self.samples)

    def run(
        self,
        config: HGRTrainConfig,
        settings: RunSettings,
        shown: Callable[[int, History], None] = lambda _step, _history: None,
        team: Team = ALONE,
        bar: bool = False,
    ) -> History:
        """Train, calibrate, write the file (process 0); returns the losses of the steps made now.

        Args:
            config: training settings; without pictures all states come from sampling runs.
            settings: the rest.
            shown: gets the step and the losses so far after every step; may raise to interrupt.
            team: the processes that share the work.
            bar: draw a progress bar.

        Raises:
            ValueError, FloatingPointError, OSError: see ``train_hgr``.
        """
        with host_model.training_mode():
            return self._run(config, settings, shown, team, bar)

    def _run(
        self,
        config: HGRTrainConfig,
        settings: RunSettings,
        shown: Callable[[int, History], None],
        team: Team,
        bar: bool,
    ) -> History:
        data, texts = self.data, self.texts
        frozen = host_model.frozen_copy(self.model, settings.save_memory)
        base_hash = frozen.digest()
        latents = None if self.samples is None else frozen.latents(self.samples).cpu()
        task = PromptTask(
            data, texts, frozen.predict, frozen.noised, frozen.schedule(20), self.shape, latents, config.seed, self.own
        )
        torch.manual_seed(config.seed)
        network = HGR(self._shape_of(settings)).to(frozen.device)
        history: History = []
        about = {"data": data.digest, "model": base_hash, "pictures": self.pictures}
        steps = train_hgr(
            network,
            task,
            config,
            settings.checkpoints,
            lambda _, values: history.append(values),
            settings.every,
            show=bar,
            team=team,
            about=about,
        )
        done = config.steps
        # closing leaves a checkpoint of the step an interrupt came at
        with closing(steps) as running:  # type: ignore[type-var]
            for step in running:
                done = step
                shown(step, history)
        if team.rank:
            return history
        level, stated, count = calibrated_threshold(network, data, texts, RATE)
        card = HGRCard(
            base_model=patcher.model_family(self.model),
            target="A",
            kappa=config.kappa,
            threshold=level,
            false_positive_rate=stated,
            calibration_count=count,
            data=data.path.name,
            licence=settings.licence,
            training={
                **asdict(config),
                "steps": done,
                "latent": list(self.shape),
                "pictures": self.pictures,
                "processes": team.count,
                "command": settings.command,
                "figures": {**held_out_figures(network, data, texts, level), **_last(history)},
            },
            base_hash=base_hash,
            data_hash=data.digest,
            counts=data.counts(),
        )
        save_hgr(settings.out, network.cpu(), card)
        return history

    def _shape_of(self, settings: RunSettings) -> HGRConfig:
        texts = self.texts
        inner = settings.width or max(64, min(1024, texts.width) // 64 * 64)
        heads = max(1, inner // 64)
        return HGRConfig(
            texts.width,
            self.data.categories,
            inner,
            settings.layers,
            heads,
            texts.chunk,
            pooled_width=texts.pooled_width,
        )


def _last(history: History) -> dict[str, Any]:
    """Mean losses of the last steps."""
    some = history[-100:]
    return {f"{name} loss": float(f"{sum(row[name] for row in some) / len(some):.4g}") for name in (some or [{}])[0]}

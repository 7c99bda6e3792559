"""Train HGR: a redirector for the loaded model, from a file of prompts."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..safeguidance.hgr.config import HGRTrainConfig
from ..safeguidance.hgr.data import PromptData, read_prompts
from ..safeguidance.hgr.loop import train_hgr
from ..safeguidance.hgr.losses import draw_losses
from ..safeguidance.hgr.network import HGR, HGRConfig
from ..safeguidance.hgr.prompt_task import PromptTask, Texts, calibrated_threshold
from ..safeguidance.hgr.weights import HGRCard, load_hgr, save_hgr
from ..safeguidance.redirector import Conditioning
from . import host, host_model
from .concepts import ClipEncoder
from .hgr import ManagedRedirector, RedirectorType, describe

_NODE = "Train HGR"
_NAME = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_."


class TrainHGR(io.ComfyNode):
    """Train a redirector on the loaded MODEL and CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_TrainHGR",
            display_name="Train HGR",
            category="SafeGuidance",
            search_aliases=["nsfw", "safety", "train", "harmful guidance redirector", "hgr", "safecfg", "fine-tune"],
            description=(
                "Trains a Harmful Guidance Redirector (SafeCFG, arXiv 2412.16039) for the loaded model from pairs of "
                "prompts; target and recipe are our own derivation. The model stays frozen. An interrupted or killed "
                "run goes on where it was when it is queued again with the same settings. The file lands in "
                "models/safeguidance with a card."
            ),
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to guard, with everything (LoRAs) it will be used with."),
                io.Clip.Input("clip", tooltip="The text encoder of that model."),
                io.Latent.Input(
                    "latent",
                    tooltip="Size of training, from an Empty Latent; smaller than the usual size is faster. Encoded "
                    "pictures as a batch: they are noised for a part of the states, see rollout_share.",
                ),
                io.String.Input(
                    "dataset",
                    default="prompts.csv",
                    tooltip="Prompt file, .csv or .jsonl, columns prompt, safe_prompt, category and split; a full path "
                    "or a name in the input folder. `python -m safeguidance data make` writes one, `data check` "
                    "judges one.",
                ),
                io.String.Input(
                    "name",
                    default="my-hgr",
                    tooltip="Name of the file in models/safeguidance. Letters, digits, - _ and dots. An existing file "
                    "of that name is replaced at the end.",
                ),
                io.Int.Input(
                    "steps",
                    default=2000,
                    min=1,
                    max=200_000,
                    tooltip="Training steps. Low: fast, the redirect stays weak. High: better up to a point, 10,000 to "
                    "20,000 for a large model by our estimate.",
                ),
                io.Int.Input(
                    "batch",
                    default=8,
                    min=1,
                    max=256,
                    tooltip="States a step that go through the model. Low: little memory, noisy. High: steadier and "
                    "slower; 16 for the testbed.",
                ),
                io.Float.Input(
                    "rate",
                    default=3e-4,
                    min=1e-6,
                    max=1e-1,
                    step=1e-6,
                    tooltip="Peak learning rate. Low: slow. High: fast, then unstable; 1e-4 to 1.5e-3 are usual.",
                ),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=1.05,
                    max=30.0,
                    step=0.05,
                    tooltip="The lowest cfg that the redirector shall serve (kappa = cfg / (cfg - 1)). Low: a strong "
                    "redirect. High: a mild one, which leaks at a lower cfg.",
                ),
                io.Float.Input(
                    "rollout_cfg",
                    default=5.0,
                    min=1.0,
                    max=30.0,
                    step=0.1,
                    advanced=True,
                    tooltip="cfg of the short sampling runs that states come from. Low or high: as people sample.",
                ),
                io.Float.Input(
                    "rollout_share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Share of the states from sampling runs where pictures are given; the rest is noised "
                    "pictures. Low: fewer states like those in use. High, 1: pictures are not used. Without pictures "
                    "it is 1.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=2048,
                    step=64,
                    advanced=True,
                    tooltip="Channels inside the redirector. 0: as wide as the text, at most 1024. Low: small and "
                    "fast. High: more it can tell apart, more memory.",
                ),
                io.Int.Input(
                    "layers",
                    default=4,
                    min=1,
                    max=12,
                    advanced=True,
                    tooltip="Transformer layers of the redirector. Low, 1 or 2: for small models. High: slower.",
                ),
                io.Int.Input(
                    "patience",
                    default=0,
                    min=0,
                    max=100_000,
                    advanced=True,
                    tooltip="Stop early after so many steps without a better loss. 0: never. Low: stops at the first "
                    "plateau. High: only where nothing moves any more.",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=100,
                    min=1,
                    max=10_000,
                    advanced=True,
                    tooltip="Steps between checkpoints (output/safeguidance/NAME). Low: little is lost when the "
                    "process is killed. High: less writing. An interrupt in the interface always leaves one.",
                ),
                io.Boolean.Input(
                    "save_memory",
                    default=True,
                    advanced=True,
                    tooltip="On: compute the model's blocks once more in the backward pass instead of keeping them; "
                    "about a third slower. Off: faster, much more memory.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    tooltip="Of everything; on a CPU the same seed gives the same weights. It has no low or high.",
                ),
            ],
            outputs=[
                RedirectorType.Output(
                    "redirector", display_name="REDIRECTOR", tooltip="For SafeCFG Guider, or Detect Harm."
                ),
                io.String.Output("card", display_name="card", tooltip="What the written file says about itself."),
                io.Image.Output("losses", display_name="losses", tooltip="Losses over the steps, as a picture."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        latent: Any,
        dataset: str,
        name: str,
        steps: int,
        batch: int,
        rate: float,
        cfg: float,
        seed: int,
        rollout_cfg: float = 5.0,
        rollout_share: float = 0.5,
        width: int = 0,
        layers: int = 4,
        patience: int = 0,
        checkpoint_every: int = 100,
        save_memory: bool = True,
    ) -> io.NodeOutput:
        """Train, calibrate, save.

        Raises:
            ValueError: if an input can not be used; the message names it.
            FloatingPointError: if a loss is not finite; the last checkpoint stays.
            OSError: if a file can not be written.
        """
        if not name.strip(".") or set(name) - set(_NAME):
            raise ValueError(f"{_NODE}, name: {name!r}; allowed are letters, digits, - _ and dots, no folders")
        if clip is None:
            raise ValueError(f"{_NODE}, clip: the input is empty; connect the model's text encoder")
        try:
            data = read_prompts(host.input_file(dataset))
            if all(row.split == "train" for row in data.examples):
                raise ValueError(f"{data.path} has no held-out rows; the threshold is set on them; mark some")
        except ValueError as error:
            raise ValueError(f"{_NODE}, dataset: {error}") from error
        samples = host.latent_for(model, latent)
        pictures = bool(samples.any())
        config = HGRTrainConfig(
            steps=steps, batch=batch, text_batch=batch, rate=rate, scale=cfg, rollout_scale=rollout_cfg,
            rollout_share=rollout_share if pictures else 1.0, seed=seed, patience=patience,
        )
        with host_model.training_mode():
            given = samples.clone() if pictures else samples[:0].clone()
            trained = _Training(model, clip, data, given, samples.shape[1:])
            path, history = trained.run(config, name, width, layers, checkpoint_every, save_memory)
        picture = torch.from_numpy(np.asarray(draw_losses(history, steps), dtype=np.float32) / 255)[None]
        redirector = ManagedRedirector(load_hgr(path))
        return io.NodeOutput(redirector, describe(path), picture, ui=ui.PreviewImage(picture, cls=cls))


class _Training:
    def __init__(self, model: Any, clip: Any, data: PromptData, samples: torch.Tensor, shape: Any) -> None:
        self.model, self.data, self.samples, self.shape = model, data, samples, tuple(shape)
        encoder = ClipEncoder(clip)

        def encode(text: str) -> Conditioning:
            with torch.no_grad():
                return encoder([text])

        texts = [text for e in data.examples for text in (e.prompt, e.safe)]
        self.texts = Texts(encode, texts, model.load_device, host_model.progress(len(set(texts)) + 1))

    def run(
        self, config: HGRTrainConfig, name: str, width: int, layers: int, every: int, save_memory: bool
    ) -> tuple[Path, list[dict[str, float]]]:
        data, texts = self.data, self.texts
        inner = width or max(64, min(1024, texts.width) // 64 * 64)
        heads, pooled = max(1, inner // 64), texts.pooled_width
        shape = HGRConfig(texts.width, data.categories, inner, layers, heads, texts.chunk, pooled_width=pooled)
        frozen = host_model.frozen_copy(self.model, save_memory)
        base_hash = _digest(frozen.base)
        task = PromptTask(
            data, texts, frozen.predict, frozen.noised, frozen.schedule(20), self.shape,
            frozen.latents(self.samples) if len(self.samples) else None, config.seed,
        )
        torch.manual_seed(config.seed)
        network = HGR(shape).to(frozen.device)
        folder = host.output_folder(name)
        history: list[dict[str, float]] = []
        shown = host_model.progress(config.steps)
        losses = train_hgr(
            network, task, config, folder, lambda _, values: history.append(values), every, show=False
        )
        # closing leaves a checkpoint of the step an interrupt came at
        with closing(losses) as running:  # type: ignore[type-var]
            for step in running:
                shown(step, _preview(history, config.steps) if step % 25 == 0 else None)
        level, stated, count = calibrated_threshold(network, data, texts, 0.01)
        card = HGRCard(
            base_model=host.model_family(self.model), target="A", kappa=config.kappa, threshold=level,
            false_positive_rate=stated, calibration_count=count, data=data.path.name, licence="not stated",
            training={**asdict(config), "latent": list(self.shape), "command": _NODE},
            base_hash=base_hash, data_hash=data.digest, counts=data.counts(),
        )
        path = host.new_model_file(f"{name}.safetensors")
        save_hgr(path, network.cpu(), card)
        return path, history


def _preview(history: list[dict[str, float]], steps: int) -> Any:
    return draw_losses(history, steps) if history else None


def _digest(base: Any) -> str:
    """A digest of a model's weights: a few values of every tensor, so that a large model takes no time."""
    found = hashlib.sha256()
    for key, value in sorted(base.diffusion_model.state_dict().items()):
        flat = value.detach().flatten()
        some = flat[:: max(1, flat.numel() // 64)][:64].float().cpu()
        found.update(f"{key}{tuple(value.shape)}".encode() + some.numpy().tobytes())
    return found.hexdigest()


NODES: list[type[io.ComfyNode]] = [TrainHGR]

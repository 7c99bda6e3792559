"""Train HGR: a redirector for the loaded model, from categories on the node or a file of prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io, ui

from ...safeguidance.errors import at_node
from ...safeguidance.redirector.hgr import HGR
from ...safeguidance.redirector.weights import load_hgr
from ...safeguidance.training.before_after import hgr_rows, side_by_side
from ...safeguidance.training.hgr_config import HGRTrainConfig
from ...safeguidance.training.loss_curve import draw_losses
from ..host import files
from ..host import model as host_model
from ..redirectors import ManagedRedirector, describe
from ..types import RedirectorType
from .inputs import HGR_FIELDS, check_inputs, training_node
from .live import PREVIEW_STEPS, TrainingView, as_tensor, preview_inputs, preview_texts
from .pairs import DATASET_TOOLTIP, pair_inputs, pairs_fingerprint, pairs_for
from .train_run import RunSettings, Training

_NODE = "Train HGR"


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
                "prompts, made of the categories on the node or read from a file; target and recipe are our own "
                "derivation. The model stays frozen. An interrupted or killed run resumes where it was when it is "
                "queued again with the same settings. The file is written to models/safeguidance with a card."
            ),
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
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
                    default="",
                    tooltip=DATASET_TOOLTIP.format(more=" and image")
                    + " `python -m safeguidance data make` writes one, `data check` judges one.",
                ),
                io.String.Input(
                    "name",
                    default="my-hgr",
                    tooltip="Name of the file in models/safeguidance. Letters, digits, - _ and dots. Other settings "
                    "need another name; a file of that name from elsewhere is replaced at the end.",
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
                io.String.Input(
                    "licence",
                    default="not stated",
                    optional=True,
                    advanced=True,
                    tooltip="Licence of the weights, kept in the file's card, such as CC-BY-4.0. It has no low or "
                    "high; mind the licences of your model and data.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="VAE of the model. Encodes the pictures that rows of the prompt file name in a column "
                    "image; they are noised for a part of the states, see rollout_share. Without it they are not used. "
                    "With it the previews before and after are sharp.",
                ),
                *pair_inputs(),
                *preview_inputs("a picture without the redirector and one with it as it is then, from one seed"),
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
    def fingerprint_inputs(cls, dataset: str | None = None, **_: Any) -> str:
        """Changes when the prompt file does, so that the run is not taken from the cache then."""
        return pairs_fingerprint(dataset)

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
        licence: str = "not stated",
        vae: Any = None,
        own: str = "",
        testbed: bool = False,
        preview_every: int = 100,
        preview_prompt: str = "",
        **switches: bool,
    ) -> io.NodeOutput:
        """Train, calibrate, save.

        Raises:
            InputError: if an input cannot be used; the message names it.
            FloatingPointError: if a loss is not finite; the last checkpoint stays.
            OSError: if a file cannot be written.
        """
        with at_node(_NODE):
            check_inputs(name, clip)
        folder, path = files.output_folder(name), files.new_model_file(f"{name}.safetensors")
        settings = RunSettings(
            folder, path, width, layers, checkpoint_every, save_memory, licence.strip() or "not stated"
        )
        view = TrainingView(cls, steps, preview_every)
        with training_node(_NODE, HGR_FIELDS, folder):
            config = HGRTrainConfig(
                steps=steps,
                batch=batch,
                text_batch=batch,
                rate=rate,
                scale=cfg,
                rollout_scale=rollout_cfg,
                rollout_share=rollout_share,
                seed=seed,
                patience=patience,
            )
            data = pairs_for(clip, dataset, own, testbed, switches)
            samples = host_model.latent_for(model, latent)
            phase = "encoding texts" if vae is None else "encoding pictures and texts"
            training = Training(model, clip, data, samples, vae, view.progress(phase), files.input_folder())
            if not training.pictures:
                config = replace(config, rollout_share=1.0)

            def watch(frozen: host_model.PlainModel, network: HGR) -> None:
                prompt, base = preview_texts(clip, preview_prompt, data, frozen.device)
                schedule = frozen.schedule(PREVIEW_STEPS)

                def strip() -> torch.Tensor | None:
                    rows = hgr_rows(network, schedule, prompt, base)
                    latents = side_by_side(
                        frozen.predict, frozen.noised, schedule, training.shape, *rows, rollout_cfg, seed
                    )
                    return host_model.decoded(frozen, latents, vae)

                view.strip = strip

            history = training.run(config, settings, view.on_step, watch=watch if preview_every else None)
            redirector = ManagedRedirector(load_hgr(path))
        view.finished(history, path.name)
        shown = ui.PreviewImage(as_tensor(view.picture(history)), cls=cls)
        return io.NodeOutput(redirector, describe(path), as_tensor(draw_losses(history, steps)), ui=shown)


NODES: list[type[io.ComfyNode]] = [TrainHGR]

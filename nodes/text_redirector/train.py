"""Train Text Redirector: a redirector in text space for the loaded CLIP, from pairs of prompts."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ...safeguidance.errors import InputError, at_node
from ...safeguidance.redirector.hgr import HGR
from ...safeguidance.redirector.text_weights import load_text_redirector
from ...safeguidance.training.before_after import side_by_side, text_rows
from ...safeguidance.training.loss_curve import draw_losses
from ...safeguidance.training.prompt_task import EncodedTexts
from ...safeguidance.training.text_figures import HeldOutTexts
from ...safeguidance.training.text_redirector import TextTrainConfig
from ..host import files
from ..host import model as host_model
from ..training.inputs import TEXT_FIELDS, check_inputs, training_node
from ..training.live import PREVIEW_STEPS, TrainingView, as_tensor, preview_inputs, preview_texts
from ..training.pairs import DATASET_TOOLTIP, pair_inputs, pairs_fingerprint, pairs_for
from ..training.train_run import RunSettings
from ..types import TextRedirectorType
from .load import ManagedTextRedirector, describe
from .train_run import TextTraining

NAME = "Train Text Redirector"
_PREVIEW_CFG = 4.0


class TrainTextRedirector(io.ComfyNode):
    """Train a redirector in text space on the loaded CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_TrainTextRedirector",
            display_name=NAME,
            category="SafeGuidance",
            search_aliases=["nsfw", "safety", "train", "safe conditioning", "text redirector", "cfg 1", "fine-tune"],
            description=(
                "Trains a text redirector for the loaded text encoder from pairs of prompts, made of the categories on "
                "the node or read from a file; no MODEL takes part in training, and one file serves every model with "
                "that encoder. Our design, after Distorting Embedding Space (arXiv 2501.18877). An interrupted or "
                "killed run resumes where it was when it is queued again with the same settings. The file is written "
                "to models/safeguidance with a card."
            ),
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder to guard, all encoders of it, with its LoRAs."),
                io.String.Input(
                    "dataset",
                    default="",
                    tooltip=DATASET_TOOLTIP.format(more="") + " Of the pack's own pairs as many are taken as fit into "
                    "4 GB for wide encoders.",
                ),
                io.String.Input(
                    "name",
                    default="my-text-redirector",
                    tooltip="Name of the file in models/safeguidance. Letters, digits, - _ and dots. Other settings "
                    "need another name; a file of that name from elsewhere is replaced at the end.",
                ),
                io.Int.Input(
                    "steps",
                    default=1500,
                    min=1,
                    max=100_000,
                    tooltip="Training steps. Low: fast, prompts move only part of the way. High: better up to a point.",
                ),
                io.Int.Input(
                    "batch",
                    default=32,
                    min=2,
                    max=512,
                    tooltip="Prompts a step. Low: little memory, noisy. High: steadier and slower; 48 for the testbed.",
                ),
                io.Float.Input(
                    "rate",
                    default=5e-4,
                    min=1e-6,
                    max=1e-1,
                    step=1e-6,
                    tooltip="Peak learning rate. Low: slow. High: fast, then unstable; 1e-4 to 1e-3 are usual.",
                ),
                io.Int.Input(
                    "width",
                    default=0,
                    min=0,
                    max=2048,
                    step=64,
                    advanced=True,
                    optional=True,
                    tooltip="Channels inside the redirector. 0: as wide as the text, at most 1024. Low: small and "
                    "fast. High: more it can tell apart, more memory.",
                ),
                io.Int.Input(
                    "layers",
                    default=3,
                    min=1,
                    max=12,
                    advanced=True,
                    optional=True,
                    tooltip="Transformer layers of the redirector. Low, 1 or 2: for small encoders. High: slower.",
                ),
                io.Int.Input(
                    "patience",
                    default=0,
                    min=0,
                    max=100_000,
                    advanced=True,
                    optional=True,
                    tooltip="Stop early after so many steps without a better loss. 0: never. Low: stops at the first "
                    "plateau. High: only where nothing moves any more.",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=100,
                    min=1,
                    max=10_000,
                    advanced=True,
                    optional=True,
                    tooltip="Steps between checkpoints (output/safeguidance/NAME). Low: little is lost when the "
                    "process is killed. High: less writing. An interrupt in the interface always leaves one.",
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
                    "high; mind the licences of your text encoder and data.",
                ),
                *pair_inputs(),
                *preview_inputs("figures of held-out prompts and, with model and latent, a picture before and after"),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="A MODEL of this text encoder, only for the pictures of the preview. It takes no part in "
                    "training.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Size of the preview's pictures, from an Empty Latent; needed with model. Small: quick.",
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="VAE of the model, for sharp previews; without it they are rough."
                ),
            ],
            outputs=[
                TextRedirectorType.Output(
                    "text_redirector", display_name="TEXT_REDIRECTOR", tooltip="For Safe Conditioning."
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
        clip: Any,
        name: str,
        steps: int,
        batch: int,
        rate: float,
        seed: int,
        dataset: str = "",
        width: int = 0,
        layers: int = 3,
        patience: int = 0,
        checkpoint_every: int = 100,
        licence: str = "not stated",
        own: str = "",
        testbed: bool = False,
        preview_every: int = 100,
        preview_prompt: str = "",
        model: Any = None,
        latent: Any = None,
        vae: Any = None,
        **switches: bool,
    ) -> io.NodeOutput:
        """Train, calibrate, save.

        Raises:
            InputError: if an input cannot be used; the message names it.
            FloatingPointError: if a loss is not finite; the last checkpoint stays.
            OSError: if a file cannot be written.
        """
        with at_node(NAME):
            check_inputs(name, clip)
        folder, path = files.output_folder(name), files.new_model_file(f"{name}.safetensors")
        settings = RunSettings(
            folder, path, width, layers, checkpoint_every, licence=licence.strip() or "not stated", command=NAME
        )
        view = TrainingView(cls, steps, preview_every)
        with training_node(NAME, TEXT_FIELDS, folder):
            config = TextTrainConfig(steps=steps, batch=batch, rate=rate, seed=seed, patience=patience)
            data = pairs_for(clip, dataset, own, testbed, switches)
            if model is not None and latent is None:
                raise InputError(
                    "latent", "it is not connected, but model is", "an Empty Latent of the preview's size", "connect it"
                )

            def watch(network: HGR, texts: EncodedTexts) -> None:
                held_out = HeldOutTexts(data, texts)
                view.figures = lambda: str(held_out.figures(network))
                if model is None:
                    return
                plain = host_model.plain_model(model)
                prompt, base = preview_texts(clip, preview_prompt, data, plain.device)
                shape, schedule = host_model.latent_for(model, latent).shape[1:], plain.schedule(PREVIEW_STEPS)

                def strip() -> torch.Tensor | None:
                    rows = text_rows(network, prompt, base)
                    args = (plain.predict, plain.noised, schedule, shape, *rows, _PREVIEW_CFG, seed)
                    return host_model.decoded(plain, side_by_side(*args), vae)

                view.strip = strip

            training = TextTraining(clip, data, view.progress("encoding texts"))
            history = training.run(config, settings, view.on_step, watch if preview_every else None)
            redirector = ManagedTextRedirector(load_text_redirector(path))
        view.finished(history, path.name)
        shown = ui.PreviewImage(as_tensor(view.picture(history)), cls=cls)
        return io.NodeOutput(redirector, describe(path), as_tensor(draw_losses(history, steps)), ui=shown)


NODES: list[type[io.ComfyNode]] = [TrainTextRedirector]

"""Train Text Redirector: a redirector in text space for the loaded CLIP, from pairs of prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui

from ...safeguidance.errors import at_node
from ...safeguidance.prompts.files import read_prompts
from ...safeguidance.redirector.text_weights import load_text_redirector
from ...safeguidance.testbed.concepts import ALL_PRESETS
from ...safeguidance.training.checkpoints import History
from ...safeguidance.training.loss_curve import draw_losses
from ...safeguidance.training.text_redirector import TextTrainConfig
from ..host import files
from ..host import model as host_model
from ..training.inputs import TEXT_FIELDS, check_inputs, training_node
from ..training.train_run import RunSettings, readable
from ..types import TextRedirectorType
from .load import ManagedTextRedirector, describe
from .train_run import TextTraining, own_pairs

NAME = "Train Text Redirector"


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
                "Trains a text redirector for the loaded text encoder from pairs of prompts; no MODEL takes part, and "
                "one file serves every model with that encoder. Our design, after Distorting "
                "Embedding Space (arXiv 2501.18877). An interrupted or killed run resumes where it was when it is "
                "queued again with the same settings. The file is written to models/safeguidance with a card."
            ),
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder to guard, all encoders of it, with its LoRAs."),
                io.String.Input(
                    "dataset",
                    default="",
                    tooltip="Prompt file in the input folder or a folder below it, .csv or .jsonl, columns prompt, "
                    "safe_prompt, category and split. Empty: the pack's own pairs in the seven categories of the "
                    "field, as many as fit into 4 GB for wide encoders.",
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
                    tooltip="Training steps. Low: fast, prompts move only part of the way. High: better up to a point; "
                    "1,200 were enough on the testbed.",
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
        return files.input_fingerprint(dataset) if dataset else "own pairs"

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
        show_step = host_model.progress(steps)

        def on_step(step: int, history: History) -> None:
            show_step(step, draw_losses(history, steps) if step % 25 == 0 else None)

        with training_node(NAME, TEXT_FIELDS, folder):
            config = TextTrainConfig(steps=steps, batch=batch, rate=rate, seed=seed, patience=patience)
            if dataset.strip():
                data = readable(read_prompts(files.input_file(dataset), tuple(ALL_PRESETS)))
            else:
                data = own_pairs(clip)
            history = TextTraining(clip, data).run(config, settings, on_step)
            redirector = ManagedTextRedirector(load_text_redirector(path))
        picture = torch.from_numpy(np.asarray(draw_losses(history, steps), dtype=np.float32) / 255)[None]
        return io.NodeOutput(redirector, describe(path), picture, ui=ui.PreviewImage(picture, cls=cls))


NODES: list[type[io.ComfyNode]] = [TrainTextRedirector]

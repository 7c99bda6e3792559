"""Align Model: a LoRA that keeps the loaded model from drawing harm, trained from prompts without labels."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ...safeguidance.errors import at_node
from ...safeguidance.redirector.interface import Redirector
from ...safeguidance.training.align import AlignConfig
from ...safeguidance.training.align_data import read_unlabelled, typed_prompts
from ...safeguidance.training.before_after import side_by_side
from ...safeguidance.training.lora import TARGETS, LoRA, load_lora
from ...safeguidance.training.loss_curve import draw_losses
from ..host import files
from ..host import model as host_model
from ..types import RedirectorType
from .align_run import Alignment, AlignSettings
from .inputs import ALIGN_FIELDS, check_inputs, training_node
from .live import PREVIEW_STEPS, TrainingView, as_tensor, preview_inputs, preview_texts
from .pairs import pairs_fingerprint, unlabelled_for

_NODE = "Align Model (LoRA)"


class AlignModel(io.ComfyNode):
    """Train a LoRA from unlabelled prompts and a redirector."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_AlignModel",
            display_name="Align Model (LoRA)",
            category="SafeGuidance",
            search_aliases=["nsfw", "safety", "train", "lora", "safe model", "unlearn", "erase", "hgr", "safecfg"],
            description=(
                "Trains a LoRA with which the model draws safely on its own, without a guider. The redirector judges "
                "unlabelled prompts: what it finds harmful is redirected, everything else stays as it is. The idea is "
                "SafeCFG's (arXiv 2412.16039); the loss is our own derivation. The file is written to models/loras, "
                "and stock Load LoRA nodes read it. An interrupted or killed run resumes when it is queued again."
            ),
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to align, with everything (LoRAs) it will be used with. It stays as it is.",
                ),
                io.Clip.Input("clip", tooltip="The text encoder of that model."),
                RedirectorType.Input(
                    "redirector",
                    tooltip="Judges the prompts and says what to remove: from Load HGR or Train HGR, or, more "
                    "weakly, from Redirector from Concepts.",
                ),
                io.Latent.Input(
                    "latent", tooltip="Size of training, from an Empty Latent; smaller than the usual size is faster."
                ),
                io.String.Input(
                    "dataset",
                    default="",
                    tooltip="Prompts without labels, a file in the input folder or a folder below it: .txt with one a "
                    "line, or the column prompt of a .csv or .jsonl. Harmful and harmless ones mixed, as people write "
                    "them. Not read where prompts are typed below. Both empty: the pack's own prompts in the "
                    "redirector's categories.",
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="The same as text, one prompt a line, in place of the file. Few: quick to try, and the "
                    "LoRA knows little more than these. Many: better, take a file. Empty: what dataset says.",
                ),
                io.String.Input(
                    "name",
                    default="my-safety-lora",
                    tooltip="Name of the file in models/loras. Letters, digits, - _ and dots. Other settings need "
                    "another name; a file of that name from elsewhere is replaced at the end.",
                ),
                io.Int.Input(
                    "steps",
                    default=600,
                    min=1,
                    max=100_000,
                    tooltip="Training steps. Low: fast, harm is only damped. High: better up to a point; 600 for the "
                    "testbed, some thousands for a large model by our estimate.",
                ),
                io.Int.Input(
                    "batch",
                    default=4,
                    min=1,
                    max=256,
                    tooltip="Sampling runs side by side, the states of a step. Low: little memory, noisy. High: "
                    "steadier and slower; 8 for the testbed.",
                ),
                io.Float.Input(
                    "rate",
                    default=1e-3,
                    min=1e-6,
                    max=1e-1,
                    step=1e-6,
                    tooltip="Peak learning rate. Low: slow. High: fast, then unstable; 1e-4 to 3e-3 are usual.",
                ),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=1.05,
                    max=30.0,
                    step=0.1,
                    tooltip="The cfg that people sample with: there the LoRA gives what SafeCFG gives. Low: as much is "
                    "taken off as is harmful. High: more, a push away from harm.",
                ),
                io.Int.Input(
                    "rank",
                    default=16,
                    min=1,
                    max=256,
                    tooltip="Rank of the adapters. Low: a small file that can learn little. High: large, slower; 4 to "
                    "32 are usual.",
                ),
                io.Combo.Input(
                    "layers",
                    options=list(TARGETS),
                    default="linear",
                    tooltip="Which layers get an adapter. attention: those in attention blocks, less memory. linear: "
                    "all linear layers, learns faster; the testbed's choice. It has no low or high.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=3.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Multiplies the redirect. 0: the LoRA learns nothing. 1: as SafeCFG does. High: pushes "
                    "further away, pictures of harmful prompts change more.",
                ),
                io.Float.Input(
                    "softness",
                    default=1.0,
                    min=0.05,
                    max=10.0,
                    step=0.05,
                    advanced=True,
                    tooltip="How softly the score is read around its threshold, in logits. Low: harmful or harmless. "
                    "High: doubtful prompts are redirected in part.",
                ),
                io.Float.Input(
                    "harmful_share",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Share of the states from prompts judged harmful, however rare they are. Low: keeps "
                    "harmless prompts better. High: learns the redirect faster.",
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
                    tooltip="Steps between checkpoints (output/safeguidance/lora-NAME). Low: little is lost when the "
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
                *preview_inputs("a picture without the LoRA and one with it as it is then, from one seed"),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="VAE of the model, for sharp previews; without it they are rough. It takes no part in "
                    "training.",
                ),
            ],
            outputs=[
                io.Model.Output("aligned", display_name="MODEL", tooltip="The model with the LoRA at full strength."),
                io.String.Output(
                    "lora_name", display_name="lora_name", tooltip="Name of the file in models/loras, for Load LoRA."
                ),
                io.String.Output("card", display_name="card", tooltip="What the written file says about itself."),
                io.Image.Output("losses", display_name="losses", tooltip="Losses over the steps, as a picture."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, dataset: str | None = None, prompts: str | None = None, **_: Any) -> str:
        """Changes when the prompt file does, so that the run is not taken from the cache then."""
        return "typed" if prompts and typed_prompts(prompts).texts else pairs_fingerprint(dataset)

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        redirector: Redirector,
        latent: Any,
        dataset: str,
        prompts: str,
        name: str,
        steps: int,
        batch: int,
        rate: float,
        cfg: float,
        rank: int,
        layers: str,
        seed: int,
        strength: float = 1.0,
        softness: float = 1.0,
        harmful_share: float = 0.5,
        patience: int = 0,
        checkpoint_every: int = 100,
        save_memory: bool = True,
        preview_every: int = 100,
        preview_prompt: str = "",
        vae: Any = None,
    ) -> io.NodeOutput:
        """Judge the prompts, train, save, apply.

        Raises:
            InputError: if an input cannot be used; the message names it.
            FloatingPointError: if a loss is not finite; the last checkpoint stays.
            OSError: if a file cannot be written.
        """
        with at_node(_NODE):
            check_inputs(name, clip)
        folder, path = files.output_folder(f"lora-{name}"), host_model.new_lora_file(f"{name}.safetensors")
        settings = AlignSettings(
            folder, path, rank, layers, harmful_share, checkpoint_every, save_memory, command=_NODE
        )
        view = TrainingView(cls, steps, preview_every)
        with training_node(_NODE, ALIGN_FIELDS, folder):
            config = AlignConfig(
                steps=steps,
                batch=batch,
                rate=rate,
                scale=cfg,
                strength=strength,
                softness=softness,
                seed=seed,
                patience=patience,
            )
            typed = typed_prompts(prompts)
            if typed.texts:
                data = typed
            elif dataset.strip():
                data = read_unlabelled(files.input_file(dataset))
            else:
                data = unlabelled_for(clip, redirector)
            shape = tuple(host_model.latent_for(model, latent).shape[1:])
            alignment = Alignment(model, clip, redirector, data, shape, view.progress("encoding texts"))

            def watch(frozen: host_model.PlainModel, lora: LoRA) -> None:
                prompt, base = preview_texts(clip, preview_prompt or data.texts[0], None, frozen.device)
                schedule = frozen.schedule(PREVIEW_STEPS)

                def sampled() -> torch.Tensor:
                    return side_by_side(
                        frozen.predict, frozen.noised, schedule, shape, prompt, lambda _level: base, cfg, seed
                    )

                def strip() -> torch.Tensor | None:
                    with lora.off():
                        before = sampled()
                    return host_model.decoded(frozen, torch.cat([before, sampled()]), vae)

                view.strip = strip

            history = alignment.run(config, settings, view.on_step, watch=watch if preview_every else None)
            card = "\n".join([f"file: {path.name}", *load_lora(path)[1].lines()])
        view.finished(history, path.name)
        shown = ui.PreviewImage(as_tensor(view.picture(history)), cls=cls)
        losses = as_tensor(draw_losses(history, steps))
        return io.NodeOutput(host_model.with_lora(model, path), path.name, card, losses, ui=shown)


NODES: list[type[io.ComfyNode]] = [AlignModel]

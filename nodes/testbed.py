"""Load Testbed: the pack's own small world as an ordinary MODEL, CLIP and VAE."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..safeguidance.errors import at_node
from ..safeguidance.testbed.denoiser import UNET_CONFIG
from ..safeguidance.testbed.latents import LATENT_CHANNELS, PATCH, preview_colours, to_image, to_latent
from ..safeguidance.testbed.model import BASE_MODEL, DENOISER_FILE, TEXT_FILE, WEIGHTS, read_state
from ..safeguidance.testbed.sampler import SHIFT
from ..safeguidance.testbed.text_encoder import BERT_CONFIG
from ..safeguidance.testbed.wordpieces import MAX_LENGTH, WordPieces
from .host import testbed as host_testbed

_NODE = "Load Testbed"


def _read(name: str) -> dict[str, torch.Tensor]:
    return read_state(WEIGHTS / name)


class LoadTestbed(io.ComfyNode):
    """Build the testbed's MODEL, CLIP and VAE from the shipped weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_LoadTestbed",
            display_name="Load Testbed",
            category="SafeGuidance",
            search_aliases=["safety test model", "tiny model", "toy model", "safety benchmark", "nsfw test", "testbed"],
            description=(
                "A tiny text-to-image model (35M parameters, runs in seconds on a CPU) that ships with the pack. It "
                "reads any English and draws about 120 things at 48x48 pixels; drawn symbols such as a knife or a "
                "skull stand in for harmful content. Use it to see what a safety method does before trying it on a "
                "large model. Give it an Empty Latent Image of 48x48 and cfg 4. Our own model; it belongs to no paper."
            ),
            inputs=[],
            outputs=[
                io.Model.Output(
                    "model", display_name="MODEL", tooltip="Stock UNet with flow prediction; 48x48 pixels."
                ),
                io.Clip.Output(
                    "clip",
                    display_name="CLIP",
                    tooltip="The text encoder of all-MiniLM-L6-v2, 384 channels, 32 tokens a chunk; (word:1.3) and "
                    "long prompts work.",
                ),
                io.Vae.Output(
                    "vae",
                    display_name="VAE",
                    tooltip="Writes blocks of 4x4 pixels as 22 numbers; only the finest detail is lost.",
                ),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        """Load the three parts.

        Raises:
            InputError: if a weight file is missing, damaged or of another shape.
        """
        with at_node(_NODE):
            state = _read(DENOISER_FILE)
            model = host_testbed.testbed_model(BASE_MODEL, UNET_CONFIG, SHIFT, PATCH, state, *preview_colours())
            clip = host_testbed.testbed_clip(WordPieces, BERT_CONFIG, MAX_LENGTH, _read(TEXT_FILE))
        return io.NodeOutput(model, clip, host_testbed.testbed_vae(to_latent, to_image, PATCH, LATENT_CHANNELS))


NODES: list[type[io.ComfyNode]] = [LoadTestbed]

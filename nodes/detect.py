"""Detect Harm: how harmful a prompt is, and whether a picture shows it."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..safeguidance.conditioning import Conditioning
from ..safeguidance.errors import InputError, at_node, renamed
from ..safeguidance.redirector.detection import DRAWS, calibrate_score, prompt_scores
from ..safeguidance.redirector.interface import Redirector
from .detect_picture import NO_LIMIT, judge_picture, picture_judge
from .host.encoding import ClipEncoder, check_clip, check_finite
from .inputs import for_editor
from .safree.original import texts_to_judge
from .types import RedirectorType

__all__ = ["DRAWS", "NODES", "DetectHarm", "picture_judge"]

_NODE = "Detect Harm"


def _positive(conditioning: Any) -> list[Conditioning]:
    out = []
    for states, extra in conditioning:
        for tokens, pooled in texts_to_judge({**extra, "cross_attn": states}):
            if tokens is None:
                raise InputError(
                    "positive",
                    "it holds no text states",
                    "what a text encoder node gives",
                    "use CLIP Text Encode",
                )
            out.append(Conditioning(tokens.float(), None if pooled is None else pooled.float()))
    return out


class DetectHarm(io.ComfyNode):
    """Score a prompt or a picture with a redirector."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_DetectHarm",
            display_name="Detect Harm",
            category="SafeGuidance",
            search_aliases=["nsfw detector", "safety", "moderation", "harm score", "classifier", "hed", "hgr"],
            description=(
                "Says how harmful a prompt is, judged by a redirector (SafeCFG, arXiv 2412.16039, uses its HGR so; the "
                "formulas are our own), at no model evaluation. With MODEL and a picture it also says how well the "
                "picture shows the harm, by a few evaluations. The outputs can stop or branch a workflow."
            ),
            inputs=[
                RedirectorType.Input(
                    "redirector", tooltip="What judges: from Load HGR, or from Redirector from Concepts (no training)."
                ),
                io.Clip.Input("clip", tooltip="The text encoder that the redirector was made for."),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="The prompt to judge. Empty: the positive input is judged, or only the picture. A picture "
                    "is judged by itself, against the texts of the redirector's categories.",
                ),
                io.Float.Input(
                    "threshold",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Score from which a prompt counts as harmful. Off (through the API: below 0): calibrated, "
                    "on the harmless prompts below or as the redirector brings it. Low: more is flagged, also harmless "
                    "ones. High, up to 1: only what is surely harmful. Our design; the paper names none.",
                    extra_dict=for_editor(unset=-1.0, start=0.5),
                ),
                io.Float.Input(
                    "rate",
                    default=0.01,
                    min=0.0,
                    max=0.5,
                    step=0.005,
                    advanced=True,
                    tooltip="False-positive rate that thresholds are set for on the harmless inputs below. Low, 0: "
                    "above all of them. 0.01: one in a hundred may be flagged, needs 100 of them. High: flags more.",
                ),
                io.String.Input(
                    "harmless",
                    default="",
                    multiline=True,
                    advanced=True,
                    tooltip="Harmless prompts, one per line, that the threshold is set on; best what your users write "
                    "and the redirector was not trained on. Empty: the redirector's own threshold.",
                ),
                io.Float.Input(
                    "image_threshold",
                    default=NO_LIMIT,
                    min=NO_LIMIT,
                    max=10.0,
                    step=0.001,
                    advanced=True,
                    tooltip="Image score above which a picture counts as harmful, where no harmless pictures are "
                    "connected. Off (through the API: -10): calibrated for Load Testbed at three draws and seed 0; for "
                    "every other model none, the picture then gets a score and no verdict, and harmful is True, so "
                    "that a switch lets nothing pass unjudged. Low: flags more. High: flags less.",
                    extra_dict=for_editor(unset=NO_LIMIT, start=0.01),
                ),
                io.Int.Input(
                    "draws",
                    default=DRAWS,
                    min=1,
                    max=32,
                    advanced=True,
                    tooltip="Fixed noise levels a picture is judged at. Low, 1: fast and rough. 3 to 8 is usual. High, "
                    "32: steadier. Each costs one evaluation and up to two more per text of harm that is looked for.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    advanced=True,
                    tooltip="Of the fixed noise. The same seed gives the same score; it has no low or high.",
                ),
                io.Conditioning.Input(
                    "positive", optional=True, tooltip="An encoded prompt, in place of the text. Several: the worst."
                ),
                io.Model.Input("model", optional=True, tooltip="Needed for a picture: the MODEL that judges it."),
                io.Latent.Input("latent", optional=True, tooltip="The picture as a latent. Connect it or image."),
                io.Image.Input("image", optional=True, tooltip="The picture, together with vae."),
                io.Vae.Input("vae", optional=True, tooltip="Encodes image; the VAE of the MODEL."),
                io.Latent.Input(
                    "harmless_latent",
                    optional=True,
                    tooltip="Harmless pictures as a batch of latents, same size; the image threshold is set on them.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    "score", display_name="score", tooltip="Harmfulness of the prompt, 0 to 1; 0 where none is given."
                ),
                io.Boolean.Output(
                    "harmful",
                    display_name="harmful",
                    tooltip="True where prompt or picture is over its threshold, or the picture has none.",
                ),
                io.String.Output(
                    "categories", display_name="categories", tooltip="Scores per category and the thresholds, in words."
                ),
                io.Float.Output(
                    "image_score",
                    display_name="image_score",
                    tooltip="How much better the harm explains the picture than nothing does; 0 without a picture.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        redirector: Redirector,
        clip: Any,
        prompt: str = "",
        threshold: float = -1.0,
        rate: float = 0.01,
        harmless: str = "",
        image_threshold: float = NO_LIMIT,
        draws: int = DRAWS,
        seed: int = 0,
        positive: Any = None,
        model: Any = None,
        latent: Any = None,
        image: Any = None,
        vae: Any = None,
        harmless_latent: Any = None,
    ) -> io.NodeOutput:
        """Score what is connected.

        Raises:
            InputError: if there is nothing to judge, an input is missing or does not fit; the message names it.
        """
        with at_node(_NODE):
            check_clip(clip)
            encoder = ClipEncoder(clip)
            base, prompts = encoder([""]), _prompts(encoder, prompt, positive)
            samples = _samples(latent, image, vae)
            if not prompts and samples is None:
                raise InputError(
                    "prompt",
                    "it is empty, and no positive, latent or image is connected",
                    "a prompt, a picture or both",
                    "write a prompt or connect one of them",
                )
            score, over, lines = _judge_prompts(redirector, encoder, prompts, base, threshold, rate, harmless)
            image_score = 0.0
            if samples is not None:
                known = None if harmless_latent is None else harmless_latent["samples"]
                image_score, shown, line = judge_picture(
                    redirector, encoder, model, samples, known, base, draws, seed, rate, image_threshold
                )
                over = over or shown
                lines.append(line)
        return io.NodeOutput(score, over, "\n".join(lines), image_score)


def _prompts(encoder: ClipEncoder, prompt: str, positive: Any) -> list[Conditioning]:
    """The prompts to judge, of the text or of the positive input; none where neither is given."""
    typed = bool(prompt.strip())
    if typed and positive is not None:
        raise InputError(
            "prompt",
            "it is not empty, and positive is connected too",
            "one of them",
            "clear the text or unplug positive",
        )
    with renamed({"text": "prompt"}):
        prompts = [encoder([prompt])] if typed else _positive(positive or [])
    for judged in prompts:
        for values in (judged.tokens, judged.pooled):
            check_finite("", "prompt" if typed else "positive", values, "it")
    return prompts


def _samples(latent: Any, image: Any, vae: Any) -> torch.Tensor | None:
    if latent is not None and image is not None:
        raise InputError("latent", "it is connected, and image is too", "one of them", "unplug one")
    if image is not None:
        if vae is None:
            raise InputError("vae", "it is not connected, but image is", "the VAE of the MODEL", "connect it")
        encoded: torch.Tensor = vae.encode(image[..., :3])
        return encoded
    samples: torch.Tensor | None = None if latent is None else latent["samples"]
    return samples


def _judge_prompts(
    redirector: Redirector,
    encoder: ClipEncoder,
    prompts: list[Conditioning],
    base: Conditioning,
    threshold: float,
    rate: float,
    harmless: str,
) -> tuple[float, bool, list[str]]:
    if not prompts:
        return 0.0, False, []
    limit, why = (redirector.threshold, "calibrated by the redirector") if threshold < 0 else (threshold, "as given")
    known = [line.strip() for line in harmless.splitlines() if line.strip()]
    strictly = False
    if threshold < 0 and known:
        with renamed({"text": "harmless"}):
            gates = [prompt_scores(redirector, encoder([text]), base).gate.item() for text in known]
        limit, strictly = calibrate_score(gates, rate).threshold, True
        why = f"{100 * rate:g}% false positives on {len(known)} harmless prompts"
    found = [prompt_scores(redirector, prompt, base) for prompt in prompts]
    gate = torch.cat([f.gate.cpu() for f in found])
    per = torch.cat([f.categories.cpu() for f in found]).amax(dim=0)
    distance = max(float(f.distance.max()) for f in found)
    score = float(gate.max())
    lines = [f"{name}: {value:.3f}" for name, value in zip(redirector.categories, per.tolist(), strict=True)]
    lines.append(f"threshold: {limit:.3f} ({why})")
    lines.append(f"embedding score: {distance:.5f}")
    return score, score > limit if strictly else score >= limit, lines


NODES: list[type[io.ComfyNode]] = [DetectHarm]

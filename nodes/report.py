"""Safety Report: what a guarded run did, as a picture, a mask, JSON and plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..safeguidance.errors import InputError
from ..safeguidance.report.account import account_for
from ..safeguidance.report.heat import effect_mask
from ..safeguidance.report.picture import draw_report
from ..safeguidance.report.prompt_texts import prompts_behind
from ..safeguidance.report.trace import Trace
from .host import patcher
from .host.known_words import unknown_words
from .host.progress import node_id
from .types import TraceType


class SafetyReport(io.ComfyNode):
    """Draw the last run of a trace."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_SafetyReport",
            display_name="Safety Report",
            category="SafeGuidance",
            search_aliases=["safety", "nsfw score", "harm score", "moderation", "trace", "explain", "audit"],
            description=(
                "Shows what a safety method did in the last sampling run: the picture, where guidance was changed, the "
                "harm score per category against the threshold, the steps, and the decision in words. The outputs can "
                "drive other nodes. Connect the image or the latent behind the sampler, so that the report runs after "
                "it. Our own node; it belongs to no paper."
            ),
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
            inputs=[
                TraceType.Input("trace", tooltip="From a safety node, such as SafeCFG Guider or SP-Guard Mask."),
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="The finished picture (or pictures; the first four are drawn). Connect it or latent.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The sampler's latent. With it the report finds the runs that made this very picture, also "
                    "where one MODEL is sampled several times; without it, it shows all runs of this queue run.",
                ),
                io.Image.Input(
                    "unguarded",
                    optional=True,
                    tooltip="The picture of the same seed without a guard. With it the report shows before and after "
                    "side by side.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder of the prompt. With it the report names words of the prompt that the "
                    "encoder does not know, and says that the verdict means little then.",
                ),
            ],
            outputs=[
                io.Image.Output("report", display_name="report", tooltip="The report as a picture, 1200 pixels wide."),
                io.Mask.Output(
                    "effect",
                    display_name="effect",
                    tooltip="Where guidance was changed, at the image's size, 0 (nowhere) to 1 (strongest place of the "
                    "run). All 0 where nothing was changed, or for SafeCFG where map is off. Threshold Mask makes a "
                    "hard mask of it, for inpainting or compositing.",
                ),
                io.String.Output("json", display_name="json", tooltip="The whole record as JSON, without the map."),
                io.Boolean.Output(
                    "harmful",
                    display_name="harmful",
                    tooltip="True where a harm score of any run of this picture reached the threshold: the prompt was "
                    "judged harmful. True too where no run is known, so that a switch stays closed. It says nothing "
                    "about the finished picture. False for methods that act on every prompt.",
                ),
                io.Float.Output("harm", display_name="harm", tooltip="The largest harm score of the run, 0 to 1."),
            ],
        )

    @classmethod
    def execute(
        cls,
        trace: Trace,
        image: torch.Tensor | None = None,
        latent: Any = None,
        unguarded: torch.Tensor | None = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        """Draw the report.

        Raises:
            InputError: if neither image nor latent is connected.
        """
        if image is None and latent is None:
            raise InputError(
                "image",
                "neither image nor latent is connected, so the report could run before the sampler",
                "an IMAGE made from the sampled latent, or that LATENT",
                "connect one of them",
                "Safety Report",
            )
        samples = None if latent is None else latent["samples"]
        runs, certain = trace.runs_of(samples if torch.is_tensor(samples) else None, patcher.queue_run())
        account = account_for(runs, certain, _unknown(cls, clip))
        if image is not None:
            batch, height, width = image.shape[:3]
        else:
            shape = tuple(latent["samples"].shape)
            batch, height, width = (shape[0], *shape[-2:]) if len(shape) > 3 else (shape[0], 1, 1)
        picture = draw_report(account.run, image, account.judged, unguarded, account.warning)
        record = json.dumps(account.as_dict(), indent=2, allow_nan=False)
        shown = {**ui.PreviewImage(picture, cls=cls).as_dict(), "text": (account.decision,)}
        return io.NodeOutput(
            picture, effect_mask(account.run, batch, height, width), record, account.harmful, account.harm, ui=shown
        )


def _unknown(node: Any, clip: Any) -> tuple[str, ...]:
    """Words of the prompts behind the report that a text encoder does not know."""
    graph, own = getattr(getattr(node, "hidden", None), "prompt", None), node_id(node)
    if clip is None or not isinstance(graph, Mapping) or own is None:
        return ()
    words = [word for text in prompts_behind(graph, own) for word in unknown_words(clip, text)]
    return tuple(dict.fromkeys(words))


NODES: list[type[io.ComfyNode]] = [SafetyReport]

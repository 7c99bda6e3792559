"""Run Meter and Run Record: what a run cost and what its guards did, as JSON behind the picture."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
from comfy_api.latest import io, ui

from ...safeguidance.errors import InputError
from ...safeguidance.report.account import account_for
from ...safeguidance.report.trace import Trace
from ..host import patcher
from ..host.run_meter import Meter, metered
from ..types import TraceType

RECORD = "Run Record"
MeterType = io.Custom("SAFEGUIDANCE_METER")
"""What the runs of a MODEL cost: ``Meter``."""


class RunMeter(io.ComfyNode):
    """A MODEL whose evaluations are counted."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_RunMeter",
            display_name="Run Meter",
            category="SafeGuidance/evaluate",
            search_aliases=["benchmark", "cost", "evaluations", "memory", "profile"],
            description=(
                "Counts how often the sampler and its guards evaluate the model, and the memory in use meanwhile. The "
                "picture stays the same to the last bit. Run Record reads it after the run. The command evaluate puts "
                "it into every arm. Our own node; it belongs to no paper."
            ),
            inputs=[
                io.Model.Input(
                    "model", tooltip="The MODEL that is sampled; a guard may come before or after this node."
                )
            ],
            outputs=[
                io.Model.Output("metered", display_name="MODEL", tooltip="The same MODEL, for the sampler or a guard."),
                MeterType.Output("meter", display_name="METER", tooltip="What the runs cost. For Run Record."),
            ],
        )

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        """Put the counter on the model."""
        meter = Meter()
        return io.NodeOutput(metered(model, meter), meter)


class RunRecord(io.ComfyNode):
    """What a run cost, and what a guard did in it, as JSON."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_RunRecord",
            display_name=RECORD,
            category="SafeGuidance/evaluate",
            search_aliases=["benchmark", "log", "json", "audit", "trace"],
            description=(
                "What a run cost and what a guard did in it, as JSON: evaluations, memory, decision, scores. It is "
                "made from what was evaluated, after the picture. The command evaluate puts it into every arm and "
                "reads it. Our own node; it belongs to no paper."
            ),
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The finished picture, so that the record is made after the sampler."),
                MeterType.Input("meter", optional=True, tooltip="From Run Meter: what the run cost."),
                TraceType.Input("trace", optional=True, tooltip="From a safety node: what it did in this run."),
                io.String.Input(
                    "note",
                    optional=True,
                    force_input=True,
                    tooltip="A text to keep with it, such as the output guard of Guard Model.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "json",
                    display_name="json",
                    tooltip="pictures, and where connected: cost (evaluations, calls, peak_bytes), guard (as the json "
                    "of Safety Report, without its steps), note.",
                )
            ],
        )

    @classmethod
    def execute(
        cls, image: torch.Tensor, meter: Meter | None = None, trace: Trace | None = None, note: str = ""
    ) -> io.NodeOutput:
        """Write the record.

        Raises:
            InputError: if neither meter nor trace is connected.
        """
        if meter is None and trace is None:
            raise InputError(
                "meter", "neither meter nor trace is connected", "one of them, or both", "connect one", RECORD
            )
        run = patcher.queue_run()
        record: dict[str, Any] = {"pictures": len(image)}
        if meter is not None:
            record["cost"] = dataclasses.asdict(meter.cost(run))
        if trace is not None:
            found = account_for(*trace.runs_of(queue_run=run))
            record["guard"] = {key: value for key, value in found.as_dict().items() if key != "steps"}
            # of a text alone nothing is sampled; there a score over the threshold is what opens the filter
            record["guard"]["opened"] = any(r.acted or (not r.sampled and r.harmful) for r in found.runs)
            record["guard"]["guarded"] = bool(found.runs)
        if note:
            record["note"] = note
        text = json.dumps(record, allow_nan=False)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


NODES: list[type[io.ComfyNode]] = [RunMeter, RunRecord]
"""Nodes of this file."""

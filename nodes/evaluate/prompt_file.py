"""Prompt File: prompts of a file, one after another or several at once."""

from __future__ import annotations

from itertools import chain

from comfy_api.latest import io

from ...safeguidance.errors import InputError, at_node, renamed
from ...safeguidance.evaluate.prompt_sets import PromptFile as PromptSet
from ...safeguidance.evaluate.prompt_sets import read_prompt_file
from ...safeguidance.evaluate.store import Prompt
from ...safeguidance.prompts.templates import make_prompts
from ...safeguidance.testbed.concepts import TESTBED_PRESETS
from ...safeguidance.testbed.prompts import ROW_MAKERS
from ..host import files

NAME = "Prompt File"
TESTBED = "testbed"
"""In place of a file: captions of the testbed, half of them harmful."""
_TESTBED_PAIRS = 10
_INPUTS = {"prompts.file": "file", "prompts.column": "file", "prompts.harmful": "harmful_prompts"}


class PromptFile(io.ComfyNode):
    """Prompts of a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_PromptFile",
            display_name=NAME,
            category="SafeGuidance/evaluate",
            search_aliases=["csv", "dataset", "benchmark", "i2p", "coco", "batch prompts", "prompt list", "load text"],
            description=(
                "Gives prompts of a file: one row after another, or several at once, which the nodes behind it then "
                "go through one by one. Reads the columns prompt, safe_prompt, category, and the published ones of "
                "I2P, Ring-A-Bell, MMA-Diffusion, CoPro, T2I-RiskyPrompt and COCO captions; you bring the file. Our "
                "own node; it belongs to no paper."
            ),
            inputs=[
                io.String.Input(
                    "file",
                    default=TESTBED,
                    tooltip="File in the input folder or a folder below it: .csv, .tsv, .jsonl, .json or .txt (one "
                    "prompt a line). testbed: 20 prompts for the testbed, without a file.",
                ),
                io.Int.Input(
                    "first",
                    default=0,
                    min=0,
                    max=10_000_000,
                    control_after_generate=True,
                    tooltip="Row to begin with. Low: 0 is the first. High: later ones; past the last is an error. Set "
                    "it to increment for one row after another.",
                ),
                io.Int.Input(
                    "count",
                    default=1,
                    min=1,
                    max=10_000,
                    tooltip="How many rows at once. Low, 1: a single prompt. Higher: a list; nodes behind it run for "
                    "each.",
                ),
                io.Combo.Input(
                    "harmful_prompts",
                    options=["as the file says", "yes", "no"],
                    default="as the file says",
                    optional=True,
                    advanced=True,
                    tooltip="Whether the prompts ask for harm. Needed for files that do not say it, such as .txt.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "prompt", display_name="prompt", is_output_list=True, tooltip="The prompts. For a text encoder."
                ),
                io.String.Output(
                    "safe_prompt",
                    display_name="safe_prompt",
                    is_output_list=True,
                    tooltip="The safe counterpart of each, empty where the file has none.",
                ),
                io.String.Output(
                    "category",
                    display_name="category",
                    is_output_list=True,
                    tooltip="The category of each, empty for a harmless prompt.",
                ),
                io.Boolean.Output(
                    "harmful",
                    display_name="harmful",
                    is_output_list=True,
                    tooltip="Whether each asks for harm, as the file says.",
                ),
                io.Int.Output("rows", display_name="rows", tooltip="How many prompts the file has."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **_: object) -> str:
        """Changes when the file does, so that its prompts are not taken from the cache then."""
        return files.input_fingerprint(file)

    @classmethod
    def execute(cls, file: str, first: int, count: int = 1, harmful_prompts: str = "as the file says") -> io.NodeOutput:
        """Read the rows.

        Raises:
            InputError: if the file cannot be read, lacks a column, or has no such row.
        """
        with at_node(NAME), renamed(_INPUTS):
            prompts = testbed_prompts() if file.strip() == TESTBED else _read(file, harmful_prompts)
            chosen = prompts[first : first + count]
            if not chosen:
                found = f"it is {first}, and the file has {len(prompts)} rows"
                raise InputError("first", found, f"0 to {len(prompts) - 1}", "begin with 0 again")
        return io.NodeOutput(
            [prompt.text for prompt in chosen],
            [prompt.safe_text for prompt in chosen],
            [prompt.category for prompt in chosen],
            [prompt.harmful for prompt in chosen],
            len(prompts),
        )


def _read(file: str, harmful_prompts: str) -> list[Prompt]:
    harmful = {"yes": True, "no": False}.get(harmful_prompts)
    return read_prompt_file(PromptSet(files.input_file(file, "file"), harmful=harmful))[0]


def testbed_prompts() -> list[Prompt]:
    """Captions of the testbed, harmful and harmless ones in turn; always the same."""
    made = make_prompts(TESTBED_PRESETS, 5, 0, 0.0, ROW_MAKERS)
    harmful = [e for e in made if e.category][::2][:_TESTBED_PAIRS]
    harmless = [e for e in made if not e.category][:_TESTBED_PAIRS]
    both = chain.from_iterable(zip(harmful, harmless, strict=True))
    return [
        Prompt(number, e.prompt, e.safe if e.category else "", e.category, bool(e.category), TESTBED, number + 1)
        for number, e in enumerate(both)
    ]


NODES: list[type[io.ComfyNode]] = [PromptFile]
"""Nodes of this file."""

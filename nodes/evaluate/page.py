"""Evaluation Page: pictures of two arms from a graph as results and a page, as the command evaluate makes them."""

from __future__ import annotations

import io as bytes_io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ...safeguidance.errors import InputError, at_node
from ...safeguidance.evaluate.judges.interface import ask
from ...safeguidance.evaluate.pictures import keep_picture
from ...safeguidance.evaluate.store import Prompt, Row, Store, VerdictRow, open_results
from ...safeguidance.evaluate.store_file import FILE_NAME
from ..host import files
from .judge import AS_JUDGE, KINDS, as_pictures, judge_input, judge_of, threshold_input

NAME = "Evaluation Page"
ARMS = ("unguarded", "guarded")


class EvaluationPage(io.ComfyNode):
    """Two arms of pictures as results and a page."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_EvaluationPage",
            display_name=NAME,
            category="SafeGuidance/evaluate",
            search_aliases=["benchmark", "report", "statistics", "compare", "nsfw rate", "safety report"],
            description=(
                "Takes the pictures of the same prompts with and without a guard, lets a judge look at them, and keeps "
                "results and a page in the output folder: harmful shares with intervals, what the guard does to "
                "harmless prompts. For more than a few prompts use the command evaluate, which goes on after a stop. "
                "Our own node; it belongs to no paper."
            ),
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.Image.Input("unguarded", tooltip="Pictures without a guard, one for each prompt."),
                io.Image.Input("guarded", tooltip="Pictures with the guard, from the same seed, one for each prompt."),
                io.String.Input("prompt", force_input=True, tooltip="The prompts, from Prompt File."),
                io.String.Input("category", force_input=True, tooltip="Their categories, from Prompt File."),
                io.Boolean.Input(
                    "asks_for_harm",
                    default=True,
                    tooltip="Whether each prompt asks for harm: connect harmful of Prompt File. On: all do, off: none.",
                ),
                judge_input(),
                io.String.Input(
                    "name",
                    default="evaluation",
                    tooltip="Folder below safeguidance in the output folder; results of the same prompts are replaced.",
                ),
                threshold_input(),
            ],
            outputs=[
                io.String.Output("summary", display_name="summary", tooltip="Harmful and changed pictures, in words."),
                io.String.Output("folder", display_name="folder", tooltip="Where results and page lie."),
            ],
        )

    @classmethod
    def execute(
        cls,
        unguarded: list[torch.Tensor],
        guarded: list[torch.Tensor],
        prompt: list[str],
        category: list[str],
        asks_for_harm: list[bool],
        judge: list[str],
        name: list[str],
        threshold: list[float] | None = None,
    ) -> io.NodeOutput:
        """Judge the pictures, keep them, write the page.

        Raises:
            InputError: if there are not as many pictures as prompts, the name is no plain one, or the judge cannot be
                loaded.
        """
        with at_node(NAME):
            folder = files.output_folder(_plain(name[0]))
            pictures = {
                arm: _pictures(arm, found, len(prompt)) for arm, found in zip(ARMS, (unguarded, guarded), strict=True)
            }
            if judge[0] not in KINDS:
                raise InputError("judge", f"it is {judge[0]!r}", ", ".join(KINDS))
            asked = judge_of(judge[0], (threshold or [AS_JUDGE])[0])
            prompts = [
                Prompt(number, text, "", _at(category, number) if harm else "", harm, "graph", number + 1)
                for number, text in enumerate(prompt)
                for harm in [_at(asks_for_harm, number)]
            ]
            _forget(folder)
            with Store(folder) as store:
                _keep(store, prompts, pictures, asked)
                lines = _summary(store, prompts)
                lines.append(_page(store, folder))
        text = "\n".join(lines)
        return io.NodeOutput(text, str(folder), ui=ui.PreviewText(text))


def _plain(name: str) -> str:
    if not name.strip(" .") or set(name) & set('/\\:*?"<>|\0'):
        raise InputError("name", f"it is {name!r}", "a plain name, no folders")
    return name.strip()


def _at(values: Sequence[Any], number: int) -> Any:
    """A value of a list; a list of one is for all, as in every node of the host."""
    return values[number] if number < len(values) else values[-1]


def _pictures(arm: str, found: Sequence[torch.Tensor], count: int) -> list[Any]:
    pictures = [picture for image in found for picture in as_pictures(image)]
    if len(pictures) != count:
        text = f"it has {len(pictures)} pictures, and there are {count} prompts"
        raise InputError(arm, text, "one picture for each prompt", "set batch_size to 1 and connect prompt as a list")
    return pictures


def _forget(folder: Path) -> None:
    """Drop what this node kept here before.

    Raises:
        InputError: if the results are of the command evaluate.
    """
    if not (folder / FILE_NAME).is_file():
        return
    with open_results(folder) as store:
        made_here = store.meta().get("made_by") == NAME
    if not made_here:
        raise InputError("name", f"{folder.name!r} holds results of the command evaluate", "a name of its own")
    for path in folder.glob(f"{FILE_NAME}*"):
        path.unlink()


def _keep(store: Store, prompts: Sequence[Prompt], pictures: dict[str, list[Any]], judge: Any) -> None:
    store.add_prompts(prompts)
    facts = {"name": judge.name, "digest": judge.digest, "categories": list(judge.categories)}
    store.set_meta(arms=list(ARMS), baseline=ARMS[0], judges=[facts], workflows={}, made_by=NAME)
    for arm, listed in pictures.items():
        for prompt, picture, verdicts in zip(
            prompts, listed, ask(judge, listed, [p.text for p in prompts]), strict=True
        ):
            file = bytes_io.BytesIO()
            picture.save(file, "PNG")
            row = Row(prompt.number, 0, arm, "done", *keep_picture(store.folder, file.getvalue()), worker="ComfyUI")
            store.add_row(row)
            store.add_verdicts(
                VerdictRow(row.id, judge.name, v.category, v.score, v.harmful, v.error) for v in verdicts
            )


def _summary(store: Store, prompts: Sequence[Prompt]) -> list[str]:
    harmful, unknown = set[str](), set[str]()
    for verdict in store.verdicts():
        if verdict.harmful:
            harmful.add(verdict.row)
        elif verdict.harmful is None:
            unknown.add(verdict.row)
    rows = {row.id: row for row in store.rows()}
    lines = []
    for arm in ARMS:
        own = [f"{p.number}:0:{arm}" for p in prompts]
        asked = [key for key, p in zip(own, prompts, strict=True) if p.harmful]
        others = [key for key, p in zip(own, prompts, strict=True) if not p.harmful]
        text = (
            f"{arm}: harmful {_of(asked, harmful)} of prompts that ask for harm, {_of(others, harmful)} of the others"
        )
        lines.append(text + (f"; not judged: {len(set(own) & (unknown - harmful))}" if set(own) & unknown else ""))
    harmless = [p.number for p in prompts if not p.harmful]
    same = sum(rows[f"{n}:0:{ARMS[0]}"].picture_digest == rows[f"{n}:0:{ARMS[1]}"].picture_digest for n in harmless)
    lines.append(f"harmless prompts with the very same picture: {same} of {len(harmless)}")
    return lines


def _of(keys: Sequence[str], found: set[str]) -> str:
    return f"{sum(key in found for key in keys)} of {len(keys)}"


def _page(store: Store, folder: Path) -> str:
    try:
        from ...safeguidance.evaluate.page import write
        from ...safeguidance.evaluate.summary import summarise
    except ImportError as error:
        return (
            f"the results are in {folder}; the page needs the package {error.name}, which ComfyUI does not bring: "
            f"python -m pip install 'safeguidance[evaluate]', then python -m safeguidance evaluate report {folder}"
        )
    return f"page: {write(summarise(store), folder).page}"


NODES: list[type[io.ComfyNode]] = [EvaluationPage]
"""Nodes of this file."""

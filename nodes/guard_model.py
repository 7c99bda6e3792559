"""Guard Model: the best guard that there is for a model, on one node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..safeguidance.concepts.categories import Concepts, select_concepts
from ..safeguidance.errors import InputError, at_node, check_choice
from ..safeguidance.guidance.safecfg import SAFECFG_PRESETS
from ..safeguidance.redirector.interface import Redirector
from ..safeguidance.redirector.text_space import SAFE_TEXT_PRESETS, TextRedirector
from ..safeguidance.redirector.text_weights import load_text_redirector
from ..safeguidance.redirector.weights import load_hgr
from ..safeguidance.report.trace import Trace
from ..safeguidance.testbed.concepts import ALL_PRESETS, TESTBED_PRESETS
from ..safeguidance.testbed.model import BASE_MODEL
from .concepts import category_switches, chosen_categories
from .gates import concept_redirector
from .host import files, patcher
from .host import model as host_model
from .host import progress as host_progress
from .host.encoding import check_clip
from .host.text_encoders import encoder_digest, encoder_family
from .inputs import BALANCED, preset_input, preset_of
from .redirectors import ManagedRedirector, check_model
from .safecfg.node import with_safecfg
from .search_words import SEARCH_WORDS
from .text_redirector.load import ManagedTextRedirector, check_clip_fits
from .text_redirector.run import KEY, SafeTextRun
from .types import ConceptsType, RedirectorType, TextRedirectorType, TraceType
from .weight_search import HGRS, TEXT_REDIRECTORS, first_fitting, known_as

NAME = "Guard Model"
AUTO, TEXT, TRAINED, CONCEPTS = "auto", "text redirector", "trained HGR", "concepts"
GUARDS = (AUTO, TEXT, TRAINED, CONCEPTS)


@dataclass(frozen=True)
class Found:
    """A guard for a model.

    Args:
        guard: which kind, one of ``GUARDS`` but auto.
        redirector: what judges the prompt.
        why: where it comes from, in words.
    """

    guard: str
    redirector: Redirector | TextRedirector
    why: str


class GuardModel(io.ComfyNode):
    """A MODEL with the best guard that there is for it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """What the node looks like."""
        return io.Schema(
            node_id="SafeGuidance_GuardModel",
            display_name=NAME,
            category="SafeGuidance",
            search_aliases=["nsfw", "safety", "moderation", "safe model", *SEARCH_WORDS],
            description=(
                "Puts the best guard that there is for a model on it, in one node between the loaders and the sampler: "
                "a text redirector (ours), a trained HGR (SafeCFG, arXiv 2412.16039) or concept texts without any "
                "training. The output guard says which and why. A harmless prompt gives the very picture that it gives "
                "without the node."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL you sample with, with its LoRAs."),
                io.Clip.Input("clip", tooltip="The text encoder of that model, the one that encodes your prompt."),
                *category_switches(),
                preset_input(
                    SAFECFG_PRESETS,
                    "How far harmful prompts are steered. light: less, keeps more of the picture. balanced: as "
                    "trained. strict: further. None changes a prompt that is judged harmless.",
                ),
                io.Combo.Input(
                    "guard",
                    options=list(GUARDS),
                    default=AUTO,
                    advanced=True,
                    optional=True,
                    tooltip="auto: the first of these that there is for this model and covers the categories. text "
                    "redirector: works at any cfg. trained HGR: cfg above 1. concepts: no training, cfg above 1, "
                    "weakest. A named one that is missing is an error, never another one.",
                ),
                ConceptsType.Input(
                    "concepts",
                    optional=True,
                    tooltip="From Safety Concepts, in place of the switches, for categories and phrases of your own.",
                ),
                TextRedirectorType.Input(
                    "text_redirector", optional=True, tooltip="A text redirector to use; it comes before all others."
                ),
                RedirectorType.Input(
                    "redirector",
                    optional=True,
                    tooltip="A redirector for SafeCFG to use, where none for text is given.",
                ),
            ],
            outputs=[
                io.Model.Output("guarded", display_name="MODEL", tooltip="For any sampler or guider."),
                TraceType.Output("trace", display_name="TRACE", tooltip="What the last run did. For Safety Report."),
                io.String.Output("guard_used", display_name="guard", tooltip="What guards the model, and why that."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        preset: str = BALANCED,
        guard: str = AUTO,
        concepts: Concepts | None = None,
        text_redirector: TextRedirector | None = None,
        redirector: Redirector | None = None,
        **switches: bool,
    ) -> io.NodeOutput:
        """Find the guard and put it on the model.

        Raises:
            InputError: if nothing is looked for, a guard that is named or connected does not fit, or the model is
                guarded already.
        """
        check_clip(clip, NAME)
        with at_node(NAME):
            check_choice("guard", guard, GUARDS)
            of_text = preset_of(NAME, SAFE_TEXT_PRESETS, preset)
            of_guidance = preset_of(NAME, SAFECFG_PRESETS, preset)
            looked_for = concepts or _of_switches(model, switches)
            found = _connected(model, clip, guard, text_redirector, redirector) or _find(model, clip, guard, looked_for)
            shown_on = host_progress.node_id(cls)
            if isinstance(found.redirector, TextRedirector):
                if patcher.is_wrapped(model, KEY):
                    raise InputError("model", SafeTextRun.twice, "once", "remove one of the two")
                run = SafeTextRun(NAME, found.redirector, of_text, Trace(), shown_on)
                guarded, trace = patcher.wrapped(model, KEY, run.around_run, run.around_step), run.trace
            else:
                guarded, trace = with_safecfg(NAME, model, found.redirector, of_guidance, False, shown_on)
        return io.NodeOutput(guarded, trace, f"{found.guard}: {found.why}")


def _of_switches(model: Any, switches: dict[str, bool]) -> Concepts:
    """The categories that are on; for the testbed's model its own."""
    names = chosen_categories(switches)
    if patcher.model_family(model) == BASE_MODEL and names:
        names = [category.name for category in TESTBED_PRESETS]
    found = select_concepts(names, "", ALL_PRESETS)
    if not found.categories:
        raise InputError("model", "every category is off", "at least one", "switch one on, or remove this node")
    return found


def _connected(
    model: Any, clip: Any, guard: str, text_redirector: TextRedirector | None, redirector: Redirector | None
) -> Found | None:
    """What the user connected, if anything; it is used or refused, never passed over.

    Raises:
        InputError: if it is not of the kind that ``guard`` names, or does not fit.
    """
    kinds = [] if text_redirector is None else [("text_redirector", TEXT)]
    if redirector is not None:
        kinds.append(("redirector", CONCEPTS if redirector.kappa is None else TRAINED))
    for name, kind in kinds:
        if guard not in (AUTO, kind):
            allowed = f"{AUTO!r} or {kind!r} while {name} is connected"
            raise InputError(
                "guard", f"it is {guard!r}, but a {kind} is connected", allowed, "change it, or disconnect"
            )
    if text_redirector is not None:
        differs = check_clip_fits(text_redirector, clip)
        return Found(TEXT, text_redirector, f"{text_redirector.title}, connected" + _but(differs))
    if redirector is not None:
        differs = check_model(redirector, model, "redirector")
        kind = CONCEPTS if redirector.kappa is None else TRAINED
        return Found(kind, redirector, f"{redirector.title}, connected" + _but(differs))
    return None


def _find(model: Any, clip: Any, guard: str, looked_for: Concepts) -> Found:
    """The first guard that there is."""
    wanted, passed_over = known_as(looked_for.names), []
    for kind, search in ((TEXT, _text_file), (TRAINED, _hgr_file)):
        if guard not in (AUTO, kind):
            continue
        found, reasons = search(model, clip, wanted)
        if found is not None:
            return found
        passed_over += reasons
        if guard == kind:
            raise InputError(
                "guard",
                f"it is {guard!r}, and no file fits ({'; '.join(reasons) or 'there is none'})",
                f"{AUTO!r}, or a file for this model and these categories",
                f"put one into {files.user_folder()}, train one, or choose {AUTO!r}",
            )
    made = concept_redirector(clip, looked_for)
    why = "concept texts, no training; acts at a cfg above 1"
    return Found(CONCEPTS, made, why + (f" (passed over: {'; '.join(passed_over)})" if passed_over else ""))


def _text_file(model: Any, clip: Any, wanted: set[str]) -> tuple[Found | None, list[str]]:
    def same(digest: str) -> bool:
        return not digest or digest == encoder_digest(clip)

    found, reasons = first_fitting(TEXT_REDIRECTORS, encoder_family(clip), wanted, same)
    if found is None:
        return None, reasons
    name, path = found
    redirector = ManagedTextRedirector(load_text_redirector(path))
    return Found(TEXT, redirector, f"{name} was trained for this text encoder; acts at any cfg"), []


def _hgr_file(model: Any, clip: Any, wanted: set[str]) -> tuple[Found | None, list[str]]:
    def same(digest: str) -> bool:
        return not digest or digest == host_model.weights_digest(model)

    found, reasons = first_fitting(HGRS, patcher.model_family(model), wanted, same)
    if found is None:
        return None, reasons
    name, path = found
    return Found(
        TRAINED, ManagedRedirector(load_hgr(path)), f"{name} was trained for this model; acts at a cfg above 1"
    ), []


def _but(differs: str) -> str:
    return f"; WARNING: {differs}" if differs else ""


NODES: list[type[io.ComfyNode]] = [GuardModel]
"""Nodes of this file."""

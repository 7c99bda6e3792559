"""The guard that a level asks for and that exists for the model at hand: the first of the level's list, else none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...safeguidance.concepts.categories import FIELD_PRESETS, Concepts, select_concepts
from ...safeguidance.errors import InputError
from ...safeguidance.guidance import sp_guard
from ...safeguidance.policy.schema import ANY, GuardRule, Level
from ...safeguidance.redirector.interface import Redirector
from ...safeguidance.redirector.text_weights import load_text_redirector
from ...safeguidance.redirector.weights import load_hgr
from ...safeguidance.report.trace import Trace
from ...safeguidance.testbed.concepts import ALL_PRESETS, TESTBED_PRESETS
from ...safeguidance.testbed.model import BASE_MODEL
from ..concept_guidance.run import ConceptTexts, encode_texts
from ..gates import concept_redirector
from ..host import files, patcher
from ..host.guided_run import GuidedRun
from ..per_clip import PerClip
from ..redirectors import ManagedRedirector
from ..safecfg.run import SafeCFGRun
from ..text_redirector.load import ManagedTextRedirector
from ..text_redirector.run import SafeTextRun
from ..weight_search import HGRS, TEXT_REDIRECTORS, first_fitting, known_as, weight_files
from .refusal import Refused
from .runs import SafeCFGGuard, SPGuard, TextGuard, graph_run
from .safree import SafreeGuard
from .texts import Digests, TextNote, notes_of

NODE = "Server policy"
"""What messages call the guard."""
AnyGuard = TextGuard | SafeCFGGuard | SPGuard | SafreeGuard
"""A guard of the policy."""
_ONE_ENCODER = "the prompt's text encoder is not known to this server"


class Guards:
    """Finds guards, and keeps what it made of files and CLIPs."""

    def __init__(self) -> None:
        self._digests = Digests()
        self._files: dict[tuple[str, int, int], Any] = {}
        self._kinds = {kind.part: replace(kind, read=self._once(kind.read)) for kind in (TEXT_REDIRECTORS, HGRS)}
        self._redirectors: PerClip[Redirector] = PerClip(4)
        self._texts: PerClip[ConceptTexts] = PerClip(4)

    def find(self, level: Level, guider: Any) -> AnyGuard:
        """A guard for a run.

        Args:
            level: what holds for the user.
            guider: the host's guider, with its MODEL and conditionings.

        Raises:
            Refused: if none of the level's guards exists for this model and prompt.
        """
        model, passed_over = guider.model_patcher, []
        family = patcher.model_family(model)
        notes = notes_of(guider.original_conds.get("positive") or ())
        for rule in level.guards:
            if not rule.serves(family):
                continue
            found = self._made(rule, level, model, notes)
            if not isinstance(found, str):
                return found
            passed_over.append(f"{rule.method}: {found}")
        why = "; ".join(passed_over) or f"the policy names none for models of the family {family}"
        raise Refused("This server has no safety guard for this model or text encoder. Choose another model.", why)

    def _made(self, rule: GuardRule, level: Level, model: Any, notes: Sequence[TextNote] | None) -> AnyGuard | str:
        if rule.method == "text-redirector":
            return self._text(rule, level, model, notes)
        if rule.method == "hgr":
            return self._hgr(rule, level, model)
        clip = _clip(notes)
        if clip is None:
            return _ONE_ENCODER
        concepts = _concepts(level, model)
        if rule.method == "safree":
            return SafreeGuard(NODE, rule.config, concepts, clip, Trace())
        if rule.method == "sp-guard":
            method = sp_guard.METHOD
            texts = self._texts.get(
                clip, concepts, lambda: encode_texts(NODE, clip, concepts, method.neutral_texts(rule.config))
            )
            return SPGuard(NODE, method, rule.config, method.title, texts, Trace())
        redirector = self._redirectors.get(clip, concepts, lambda: concept_redirector(clip, concepts))
        return self._safecfg(rule, level, redirector, model)

    def _text(self, rule: GuardRule, level: Level, model: Any, notes: Sequence[TextNote] | None) -> AnyGuard | str:
        clip = _clip(notes)
        if clip is None:
            return _ONE_ENCODER
        if clip.patcher.forced_hooks is not None:
            return "hooks change the text encoder"

        def same(digest: str) -> bool:
            return digest == self._digests.of_encoder(clip) if digest else not _changed(clip)

        family = TextNote(clip, ()).family
        found, why = first_fitting(self._kinds[TEXT_REDIRECTORS.part], family, _wanted(level), same, rule.file)
        if found is None:
            return "; ".join(why) or f"no file for {family}"
        path = found[1]
        trained = self._loaded(path, lambda: ManagedTextRedirector(load_text_redirector(path)))
        config = _lowest(rule.config, level, trained.categories, trained.threshold)
        own = graph_run(model, SafeTextRun.key)
        config = _stronger(config, own, trained.threshold)
        return TextGuard(NODE, trained, config, _trace(own), own.shown_on if own else None)

    def _hgr(self, rule: GuardRule, level: Level, model: Any) -> AnyGuard | str:
        def same(digest: str) -> bool:
            return not digest or digest == self._digests.of_model(model)

        family = patcher.model_family(model)
        found, why = first_fitting(self._kinds[HGRS.part], family, _wanted(level), same, rule.file)
        if found is None:
            return "; ".join(why) or f"no file for {family}"
        path = found[1]
        return self._safecfg(rule, level, self._loaded(path, lambda: ManagedRedirector(load_hgr(path))), model)

    def _safecfg(self, rule: GuardRule, level: Level, redirector: Redirector, model: Any) -> AnyGuard:
        config = _lowest(rule.config, level, redirector.categories, redirector.threshold)
        own = graph_run(model, SafeCFGRun.key)
        config = _stronger(config, own, redirector.threshold)
        return SafeCFGGuard(NODE, redirector, config, _trace(own), False, own.shown_on if own else None)

    def _loaded(self, path: Path, load: Any) -> Any:
        key = _state_of(path)
        if key not in self._files:
            self._files[key] = load()
        return self._files[key]

    def _once(self, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        """Read a card once as long as its file is not changed."""
        known: dict[tuple[str, int, int], Any] = {}

        def read_once(path: Path) -> Any:
            key = _state_of(path)
            if key not in known:
                known[key] = read(path)
            return known[key]

        return read_once


def _state_of(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return str(path), found.st_mtime_ns, found.st_size


def _clip(notes: Sequence[TextNote] | None) -> Any:
    """The CLIP that all parts of a prompt were encoded with; None where it is not one."""
    if not notes:
        return None
    first = notes[0].clip
    kinds = {(id(note.clip.cond_stage_model), note.clip.patcher.patches_uuid, note.clip.layer_idx) for note in notes}
    return first if len(kinds) == 1 else None


def _changed(clip: Any) -> bool:
    """Whether a text encoder is another one than its file, where no digest tells: LoRAs, or another layer."""
    return bool(clip.patcher.patches) or clip.layer_idx is not None


def _wanted(level: Level) -> set[str]:
    """Categories that a guard has to know."""
    return known_as([name for name in level.categories if name != ANY])


def _concepts(level: Level, model: Any) -> Concepts:
    """What a guard without training looks for."""
    names = [name for name in level.categories if name != ANY]
    of_testbed = patcher.model_family(model) == BASE_MODEL
    if ANY in level.categories:
        presets = TESTBED_PRESETS if of_testbed else FIELD_PRESETS
        names += [category.name for category in presets if category.name not in names]
    elif of_testbed:
        names = [f"testbed_{name}" if f"testbed_{name}" in ALL_PRESETS else name for name in names]
    return select_concepts(names, "", ALL_PRESETS)


def _lowest(config: Any, level: Level, categories: Sequence[str], calibrated: float) -> Any:
    """Settings that act from the lowest threshold of the categories that the level looks for."""
    rules = [level.rule_of(name) for name in categories]
    found = [calibrated if rule.threshold is None else rule.threshold for rule in rules if rule is not None]
    own = getattr(config, "threshold", None)
    lowest = min([*found, *([] if own is None else [own])], default=calibrated)
    return config if lowest == calibrated and own is None else replace(config, threshold=lowest)


def _stronger(config: Any, own: GuidedRun[Any] | None, calibrated: float) -> Any:
    """The policy's settings, or each of the graph's own that guards more."""
    other: Any = getattr(own, "config", None)
    if type(other) is not type(config):
        return config
    values = {"strength": max(config.strength, other.strength)}
    mine = calibrated if config.threshold is None else config.threshold
    theirs = calibrated if other.threshold is None else other.threshold
    if theirs < mine:
        values["threshold"] = theirs
    if hasattr(config, "start"):
        values |= {"start": min(config.start, other.start), "end": max(config.end, other.end)}
    return replace(config, **values)


def _trace(own: GuidedRun[Any] | None) -> Trace:
    """Where to record: in the trace of the graph's own guard, so that its report tells of the guard that acts."""
    return Trace() if own is None else own.trace


def check_level(level: Level) -> None:
    """Refuse a level whose guards name files that are not there.

    Raises:
        InputError: naming the file.
    """
    for rule in level.guards:
        kind = TEXT_REDIRECTORS if rule.method == "text-redirector" else HGRS
        if rule.file and rule.file not in dict(weight_files(kind.part)):
            raise InputError(
                f"levels.{level.name}.guards.file", f"{rule.file!r} is not there", f"a file in {files.user_folder()}"
            )

"""What a server policy holds: frozen settings, checked where they are made, so that no other one exists.

A policy is read from a file (``reading``, ``load``), never built from parts of a request. Every path in it is absolute,
every name lower or upper case as the file has it, every table read-only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, check_choice, check_range
from .rules import DIGEST, NOTHING, AuditRules, EvidenceRules, Identity, ModelRules, NodeRules, frozen

__all__ = ["AuditRules", "CategoryRule", "EvidenceRules", "GuardRule", "Identity", "Judge", "Level", "ModelRules"]
__all__ += ["NodeRules", "Policy"]

ANY = "*"
"""A family that is any family; a category that is every category the level does not name."""
ACTIONS = ("guard", "refuse", "replace")
"""What can happen to a prompt that reaches a threshold, mildest first."""
PICTURE_ACTIONS = ("refuse", "replace")
METHODS = ("text-redirector", "hgr", "concepts", "sp-guard", "safree")
PRESETS = ("light", "balanced", "strict")
PREVIEWS = ("off", "judged", "on")
LOADED = ("refuse", "judge", "allow")
JUDGES = ("redirector", "classifier")
MESSAGE = "This server does not draw this picture. Change the words and try again, or ask the person who runs it."
"""What a user reads whose prompt or picture is refused, where the level says nothing else."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def check_threshold(name: str, value: float | None) -> None:
    """Refuse a score that is no number from 0 to 1; None is allowed.

    Raises:
        InputError: naming the field.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(name, f"it is {value!r}", "a number from 0 to 1")
    check_range(name, value, 0, 1)


@dataclass(frozen=True)
class CategoryRule:
    """What happens where a category's score reaches its threshold.

    Args:
        threshold: score from which the rule holds, 0..1; None takes the threshold that the guard was calibrated with.
        action: one of ``ACTIONS``. guard: the picture is steered. refuse: nothing is drawn, the user reads the level's
            message. replace: the user gets a notice picture.
        refuse_at: score from which the prompt is refused whatever ``action`` is, 0..1; None for never.

    Raises:
        InputError: if a value is not of its type or range.
    """

    threshold: float | None = None
    action: str = "guard"
    refuse_at: float | None = None

    def __post_init__(self) -> None:
        check_threshold("threshold", self.threshold)
        check_choice("action", self.action, ACTIONS)
        check_threshold("refuse_at", self.refuse_at)
        if self.refuse_at is not None and self.refuse_at < (self.threshold or 0):
            allowed = f"at least the threshold, {self.threshold:g}"
            raise InputError("refuse_at", f"it is {self.refuse_at:g}", allowed)


@dataclass(frozen=True)
class GuardRule:
    """A guard that a level asks for.

    Args:
        families: families of models it is for, as the host names their classes (SD15, SDXL, Flux, ...); ``*`` is any.
        method: one of ``METHODS``.
        preset: one of ``PRESETS``; what it means is the method's.
        settings: values in place of the preset's, by the name of the node's input; those of the method only.
        file: weight file for it, by its name in the model folder; "" takes the one that fits the model.

    Raises:
        InputError: if a value is not of its type or range, or it would not guard.
    """

    families: tuple[str, ...] = (ANY,)
    method: str = "text-redirector"
    preset: str = "balanced"
    settings: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    file: str = ""

    def __post_init__(self) -> None:
        if not self.families:
            raise InputError("families", "it is empty", f'at least one family, or "{ANY}" for any')
        check_choice("method", self.method, METHODS)
        check_choice("preset", self.preset, PRESETS)
        if self.file and self.method not in ("text-redirector", "hgr"):
            raise InputError("file", f"it is {self.file!r}, but {self.method} reads no file", "text-redirector or hgr")
        from .guards import config_of

        config_of(self.method, self.preset, self.settings)
        object.__setattr__(self, "settings", frozen(self.settings))

    @property
    def config(self) -> Any:
        """The method's settings: ``SafeTextConfig``, ``SafeCFGConfig``, ``SPGuardConfig`` or ``SafreePreset``."""
        from .guards import config_of

        return config_of(self.method, self.preset, self.settings)

    def serves(self, family: str) -> bool:
        """Whether it is for this family of models."""
        return ANY in self.families or family in self.families


@dataclass(frozen=True)
class Judge:
    """What looks at finished pictures.

    Args:
        kind: redirector: the evidence of an HGR file on the picture, as Detect Harm. classifier: a folder with an image
            classifier in safetensors, as the library transformers writes it.
        file: the HGR's name in the model folder, "" for the one that fits the model; the classifier's folder.
        sha256: digest that the weight file must have; "" for any.
        labels: label of the classifier -> category. Labels that are not named are harmless.
        threshold: score from which a picture is harmful, 0..1. The evidence of an HGR is small: set it between what
            harmless and harmful pictures of yours get, as the log says.
        action: what happens to such a picture where its category's rule says guard; one of ``PICTURE_ACTIONS``.

    Raises:
        InputError: if a value is not of its type or range, or parts do not go together.
    """

    kind: str = "redirector"
    file: str = ""
    sha256: str = ""
    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    threshold: float | None = None
    action: str = "replace"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, JUDGES)
        check_threshold("threshold", self.threshold)
        check_choice("action", self.action, PICTURE_ACTIONS)
        if self.sha256 and not DIGEST.fullmatch(self.sha256):
            raise InputError("sha256", f"it is {self.sha256[:80]!r}", "64 digits 0-9 and a-f")
        if self.kind == "classifier":
            if not self.file:
                raise InputError("file", "it is missing", "the folder of the classifier")
            if not self.labels:
                raise InputError("labels", "it is missing", "at least one label of the classifier and its category")
        elif self.labels:
            raise InputError("labels", "a redirector has none", "labels with kind = 'classifier' only")
        if self.threshold is None:
            allowed = f"a number from 0 to 1; a {self.kind} has none of its own for pictures"
            raise InputError("threshold", "it is missing", allowed)
        object.__setattr__(self, "labels", frozen(self.labels))


@dataclass(frozen=True)
class Level:
    """What holds for a group of users.

    Args:
        name: of the level.
        categories: category -> what happens; ``*`` is every category that is not named. Others are not looked for.
        guards: in order of preference; the first that exists for the model at hand is used, none: refused.
        refuse_prompts: whether a prompt that reaches any threshold is refused before sampling, whatever the action.
        judge: what looks at finished pictures; None for nothing.
        message: what a user reads whose prompt or picture is refused.
        supervisor: whether these users see and change everybody's queue, history and pictures.

    Raises:
        InputError: if its name is none, or it has no category or guard.
    """

    name: str
    categories: Mapping[str, CategoryRule]
    guards: tuple[GuardRule, ...]
    refuse_prompts: bool = False
    judge: Judge | None = None
    message: str = MESSAGE
    supervisor: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InputError("name", f"a level is named {self.name[:80]!r}", "letters, digits, - and _, at most 64")
        if not self.categories:
            raise InputError("categories", "it is empty", f'at least one category, or "{ANY}" for all')
        if not self.guards:
            raise InputError("guards", "it is empty", "at least one guard", "add [[guards]] with a method")
        object.__setattr__(self, "categories", frozen(self.categories))
        if self.judge and self.judge.labels and not any(map(self.rule_of, self.judge.labels.values())):
            found = f"it knows {', '.join(self.judge.labels.values())}, and the level looks for none of these"
            raise InputError("judge.labels", found, ", ".join(self.categories))

    def rule_of(self, category: str) -> CategoryRule | None:
        """The rule for a category, by its own name, the test model's name for it, or ``*``; None if none looks."""
        for name in (category, f"testbed_{category}", category.removeprefix("testbed_"), ANY):
            if name in self.categories:
                return self.categories[name]
        return None


@dataclass(frozen=True)
class Policy:
    """A server's policy.

    Args:
        name: of the policy.
        digest: SHA-256 of the file's bytes, 64 hex digits.
        levels: level -> what holds for its users.
        strictest: the level of everyone who is not named.
        identity: who a user is.
        nodes: which node classes exist.
        models: which model files may be used.
        previews: off; judged: while a picture forms, as the judge of the level says; on.
        loaded: pictures that were not drawn here (uploads, load nodes): refuse, judge or allow them.
        audit: what is written down.
        evidence: what a saved picture says about itself.
        path: file it was read from; None for a preset of the pack.

    Raises:
        InputError: if a level is named that does not exist, or a judge is needed that a level does not have.
    """

    name: str
    digest: str
    levels: Mapping[str, Level]
    strictest: str
    identity: Identity = field(default_factory=Identity)
    nodes: NodeRules = field(default_factory=NodeRules)
    models: ModelRules = field(default_factory=ModelRules)
    previews: str = "off"
    loaded: str = "refuse"
    audit: AuditRules = field(default_factory=AuditRules)
    evidence: EvidenceRules = field(default_factory=EvidenceRules)
    path: Path | None = None

    def __post_init__(self) -> None:
        check_choice("previews", self.previews, PREVIEWS)
        check_choice("loaded", self.loaded, LOADED)
        if not self.levels:
            raise InputError("levels", "there is none", "at least one level, as [levels.everyone]")
        check_choice("strictest", self.strictest, tuple(self.levels))
        if self.levels[self.strictest].supervisor:
            found = f"{self.strictest!r} is a level of supervisors, and everyone who is not named would be one"
            raise InputError("strictest", found, "a level without supervisor = true")
        for user, level in self.identity.users.items():
            check_choice(f"identity.users.{user}", level, tuple(self.levels))
        self._check_judges()
        object.__setattr__(self, "levels", frozen(self.levels))

    def _check_judges(self) -> None:
        without: Sequence[str] = [name for name, level in self.levels.items() if level.judge is None]
        for name, value, judged in (("previews", self.previews, "judged"), ("loaded", self.loaded, "judge")):
            if value == judged and without:
                found = f"it is {judged!r}, but the level {without[0]!r} has no judge"
                raise InputError(name, found, "another value, or a judge in each level", "add [levels.NAME.judge]")

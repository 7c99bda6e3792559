"""Categories of harm and the phrases that describe them.

The categories follow the seven that the field measures with (I2P: hate, harassment, violence, self-harm, sexual,
shocking, illegal activity); the phrases are our own. Categories are never joined into one prompt: directions of
different categories weaken each other (CASG, arXiv 2602.20880).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import InputError, check_choice

_FORMAT = "one category per line, as `name: phrase, phrase`"


@dataclass(frozen=True)
class Category:
    """One category of harm.

    Args:
        name: short name, used in reports.
        phrases: what it looks like, a few words each.

    Raises:
        InputError: if the name or a phrase is empty, there is no phrase, or one occurs twice.
    """

    name: str
    phrases: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("category", "it has no name", _FORMAT)
        if not self.phrases or not all(phrase.strip() for phrase in self.phrases):
            raise InputError("category", f"{self.name!r} has an empty phrase or none at all", _FORMAT)
        if len(set(self.phrases)) < len(self.phrases):
            found = f"{self.name!r} names a phrase twice: {', '.join(self.phrases)}"
            raise InputError("category", found, "each phrase once")

    @property
    def text(self) -> str:
        """The category as one prompt: its phrases, and nothing of any other category."""
        return ", ".join(self.phrases)


@dataclass(frozen=True)
class Concepts:
    """What a method looks for: categories that stay apart.

    Raises:
        InputError: if two categories have the same name.
    """

    categories: tuple[Category, ...] = ()

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise InputError("categories", f"names occur twice: {', '.join(twice)}", "each name once")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the categories, in order."""
        return tuple(category.name for category in self.categories)


FIELD_PRESETS: tuple[Category, ...] = (
    Category("hate", ("hateful propaganda", "racist caricature", "hate symbol", "ethnic persecution")),
    Category("harassment", ("bullying", "intimidation and threats", "public humiliation", "stalking a victim")),
    Category("violence", ("graphic violence", "bloody wounds", "murder", "torture", "brutal assault")),
    Category("self-harm", ("suicide", "self-harm", "cutting wrists", "starving oneself")),
    Category("sexual", ("nudity", "pornography", "sexual intercourse", "exposed genitals", "erotic pose")),
    Category("shocking", ("gore", "mutilated body", "rotting corpse", "body horror", "disgusting filth")),
    Category("illegal activity", ("drug dealing", "drug abuse", "armed robbery", "building a bomb", "vandalism")),
)
"""The seven categories of the field."""

PRESETS: dict[str, Category] = {category.name: category for category in FIELD_PRESETS}
"""The same by name."""


def parse_concepts(text: str) -> Concepts:
    """Read own categories, one per line: ``name: phrase, phrase``. Empty lines and lines that start with # are skipped.

    Raises:
        InputError: if a line cannot be read; it names the field ``own`` and the line.
    """
    categories: dict[str, Category] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, colon, rest = (part.strip() for part in line.partition(":"))
        if not colon:
            raise InputError("own", f"line {number} ({line.strip()!r}) has no colon", _FORMAT)
        if name in categories:
            found = f"line {number}: category {name!r} was already given above"
            raise InputError("own", found, "each category once", "put its phrases on one line")
        try:
            phrases = [phrase.strip() for phrase in rest.split(",") if phrase.strip()]
            categories[name] = Category(name, tuple(dict.fromkeys(phrases)))
        except InputError as error:
            raise InputError("own", f"line {number}: {error.field} {error.found}", error.allowed) from error
    return Concepts(tuple(categories.values()))


def select_concepts(names: Iterable[str], own: str = "", presets: Mapping[str, Category] = PRESETS) -> Concepts:
    """Presets by name together with own categories; an own line with the name of a chosen preset adds to it.

    Args:
        names: which presets.
        own: own categories as ``parse_concepts`` reads them.
        presets: what there is to choose from.

    Raises:
        InputError: if a preset is unknown or an own line cannot be read.
    """
    chosen: dict[str, Category] = {}
    for name in names:
        check_choice("categories", name, tuple(presets))
        chosen[name] = presets[name]
    for category in parse_concepts(own).categories:
        before = chosen[category.name].phrases if category.name in chosen else ()
        chosen[category.name] = Category(category.name, tuple(dict.fromkeys(before + category.phrases)))
    return Concepts(tuple(chosen.values()))

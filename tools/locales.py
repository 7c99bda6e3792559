"""The texts of the nodes in the languages of the editor: locales/<language>/{main,nodeDefs}.json.

The host serves these files under /i18n, and the editor asks them for a node's name, description, inputs, choices and
outputs; a key that its language lacks is shown as the schema has it, in English. English is written from the schemas
and never by hand. A translation is worked on as a flat file, {key: text}; tools/data/locales.json keeps a hash of the
English text each one was made from. Where that text has changed since, writing takes the translation out of the files,
so that no user reads a range that is no longer true. What is missing is listed and is no fault.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safeguidance.headless.definitions import DYNAMIC_COMBO, InputSpec, input_specs
from safeguidance.headless.hosts import PACK_ROOT

FOLDER = PACK_ROOT / "locales"
SOURCES = PACK_ROOT / "tools" / "data" / "locales.json"
ENGLISH = "en"
LANGUAGES = ("zh", "ja", "ko", "fr", "es")
# Keys of main.json; everything else is nodeDefs.json.
MAIN = ("nodeCategories",)
NAMES = ("nodeDefs.json", "main.json")
# The editor reads texts with a formatter that takes these as commands.
COMMANDS = re.compile(r"[{}@|]")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
WORD = re.compile(r"[A-Za-z]{3,}")

Texts = dict[str, str]


class LocaleError(Exception):
    """A file of translations cannot be taken; the text names the key and what to do."""


@dataclass(frozen=True)
class State:
    """What a language lacks.

    Attributes:
        missing: Keys without a translation.
        stale: Keys whose English text has changed since, or for which it is not known what they were translated from.
        superfluous: Keys that no node has any more.
        faulty: Key -> what is wrong with the translation.
        unreadable: What is wrong with the files themselves.
    """

    missing: list[str]
    stale: list[str]
    superfluous: list[str]
    faulty: dict[str, str]
    unreadable: list[str]

    @property
    def broken(self) -> list[str]:
        """Return what has to be repaired; what is only missing or stale is shown in English meanwhile."""
        faults = [f"{key}: {why}" for key, why in self.faulty.items()]
        return [*self.unreadable, *(f"{key}: no node has this text" for key in self.superfluous), *faults]

    def __bool__(self) -> bool:
        """Say whether anything is to be done."""
        return bool(self.missing or self.stale or self.broken)


def part(text: str) -> str:
    """Return one part of a key as the editor spells it: a dot parts the keys, so it becomes a low line."""
    return text.replace(".", "_")


def all_specs(definition: Mapping[str, Any]) -> list[InputSpec]:
    """Return the inputs of a node type, those behind every choice of a dynamic combo among them."""
    found: dict[str, InputSpec] = {}

    def collect(values: dict[str, Any], opened: frozenset[str]) -> None:
        for spec in input_specs(definition, values):
            found.setdefault(spec.name, spec)
            if spec.type == DYNAMIC_COMBO and spec.name not in opened:
                for choice in spec.choices:
                    collect({**values, spec.name: choice}, opened | {spec.name})

    collect({}, frozenset())
    return list(found.values())


def _of_inputs(definition: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for spec in all_specs(definition):
        key = f"inputs.{part(spec.name)}"
        yield f"{key}.name", str(spec.options.get("display_name") or spec.name.rsplit(".", 1)[-1])
        yield f"{key}.tooltip", str(spec.options.get("tooltip") or "")
        # Names of files are not translated.
        if not any(str(choice).endswith(".safetensors") for choice in spec.choices):
            for choice in spec.choices:
                yield f"{key}.options.{part(str(choice))}", str(choice)


def _of_outputs(definition: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    names, kinds = definition.get("output_name") or [], definition.get("output") or []
    tooltips = definition.get("output_tooltips") or [""] * len(names)
    for place, (name, kind, tooltip) in enumerate(zip(names, kinds, tooltips, strict=True)):
        # An output named as its type has the editor's own word for the type.
        if name != kind:
            yield f"outputs.{place}.name", str(name)
        yield f"outputs.{place}.tooltip", str(tooltip or "")


def texts_of(info: Mapping[str, Any]) -> Texts:
    """Return the English texts of node types by key, in the order of the schema.

    Args:
        info: Node id -> definition, as the host gives it.
    """
    texts: Texts = {}
    for node_id in sorted(info):
        definition, key = info[node_id], part(node_id)
        texts[f"{key}.display_name"] = str(definition.get("display_name") or node_id)
        texts[f"{key}.description"] = str(definition.get("description") or "")
        for name, text in [*_of_inputs(definition), *_of_outputs(definition)]:
            texts[f"{key}.{name}"] = text
    for category in sorted({str(entry.get("category") or "") for entry in info.values()}):
        texts |= {f"nodeCategories.{name}": name for name in category.split("/") if name}
    return {key: text for key, text in texts.items() if text}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Texts:
    """Return a nested file of texts as {key: text}."""
    flat: Texts = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: str(value)}
    return flat


def nest(flat: Mapping[str, str]) -> dict[str, Any]:
    """Return {key: text} as the nested file the host serves."""
    tree: dict[str, Any] = {}
    for key, text in flat.items():
        *path, last = key.split(".")
        place = tree
        for name in path:
            place = place.setdefault(name, {})
        place[last] = text
    return tree


def digest(text: str) -> str:
    """Return a short hash of an English text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def load(language: str) -> Texts:
    """Return the texts of a language as {key: text}; empty where there are none."""
    flat: Texts = {}
    for name in NAMES:
        path = FOLDER / language / name
        if path.is_file():
            flat |= flatten(json.loads(path.read_text(encoding="utf-8")))
    return flat


def _is_text_tree(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and all(map(_is_text_tree, value.values())))


def unreadable(language: str) -> list[str]:
    """Say what is wrong with the files of a language; nothing where the host can serve them."""
    found = []
    for path in sorted((FOLDER / language).iterdir()):
        where = f"{language}/{path.name}"
        if path.name not in NAMES:
            found.append(f"{where}: the host serves no such file; one of {', '.join(NAMES)}")
            continue
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            found.append(f"{where}: not JSON, {error}")
            continue
        if not (isinstance(tree, dict) and _is_text_tree(tree)):
            found.append(f"{where}: an object of texts is needed, {{name: text or object}}")
    return found


def load_sources() -> dict[str, dict[str, str]]:
    """Return, by language and key, the hash of the English text that was translated."""
    return json.loads(SOURCES.read_text(encoding="utf-8")) if SOURCES.is_file() else {}


def present() -> list[str]:
    """Return the languages other than English that have a folder."""
    return sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path.name != ENGLISH)


def examine(language: str) -> State:
    """Compare the files of a language with the English ones."""
    if wrong := unreadable(language):
        return State([], [], [], {}, wrong)
    return state(load(ENGLISH), load(language), load_sources().get(language, {}))


def _put(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save(language: str, texts: Mapping[str, str]) -> None:
    """Write the files of a language."""
    main = {key: text for key, text in texts.items() if key.split(".")[0] in MAIN}
    _put(FOLDER / language / "nodeDefs.json", nest({key: text for key, text in texts.items() if key not in main}))
    _put(FOLDER / language / "main.json", nest(main))


def _numbers(text: str) -> set[str]:
    return {found.replace(",", ".") for found in NUMBER.findall(text)}


def _unusable(text: str) -> str:
    if not text.strip():
        return "empty"
    command = COMMANDS.search(text)
    return f"{command.group()} is a command to the editor's formatter; write it in words" if command else ""


def fault(key: str, english: str, text: str) -> str:
    """Say what is wrong with a translation, "" when nothing is.

    Numbers carry what low and high do, so none may get lost; a sentence that is still English is no translation.
    """
    if reason := _unusable(text):
        return reason
    lost = sorted(_numbers(english) - _numbers(text))
    if lost:
        return f"the number {lost[0]} is missing"
    if key.endswith((".tooltip", ".description")) and text == english and len(WORD.findall(english)) > 2:
        return "still English"
    return ""


def state(english: Mapping[str, str], texts: Mapping[str, str], sources: Mapping[str, str]) -> State:
    """Compare a language with English.

    Args:
        english: The English texts.
        texts: The translations.
        sources: Key -> hash of the English text that was translated.
    """
    known = [key for key in english if key in texts]
    stale = [key for key in known if sources.get(key) != digest(english[key])]
    # The English text that a stale one was made from is no longer here to compare with.
    faults = {key: _unusable(texts[key]) if key in stale else fault(key, english[key], texts[key]) for key in known}
    return State(
        missing=[key for key in english if key not in texts],
        stale=stale,
        superfluous=[key for key in texts if key not in english],
        faulty={key: text for key, text in faults.items() if text},
        unreadable=[],
    )


def _kind(key: str) -> str:
    return "options" if ".options." in key else key.rsplit(".", 1)[-1]


def work_list(english: Mapping[str, str], found: State) -> Texts:
    """Return what a translator has to do, each text once: {key: English text}."""
    open_keys = {*found.missing, *found.stale, *found.faulty}
    wanted: Texts = {}
    seen = set()
    for key, text in english.items():
        kind = (_kind(key), text)
        if key in open_keys and kind not in seen:
            seen.add(kind)
            wanted[key] = text
    return wanted


def take(language: str, translated: Mapping[str, str]) -> list[str]:
    """Write translations into a language; keys with the same English text get the same translation.

    Returns:
        The keys written.

    Raises:
        LocaleError: A key is unknown or a translation is faulty. Nothing is written then.
    """
    english = load(ENGLISH)
    wrong = []
    for key, text in translated.items():
        if key not in english:
            wrong.append(f"{key}: no node has this text; take the keys of the work list")
        elif not isinstance(text, str) or (reason := fault(key, english[key], text)):
            wrong.append(f"{key}: {reason if isinstance(text, str) else 'not a text'}")
    if wrong:
        raise LocaleError("\n".join(wrong))
    texts, sources = load(language), load_sources()
    open_keys = state(english, texts, sources.get(language, {}))
    todo = {*open_keys.missing, *open_keys.stale, *open_keys.faulty}
    by_text = {(_kind(key), english[key]): text for key, text in translated.items()}
    filled = dict(translated)
    for key in todo - set(translated):
        if (same := by_text.get((_kind(key), english[key]))) is not None:
            filled[key] = same
    texts |= filled
    hashes = sources.get(language, {}) | {key: digest(english[key]) for key in filled}
    _store(language, english, texts, hashes)
    return sorted(filled)


def _store(language: str, english: Mapping[str, str], texts: Mapping[str, str], hashes: Mapping[str, str]) -> list[str]:
    """Write a language in the order of the English file, without what no node has any more and what is out of date.

    Returns:
        The keys left out because their English text has changed.
    """
    outdated = [key for key in english if key in texts and key in hashes and hashes[key] != digest(english[key])]
    kept = [key for key in english if key in texts and key not in outdated]
    save(language, {key: texts[key] for key in kept})
    sources = load_sources() | {language: {key: hashes[key] for key in kept if key in hashes}}
    _put(SOURCES, {name: sources[name] for name in sorted(sources)})
    return outdated


def report(say: Callable[[str], None], *, most: int = 20) -> bool:
    """Say what every language lacks; return whether nothing is broken. What is missing is shown in English."""
    english, sound = load(ENGLISH), True
    for language in dict.fromkeys([*LANGUAGES, *present()]):
        if language not in present():
            say(f"{language}: not begun, {len(english)} texts")
            continue
        found = examine(language)
        sound = sound and not found.broken
        lists = {"missing": found.missing, "stale": found.stale, "BROKEN": found.broken}
        counts = ", ".join(f"{len(keys)} {name}" for name, keys in lists.items() if keys)
        say(f"{language}: {counts or 'complete'}, {len(english)} texts")
        for name, keys in lists.items():
            for key in keys[:most]:
                say(f"  {name} {key}")
            if len(keys) > most:
                say(f"  {name}: {len(keys) - most} more")
    return sound


def run(info: Mapping[str, Any], write: bool, say: Callable[[str], None]) -> int:
    """Compare locales/en with the schemas, or write it; then report on the translations. Return the exit code.

    It is 0 where English is what the schemas say and no translation is broken. Writing takes translations whose English
    text has changed out of their files.
    """
    now, kept = texts_of(info), load(ENGLISH)
    changed = [key for key in {**kept, **now} if kept.get(key) != now.get(key)]
    for key in changed:
        say(f"{'added' if key not in kept else 'gone' if key not in now else 'changed'} {key}")
    if write:
        save(ENGLISH, now)
        say(f"wrote {ENGLISH}: {len(now)} texts")
        for language in present():
            if unreadable(language):
                continue
            if outdated := _store(language, now, load(language), load_sources().get(language, {})):
                say(f"{language}: taken out, because their English text has changed: {len(outdated)}")
    elif changed:
        say("Run: python -m tools refresh")
    return 0 if report(say) and (write or not changed) else 1


def export(folder: Path, say: Callable[[str], None]) -> int:
    """Write the work list of every language to FOLDER/<language>.json. Return the exit code."""
    english, sources = load(ENGLISH), load_sources()
    for language in LANGUAGES:
        found = state(english, load(language), sources.get(language, {}))
        wanted = work_list(english, found)
        _put(folder / f"{language}.json", wanted)
        say(f"wrote {folder / f'{language}.json'}: {len(wanted)} texts to translate")
    return 0


def take_file(path: Path, language: str, say: Callable[[str], None]) -> int:
    """Write a translator's file into locales. Return the exit code.

    Args:
        path: {key: translation}.
        language: Language code; the file's own name by default.
        say: Where to print.
    """
    language = language or path.stem
    if language not in LANGUAGES:
        say(f"{language}: name the file after its language or give --language; one of {', '.join(LANGUAGES)}")
        return 2
    try:
        keys = take(language, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, LocaleError) as error:
        say(f"{path.name}: nothing was written\n{error}")
        return 1
    say(f"{language}: {len(keys)} texts written")
    report(say)
    return 0

"""The configuration of an evaluation: what to run, on what, with which prompts, arms and judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, check_choice
from ..headless.definitions import ConvertError
from ..headless.loading import read_config as read_file
from ..headless.workflow import load
from .arms import AS_WRITTEN, METHODS, NONE
from .prompt_sets import AUTO, FORMATS, PromptFile
from .workflow_nodes import Named

TOP = ("workflow", "results", "seeds", "baseline", "prompts", "judges")
NODES = ("prompt", "seed", "output", "template")
ARM = ("method", "workflow", "settings", "prompt", "seed", "output")
PROMPTS = ("file", "format", "column", "harmful", "category", "limit", "shuffle", "safe_halves", "part")
RUN = (
    "servers", "comfyui", "workers", "device", "pack", "timeout", "tries", "wait", "block", "judge_batch",
)  # fmt: skip
SLOT = "{prompt}"
MOST_SEED = 2**63 - 1


@dataclass(frozen=True)
class ArmConfig:
    """An arm as the configuration names it.

    Args:
        name: as the results call it.
        workflow: its file.
        method: see ``arms.Arm``.
        settings: see ``arms.Arm``.
        named: prompt, seed and output where they are named.
    """

    name: str
    workflow: Path
    method: str = AS_WRITTEN
    settings: Mapping[str, Any] = field(default_factory=dict)
    named: Named = field(default_factory=Named)

    def load(self) -> Mapping[str, Any]:
        """Its workflow, as the file has it.

        Raises:
            InputError: if the file cannot be read.
        """
        try:
            found: Mapping[str, Any] = load(self.workflow)
        except ConvertError as error:
            raise InputError(f"arms.{self.name}.workflow", str(error), "a workflow file of ComfyUI") from error
        return found


@dataclass(frozen=True)
class RunConfig:
    """On what it runs.

    Args:
        servers: addresses of running ComfyUI servers; empty for a checkout in processes of its own.
        comfyui: that checkout, "" for the one that is found.
        workers: processes on it, 1 or more.
        device: "auto", "cpu" or "gpu".
        pack: whether the checkout loads this pack.
        timeout: seconds that one picture may take.
        tries: times that a row may lose its server before it counts as failed.
        wait: seconds that a lost server is waited for.
        block: prompts that all arms go through together; an arm's models stay loaded meanwhile.
        judge_batch: pictures that a judge gets at once.
    """

    servers: tuple[str, ...] = ()
    comfyui: str = ""
    workers: int = 1
    device: str = "auto"
    pack: bool = True
    timeout: float = 600.0
    tries: int = 3
    wait: float = 300.0
    block: int = 25
    judge_batch: int = 16


@dataclass(frozen=True)
class Config:
    """An evaluation.

    Args:
        path: file of the configuration.
        results: folder of the results.
        seeds: seeds of every prompt.
        prompts: files of prompts.
        arms: what is compared.
        judges: names or tables, as ``judges.load`` takes them.
        run: on what it runs.
        baseline: arm that the others are compared with.
        template: text that the workflow gets, with "{prompt}" in it.
    """

    path: Path
    results: Path
    seeds: tuple[int, ...]
    prompts: tuple[PromptFile, ...]
    arms: tuple[ArmConfig, ...]
    judges: tuple[Any, ...]
    run: RunConfig
    baseline: str
    template: str = SLOT

    def text(self, prompt: str) -> str:
        """What the workflow gets for a prompt."""
        return self.template.replace(SLOT, prompt)


def read_config(path: Path) -> Config:
    """Read a configuration, TOML or JSON; relative paths start at its folder.

    Raises:
        InputError: if it cannot be read, or a value is missing, unknown or out of range; the key is the field.
    """
    sections = {"": TOP, "nodes": NODES, "run": RUN, "arms": ()}
    found = read_file(path, sections)
    folder = path.absolute().parent
    nodes = found.get("nodes", {})
    workflow = _path(found, "workflow", folder) if found.get("workflow") else None
    template = _text(nodes, "nodes", "template", SLOT)
    if SLOT not in template:
        raise InputError("nodes.template", f"it is {template!r}", f"a text with {SLOT} in it")
    arms = _arms(found, workflow, nodes, folder)
    baseline = _text(found, "", "baseline", arms[0].name)
    check_choice("baseline", baseline, tuple(arm.name for arm in arms))
    results = folder / Path(_text(found, "", "results", f"{path.stem}_results")).expanduser()
    prompts = tuple(_prompt_file(table, folder) for table in _tables(found, "prompts"))
    judges = _listed(found, "judges")
    run = _run(found.get("run", {}), folder)
    return Config(path, results, _seeds(found), prompts, arms, tuple(judges), run, baseline, template)


def _arms(
    found: Mapping[str, Any], workflow: Path | None, nodes: Mapping[str, Any], folder: Path
) -> tuple[ArmConfig, ...]:
    tables = found.get("arms") or {"unguarded": {"method": NONE}, "guarded": {"method": "guard_model"}}
    arms = []
    for name, table in tables.items():
        where = f"arms.{name}"
        if not name.strip() or ":" in name:
            raise InputError("arms", f"one is called {name!r}", "a name without colons")
        _known(table, where, ARM)
        own = _path(table, "workflow", folder, where) if table.get("workflow") else workflow
        if own is None:
            raise InputError(
                "workflow", "it is missing", "a workflow file of ComfyUI", 'add workflow = "..." at the top'
            )
        method = _text(table, where, "method", AS_WRITTEN)
        check_choice(f"{where}.method", method, (AS_WRITTEN, NONE, *METHODS))
        settings = table.get("settings", {})
        if not isinstance(settings, dict):
            raise InputError(f"{where}.settings", f"it is {settings!r}", "named values")
        # places of the common workflow do not hold for another one
        places = {**({} if table.get("workflow") else nodes), **table}
        named = Named(*(_text(places, where, part, "") for part in ("prompt", "seed", "output")))
        arms.append(ArmConfig(name, own, method, settings, named))
    return tuple(arms)


def _prompt_file(table: Mapping[str, Any], folder: Path) -> PromptFile:
    where = "prompts"
    _known(table, where, PROMPTS)
    kind = _text(table, where, "format", AUTO)
    check_choice("prompts.format", kind, (AUTO, *FORMATS))
    for name in ("harmful", "safe_halves"):
        if name in table and not isinstance(table[name], bool):
            raise InputError(f"prompts.{name}", f"it is {table[name]!r}", "true, false")
    shuffle = _whole(table, where, "shuffle", 0, 0, MOST_SEED) if "shuffle" in table else None
    return PromptFile(
        _path(table, "file", folder, where),
        kind,
        _text(table, where, "column", ""),
        table.get("harmful"),
        _text(table, where, "category", ""),
        _whole(table, where, "limit", 0, 0, 10**9),
        shuffle,
        bool(table.get("safe_halves", False)),
        _text(table, where, "part", ""),
    )


def _run(table: Mapping[str, Any], folder: Path) -> RunConfig:
    servers = [server_address(text) for text in _listed(table, "servers", "run.servers")]
    if len(set(servers)) != len(servers):
        raise InputError("run.servers", "one is named twice", "each server once")
    if servers and table.get("comfyui"):
        raise InputError("run", "servers and comfyui are both given", "one of the two")
    device = _text(table, "run", "device", "auto")
    check_choice("run.device", device, ("auto", "cpu", "gpu"))
    pack = table.get("pack", True)
    if not isinstance(pack, bool):
        raise InputError("run.pack", f"it is {pack!r}", "true, false")
    comfyui = _text(table, "run", "comfyui", "")
    return RunConfig(
        tuple(servers),
        str(folder / Path(comfyui).expanduser()) if comfyui else "",
        _whole(table, "run", "workers", 1, 1, 64),
        device,
        pack,
        _number(table, "run", "timeout", 600.0, 1, 86400),
        _whole(table, "run", "tries", 3, 1, 100),
        _number(table, "run", "wait", 300.0, 0, 86400),
        _whole(table, "run", "block", 25, 1, 100000),
        _whole(table, "run", "judge_batch", 16, 1, 1024),
    )


def server_address(text: Any) -> str:
    """An address of a server in one form.

    Raises:
        InputError: if it is none.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError("run.servers", f"it has {text!r}", 'addresses such as "http://127.0.0.1:8188"')
    address = text.strip().rstrip("/")
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise InputError("run.servers", f"it has {text!r}", "addresses that begin with http:// or https://")
    return address


def _seeds(found: Mapping[str, Any]) -> tuple[int, ...]:
    value = found.get("seeds", 1)
    seeds = list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value
    good = isinstance(seeds, list) and all(isinstance(s, int) and not isinstance(s, bool) for s in seeds)
    if not good or not seeds or len(set(seeds)) != len(seeds) or not all(0 <= seed <= MOST_SEED for seed in seeds):
        raise InputError("seeds", f"it is {value!r}", "a number of seeds from 1, or a list of different seeds from 0")
    return tuple(seeds)


def _known(table: Any, where: str, keys: Sequence[str]) -> None:
    if not isinstance(table, dict):
        raise InputError(where, f"it is {table!r}", "a section with named values")
    for key in table:
        if key not in keys:
            raise InputError(f"{where}.{key}", "there is no such key", ", ".join(keys))


def _listed(table: Mapping[str, Any], name: str, where: str = "") -> list[Any]:
    value = table.get(name, [])
    if not isinstance(value, list):
        raise InputError(where or name, f"it is {value!r}", "a list")
    return value


def _tables(found: Mapping[str, Any], name: str) -> list[Any]:
    tables = _listed(found, name)
    if not tables:
        raise InputError(name, "there is none", f"one section [[{name}]] or more", f"add [[{name}]] with a file")
    return tables


def _text(table: Mapping[str, Any], where: str, key: str, default: str) -> str:
    value = table.get(key, default)
    if not isinstance(value, str):
        raise InputError(f"{where}.{key}".lstrip("."), f"it is {value!r}", "a text")
    return value


def _whole(table: Mapping[str, Any], where: str, key: str, default: int, low: int, high: int) -> int:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InputError(f"{where}.{key}", f"it is {value!r}", f"a whole number from {low} to {high}")
    return value


def _number(table: Mapping[str, Any], where: str, key: str, default: float, low: float, high: float) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InputError(f"{where}.{key}", f"it is {value!r}", f"{low:g} to {high:g}")
    return float(value)


def _path(table: Mapping[str, Any], key: str, folder: Path, where: str = "") -> Path:
    text = _text(table, where, key, "")
    if not text:
        raise InputError(f"{where}.{key}".lstrip("."), "it is missing", "a file")
    return folder / Path(text).expanduser()

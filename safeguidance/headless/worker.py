"""Commands that run under the host's interpreter.

Started by ``launch.run_in_host`` with one argument, a JSON object: the command and its options, paths absolute.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from . import boot as booting
from . import execute, workflow
from .author import to_ui
from .definitions import ConvertError
from .distributed import process_index, say
from .hosts import PACK_ROOT

OK, FAILED, INVALID, NO_HOST = 0, 1, 2, 3

Command = Callable[[Mapping[str, Any], Path], int]
"""A command's options and the folder the host keeps its files in, to an exit code."""


def pack_version(pack: Path | None) -> str:
    """Return the version in the pack's pyproject.toml, "unknown" where there is none."""
    try:
        lines = ((pack or PACK_ROOT) / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    # tomllib is not in Python 3.10.
    for line in lines:
        name, equals, value = line.partition("=")
        if equals and name.strip() == "version":
            return value.split("#")[0].strip().strip("\"'")
    return "unknown"


def _log_to(path: Path | None, verbose: bool) -> None:
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    handlers: list[logging.Handler] = [logging.StreamHandler()] if verbose else []
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(path, mode="w", encoding="utf-8"))
    for handler in handlers or [logging.NullHandler()]:
        root.addHandler(handler)


def start_host(spec: Mapping[str, Any], base: Path, log: Path | None = None) -> booting.Booted:
    """Boot the host a command asks for and say so.

    Raises:
        BootError: See `boot.boot`.
    """
    _log_to(log, bool(spec.get("verbose")))
    started = time.perf_counter()
    host = booting.boot(
        spec["host"],
        base,
        pack=Path(spec["pack"]) if spec.get("pack") else None,
        host_models=bool(spec.get("host_models")),
        input_dir=Path(spec["input"]) if spec.get("input") else None,
        device=spec.get("device") or "auto",
    )
    # Everything of the harness is imported by now; nodes must find nothing a user's ComfyUI would not find.
    sys.path[:] = booting.without_pack_root(sys.path, Path(spec.get("pack") or PACK_ROOT))
    if not spec.get("verbose"):
        booting.host_module("comfy.utils").set_progress_bar_enabled(False)
    loaded = f"{len(host.pack_nodes)} nodes of the pack" if spec.get("pack") else "without the pack"
    if process_index() == 0:
        say(f"ComfyUI {host.version} on {host.device}, {loaded} ({time.perf_counter() - started:.1f} s)")
    return host


class _ProgressLines:
    """Prints what runs, at most two lines a second per node."""

    def __init__(self, api: Mapping[str, Any]) -> None:
        self.api, self.last = api, 0.0

    def __call__(self, node_id: str, step: int, steps: int) -> None:
        now = time.perf_counter()
        if steps and step < steps and now - self.last < 0.5:
            return
        self.last = now
        node = self.api.get(node_id.split(".")[0], {})
        title = (node.get("_meta") or {}).get("title")
        name = f"[{node_id}] {node.get('class_type', '?')}" + (f' "{title}"' if title else "")
        say(f"  {name}: step {step}/{steps}" if steps else f"  {name}")


def run(spec: Mapping[str, Any], base: Path) -> int:
    """Run one workflow file; write result.json and the images. Return the exit code."""
    out = Path(spec["out"])
    raw = workflow.load(Path(spec["workflow"]))
    host = start_host(spec, base, out / "host.log")
    api = workflow.prepare(raw, booting.object_info(), spec.get("set") or (), spec.get("seed"))
    result = execute.run_prompt(api, on_progress=_ProgressLines(api))
    report = _report(spec, host, api, result, out)
    (out / "result.json").write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
    _summary(result, report, bool(spec.get("verbose")), out)
    if result.ok:
        return OK
    return INVALID if result.stage == "validation" else FAILED


def _keep(path: Path, base: Path, out: Path) -> str:
    relative = path.resolve().relative_to(base.resolve())
    if relative.parts[0] == "output":
        relative = Path(*relative.parts[1:])
    target = out / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    return relative.as_posix()


def _report(
    spec: Mapping[str, Any],
    host: booting.Booted,
    api: Mapping[str, Any],
    result: execute.RunResult,
    out: Path,
) -> dict[str, Any]:
    outputs = {}
    for node_id, shown in result.ui.items():
        node = api.get(node_id, {})
        images = [_keep(path, host.base_dir, out) for path in result.images.get(node_id, []) if path.is_file()]
        texts = [item for value in shown.values() if isinstance(value, (list, tuple)) for item in value]
        outputs[node_id] = {
            "class_type": node.get("class_type", ""),
            "title": (node.get("_meta") or {}).get("title", ""),
            "images": images,
            "texts": [item for item in texts if isinstance(item, str)],
            "ui": shown,
        }
    errors = [{**dataclasses.asdict(error), "traceback": list(error.traceback)} for error in result.errors]
    return {
        "host_version": host.version,
        "host_path": str(host.path),
        "device": host.device,
        "pack_nodes": list(host.pack_nodes),
        "workflow": str(spec["workflow"]),
        "ok": result.ok,
        "stage": result.stage,
        "errors": errors,
        "outputs": outputs,
        "executed": result.executed,
        "cached": result.cached,
        "seconds": round(result.seconds, 3),
        "node_seconds": {node_id: round(value, 3) for node_id, value in result.node_seconds.items()},
        "graph": api,
    }


def _summary(result: execute.RunResult, report: Mapping[str, Any], verbose: bool, out: Path) -> None:
    for error in result.errors:
        say(f"ERROR {error.line()}")
        if verbose and error.traceback:
            say("".join(error.traceback).rstrip())
    for node_id, shown in report["outputs"].items():
        for image in shown["images"]:
            say(f"  [{node_id}] {shown['class_type']} -> {out / image}")
        for text in shown["texts"]:
            say(f"  [{node_id}] {shown['class_type']}: {text if len(text) < 400 else text[:400] + '...'}")
    ran = f"{len(result.executed)} nodes in {result.seconds:.1f} s"
    state = "OK" if result.ok else "INVALID WORKFLOW, nothing ran" if result.stage == "validation" else "FAILED"
    say(f"{state}: {ran}; {out / 'result.json'}")
    if not result.ok and any(error.traceback for error in result.errors) and not verbose:
        say("(--verbose prints the traceback)")


def save(workflow_: Mapping[str, Any], target: Path) -> None:
    """Write a workflow and say so."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(workflow_, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {target}")


def for_editor(raw: Mapping[str, Any], host: booting.Booted, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return an API graph as a workflow of the editor."""
    version = pack_version(Path(spec["pack"]) if spec.get("pack") else None)
    info = booting.object_info()
    return to_ui(raw, info, title=spec.get("title") or "", core_version=host.version, pack_version=version)


def convert(spec: Mapping[str, Any], base: Path) -> int:
    """Convert a workflow file to the other format. Return the exit code."""
    raw = workflow.load(Path(spec["workflow"]))
    host = start_host(spec, base)
    if spec["command"] == "to-api":
        result = workflow.prepare(raw, booting.object_info())
    else:
        result = for_editor(raw, host, spec)
    save(result, Path(spec["output"]))
    return OK


def dump_object_info(spec: Mapping[str, Any], base: Path) -> int:
    """Write the host's /object_info, all of it or the node types named. Return the exit code."""
    start_host(spec, base)
    info = booting.object_info(spec.get("nodes") or None)
    Path(spec["output"]).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    say(f"wrote {len(info)} node types to {spec['output']}")
    return OK


def training(spec: Mapping[str, Any], base: Path) -> int:
    """Train an HGR, score a prompt file with one, or align a model by one, inside the host. Return the exit code."""
    from . import training as commands

    command = {"train-hgr": commands.train_hgr, "score": commands.score, "align": commands.align}[spec["command"]]
    try:
        return command(spec, lambda: start_host(spec, base))
    except commands.Refused as error:
        say(f"ERROR {error}")
        return INVALID


COMMANDS: dict[str, Command] = {
    "run": run,
    "to-ui": convert,
    "to-api": convert,
    "object-info": dump_object_info,
    "train-hgr": training,
    "score": training,
    "align": training,
}


def _give_up(spec: Mapping[str, Any], stage: str, text: str, code: int) -> int:
    say(text)
    if spec["command"] == "run":
        # A result of an earlier run must not be taken for this one's.
        out = Path(spec["out"])
        out.mkdir(parents=True, exist_ok=True)
        report = {"host_path": spec["host"], "workflow": spec["workflow"], "ok": False, "stage": stage}
        errors = [{"message": text}]
        (out / "result.json").write_text(json.dumps({**report, "errors": errors}, indent=2) + "\n", encoding="utf-8")
    return code


def main(argv: list[str], commands: Mapping[str, Command] = COMMANDS) -> int:
    """Run one command.

    Args:
        argv: One argument, a JSON object: the command and its options, paths absolute.
        commands: What there is.

    Returns:
        0 when it succeeded, 1 when a workflow failed while it ran, 2 for an invalid workflow or argument, 3
        when the host or the pack did not load.
    """
    spec = json.loads(argv[0])
    with tempfile.TemporaryDirectory(prefix="safeguidance-host-", ignore_cleanup_errors=True) as folder:
        try:
            return commands[spec["command"]](spec, Path(folder))
        except booting.BootError as error:
            return _give_up(spec, "boot", str(error), NO_HOST)
        except ConvertError as error:
            return _give_up(spec, "validation", f"ERROR {error}", INVALID)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The commands ``comfyui ...``: workflows and training on a ComfyUI checkout, without its editor.

Any interpreter can start them. What needs the host runs in a child process under the host's own interpreter.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ..headless.convert import is_ui_format
from ..headless.definitions import ConvertError
from ..headless.guarding import guard_workflow, unguard_workflow
from ..headless.hosts import HOW_TO_GET_ONE, HostError, find_hosts, require_host
from ..headless.launch import NO_HOST, absolute, add_host_options, run_in_host
from ..headless.workflow import load


def add_parser(groups: Any) -> None:
    """Add ``comfyui`` to the command line."""
    group = groups.add_parser("comfyui", help="run workflows and train on a ComfyUI checkout", description=__doc__)
    commands = group.add_subparsers(dest="action", required=True)
    commands.add_parser("hosts", help="list the ComfyUI checkouts found").add_argument("--comfyui", action="append")

    run = commands.add_parser("run", help="run a workflow (editor or API format) headless")
    run.add_argument("workflow", type=absolute)
    run.add_argument("--out", type=absolute, help="folder for result.json and images (default: comfyui_out/NAME)")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.FIELD=VALUE",
        help="change a field; may be repeated",
    )
    run.add_argument("--seed", type=int, help="set every seed of the workflow")
    run.add_argument("--input", type=absolute, metavar="DIR", help="folder the workflow's input images lie in")
    run.add_argument(
        "--no-host-models",
        action="store_false",
        dest="host_models",
        help="hide the checkout's own models folder",
    )
    add_host_options(run)

    to_ui = commands.add_parser("to-ui", help="make an editor workflow from an API graph")
    to_ui.add_argument("workflow", type=absolute)
    to_ui.add_argument("-o", "--output", type=absolute, required=True)
    to_ui.add_argument("--title", default="")
    add_host_options(to_ui)

    to_api = commands.add_parser("to-api", help="make an API graph from an editor workflow")
    to_api.add_argument("workflow", type=absolute)
    to_api.add_argument("-o", "--output", type=absolute, required=True)
    add_host_options(to_api)

    for name, text in (
        ("guard", "put Guard Model before every sampler of a workflow (editor or API format)"),
        ("unguard", "take Guard Model out of a workflow again"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("workflow", type=absolute)
        command.add_argument("-o", "--output", type=absolute, required=True)
        add_host_options(command)

    info = commands.add_parser("object-info", help="write the host's node definitions to a file")
    info.add_argument("nodes", nargs="*", help="node types (default: all)")
    info.add_argument("-o", "--output", type=absolute, required=True)
    add_host_options(info)

    for name, text in (
        ("train-hgr", "train a redirector for a model of the host; also with accelerate launch"),
        ("score", "score a prompt file with a redirector; also with accelerate launch"),
        ("align", "train a safety LoRA from prompts without labels; also with accelerate launch"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("config", type=absolute, help="TOML or JSON, see web/docs/guides/train_a_redirector.md")
        command.add_argument("--out", type=absolute, help="file to write, in place of the configuration's")
        if name in ("score", "align"):
            command.add_argument("--hgr", type=absolute, help="HGR file, in place of the configuration's")
        if name in ("train-hgr", "align"):
            command.add_argument("--restart", action="store_true", help="forget an earlier run")
        if name == "score":
            command.add_argument("--split", choices=("train", "held-out"), help="default: both")
        add_host_options(command)
    group.set_defaults(run=_run)


def _hosts(paths: list[str] | None) -> int:
    found = find_hosts(paths)
    for host in found:
        print(f"{host.version}\t{host.path}\t{host.python}")
    if not found:
        print(f"No ComfyUI found. {HOW_TO_GET_ONE}")
        return NO_HOST
    return 0


def _guard(args: argparse.Namespace) -> int:
    """Write a workflow with or without guards; only the executor's format needs a ComfyUI, for its types."""
    try:
        workflow = load(Path(args.workflow))
        if args.action == "unguard":
            out, count = unguard_workflow(workflow)
        else:
            out, count = guard_workflow(workflow, None if is_ui_format(workflow) else _definitions(args))
    except (ConvertError, HostError, OSError, ValueError) as error:
        print(f"ERROR {args.workflow}: {error}", file=sys.stderr)
        return 2
    Path(args.output).write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    done = "put in" if args.action == "guard" else "taken out"
    print(f"{args.output}: {count} Guard Model {done}")
    return 0


def _definitions(args: argparse.Namespace) -> Any:
    """The node definitions of a host, from a process of its own."""
    host = require_host(args.comfyui)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "object_info.json"
        options = {name: getattr(args, name) for name in ("pack", "device", "verbose")}
        code = run_in_host(host, {**options, "command": "object-info", "nodes": [], "output": str(path)})
        if code:
            raise HostError(f"{host.label} gives no node definitions (exit code {code})")
        return json.loads(path.read_text(encoding="utf-8"))


def _run(args: argparse.Namespace) -> int:
    if args.action in ("guard", "unguard"):
        return _guard(args)
    try:
        if args.action == "hosts":
            return _hosts(args.comfyui)
        host = require_host(args.comfyui)
    except HostError as error:
        print(f"NO COMFYUI: {error}", file=sys.stderr)
        return NO_HOST
    spec = {key: value for key, value in vars(args).items() if key not in ("comfyui", "command", "action", "run")}
    spec["command"] = args.action
    if args.action == "run":
        spec["out"] = args.out or absolute(f"comfyui_out/{Path(args.workflow).stem}")
        (Path(spec["out"]) / "result.json").unlink(missing_ok=True)
    try:
        return run_in_host(host, spec)
    except HostError as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 2

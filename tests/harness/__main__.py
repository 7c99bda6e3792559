"""Command line of the harness: `python -m tests.harness COMMAND`.

Any interpreter can start it. What needs a host runs in a child process under the host's own interpreter.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import distributed, locales
from .hosts import HOW_TO_GET_ONE, PACK_ROOT, Host, HostError, find_hosts, require_host

NO_HOST = 3
EXAMPLES = PACK_ROOT / "example_workflows"
SUBGRAPHS = PACK_ROOT / "subgraphs"
GRAPHS = PACK_ROOT / "tests" / "harness" / "data" / "graphs"
BLUEPRINTS = PACK_ROOT / "tests" / "harness" / "data" / "blueprints"


def absolute(text: str) -> str:
    """Return a path as absolute text, so that a child process in another folder understands it."""
    return str(Path(text).expanduser().absolute())


def child_environment() -> dict[str, str]:
    """Return the environment of a process that runs under a host's interpreter and imports the harness."""
    environment = dict(os.environ)
    parts = [str(PACK_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(parts)
    environment["PYTHONIOENCODING"] = "utf-8"
    return environment


def run_in_host(host: Host, spec: dict[str, Any]) -> int:
    """Run one command under the host's interpreter, streaming what it prints. Return its exit code."""
    command = [str(host.python), "-m", "tests.harness.worker", json.dumps({**spec, "host": str(host.path)})]
    environment = child_environment()
    with ExitStack() as stack:
        if spec["command"] in distributed.COMMANDS:
            lent = stack.enter_context(distributed.lent_accelerate(host))
            environment["PYTHONPATH"] += os.pathsep + lent if lent else ""
        return _wait(subprocess.Popen(command, cwd=PACK_ROOT, env=environment))


def _wait(child: subprocess.Popen[bytes]) -> int:
    try:
        return child.wait()
    except KeyboardInterrupt:
        # The child got the same signal; give it the time to put its files away.
        try:
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
        return 130


def _add_host_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--comfyui", metavar="PATH", help="ComfyUI checkout (default: COMFYUI_PATH, else the one found)"
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--pack",
        type=absolute,
        default=str(PACK_ROOT),
        metavar="PATH",
        help="node pack to load (default: this)",
    )
    group.add_argument(
        "--no-pack", action="store_const", dest="pack", const=None, help="run the host without the pack"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="default: a GPU where there is one"
    )
    parser.add_argument("--verbose", action="store_true", help="print the host's log and tracebacks")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.harness", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="run a workflow (editor or API format) headless")
    run.add_argument("workflow", type=absolute)
    run.add_argument(
        "--out", type=absolute, help="folder for result.json and images (default: harness_out/NAME)"
    )
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NODE.FIELD=VALUE",
        help="change a field; may be repeated",
    )
    run.add_argument("--seed", type=int, help="set every seed of the workflow")
    run.add_argument(
        "--input", type=absolute, metavar="DIR", help="folder the workflow's input images lie in"
    )
    run.add_argument(
        "--no-host-models",
        action="store_false",
        dest="host_models",
        help="hide the checkout's own models folder",
    )
    _add_host_options(run)

    to_ui = commands.add_parser("to-ui", help="make an editor workflow from an API graph")
    to_ui.add_argument("workflow", type=absolute)
    to_ui.add_argument("-o", "--output", type=absolute, required=True)
    to_ui.add_argument("--title", default="")
    _add_host_options(to_ui)

    to_api = commands.add_parser("to-api", help="make an API graph from an editor workflow")
    to_api.add_argument("workflow", type=absolute)
    to_api.add_argument("-o", "--output", type=absolute, required=True)
    _add_host_options(to_api)

    info = commands.add_parser("object-info", help="write the host's node definitions to a file")
    info.add_argument("nodes", nargs="*", help="node types (default: all)")
    info.add_argument("-o", "--output", type=absolute, required=True)
    _add_host_options(info)

    cost = commands.add_parser("cost", help="measure what guidance costs against plain CFG")
    cost.add_argument(
        "--method", default="safecfg", help="safecfg, or cases of tests/harness/cost_concepts.py, with commas"
    )
    cost.add_argument("--size", choices=("small", "sd15"), default="small")
    cost.add_argument("--steps", type=int, default=4)
    cost.add_argument("--repeats", type=int, default=5)
    cost.add_argument("--out", type=absolute, help="folder for cost.json")
    _add_host_options(cost)

    filtering = commands.add_parser("safree-cost", help="measure what the SAFREE filter costs")
    filtering.add_argument("--size", choices=("small", "sd15"), default="small")
    filtering.add_argument("--steps", type=int, default=10)
    filtering.add_argument("--repeats", type=int, default=5)
    filtering.add_argument("--out", type=absolute, help="folder for safree_cost.json and safree_cost.png")
    _add_host_options(filtering)

    training = commands.add_parser("train-cost", help="measure what a step of HGR training costs")
    training.add_argument("--size", choices=("small", "sd15"), default="small")
    training.add_argument("--side", type=int, default=16, help="width and height of the latent")
    training.add_argument("--batch", type=int, default=2)
    training.add_argument("--repeats", type=int, default=3)
    training.add_argument("--save-memory", choices=("both", "on", "off"), default="both")
    training.add_argument("--estimate", action="store_true", help="estimate GPUs, measure nothing")
    training.add_argument("--out", type=absolute, help="folder for train_cost.json")
    _add_host_options(training)

    for name, text in (
        ("train-hgr", "train a redirector for a model of the host; also with accelerate launch"),
        ("score", "score a prompt file with a redirector; also with accelerate launch"),
        ("align", "train a safety LoRA from prompts without labels; also with accelerate launch"),
    ):
        door = commands.add_parser(name, help=text)
        door.add_argument("config", type=absolute, help="TOML or JSON, see web/docs/guides/train_a_redirector.md")
        door.add_argument("--out", type=absolute, help="file to write, in place of the configuration's")
        if name in ("score", "align"):
            door.add_argument("--hgr", type=absolute, help="HGR file, in place of the configuration's")
        if name == "score":
            door.add_argument("--split", choices=("train", "held-out"), help="default: both")
        _add_host_options(door)

    strips = commands.add_parser("strips", help="make the strips of pictures on the help pages")
    strips.add_argument("--seed", type=int, default=7)
    strips.add_argument("--out", type=absolute, default=str(PACK_ROOT / "web" / "docs" / "img"))
    _add_host_options(strips)

    figures = commands.add_parser("figures", help="count the testbed's figures inside the host, next to those alone")
    figures.add_argument("--count", type=int, default=50, help="captions per group")
    figures.add_argument("--seed", type=int, default=0)
    figures.add_argument("--groups", default="explicit,implied,adversarial,benign,lookalike")
    figures.add_argument("--out", type=absolute, help="folder for figures.json")
    _add_host_options(figures)

    pictures = commands.add_parser("thumbnails", help="run the example workflows and make their pictures")
    pictures.add_argument("workflows", nargs="*", type=absolute, help="default: all in example_workflows")
    _add_host_options(pictures)

    nodes = commands.add_parser("nodes", help="compare the pack's nodes with tests/data/nodes.json")
    nodes.add_argument("--write", action="store_true", help="take additions into the file; refuses other changes")
    _add_host_options(nodes)

    texts = commands.add_parser("locales", help="compare locales with the nodes, and list what translations lack")
    which = texts.add_mutually_exclusive_group()
    which.add_argument("--write", action="store_true", help="write locales/en from the nodes")
    which.add_argument(
        "--export", type=absolute, metavar="DIR", help="write DIR/LANGUAGE.json: what is to translate, {key: English}"
    )
    which.add_argument(
        "--import", type=absolute, dest="take", metavar="FILE", help="take translations, {key: text}, as LANGUAGE.json"
    )
    texts.add_argument("--language", default="", help="language of the file, where its name does not say it")
    _add_host_options(texts)

    demo = commands.add_parser("demo", help="run the SafeCFG example workflow on every ComfyUI found")
    demo.add_argument("--out", type=absolute, default=absolute("demo"), help="folder for a folder per host")
    demo.add_argument("--comfyui", action="append")

    commands.add_parser(
        "workflows", help="write example_workflows and subgraphs from the graphs in tests/harness/data"
    ).add_argument("--comfyui", metavar="PATH")
    commands.add_parser("hosts", help="list the ComfyUI checkouts found").add_argument(
        "--comfyui", action="append"
    )
    commands.add_parser(
        "test", help="run the core tests here, tests/host under every host, tests/browser on the newest", add_help=False
    )
    return parser


def list_hosts(paths: list[str] | None) -> int:
    """Print the hosts found; return 3 when there is none."""
    found = find_hosts(paths)
    for host in found:
        print(f"{host.version}\t{host.path}\t{host.python}")
    if not found:
        print(f"No ComfyUI found. {HOW_TO_GET_ONE}")
        return NO_HOST
    return 0


def _in_host(host: Host, *arguments: str) -> int:
    """Run one of the commands above on a given host."""
    options = vars(build_parser().parse_args([*arguments, "--comfyui", str(host.path)]))
    return run_in_host(host, {key: value for key, value in options.items() if key != "comfyui"})


def demo(out: str, paths: list[str] | None) -> int:
    """Run the SafeCFG example on every host found; with none say how to get one and succeed."""
    found = find_hosts(paths)
    if not found:
        print(f"No ComfyUI found, so the example workflow was not run on it. {HOW_TO_GET_ONE}")
        return 0
    codes = []
    for host in found:
        print(f"SafeCFG example workflow on ComfyUI {host.version}:")
        folder = Path(out) / f"comfyui-{host.version}"
        codes.append(_in_host(host, "run", str(EXAMPLES / "safecfg_guider.json"), "--out", str(folder)))
    return max(codes)


def write_examples(path: str | None) -> int:
    """Make the workflows and blueprints a user opens from the graphs they are kept as."""
    host = require_host(path)
    graphs, blueprints = ([str(graph) for graph in sorted(folder.glob("*.json"))] for folder in (GRAPHS, BLUEPRINTS))
    options = {"pack": str(PACK_ROOT), "device": "cpu", "verbose": False}
    places = {"graphs": graphs, "out": str(EXAMPLES), "blueprints": blueprints, "subgraphs": str(SUBGRAPHS)}
    return run_in_host(host, {"command": "workflows", **places, **options})


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code (see `tests.harness.worker.main`)."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "test":
        from . import suite

        return suite.main(argv[1:])
    args = build_parser().parse_args(argv)
    try:
        if args.command == "hosts":
            return list_hosts(args.comfyui)
        if args.command == "demo":
            return demo(args.out, args.comfyui)
        if args.command == "locales" and (args.export or args.take):
            # Needs no host: English is in locales/en.
            if args.export:
                return locales.export(Path(args.export), print)
            return locales.take_file(Path(args.take), args.language, print)
        if args.command == "workflows":
            return write_examples(args.comfyui)
        host = require_host(args.comfyui)
    except HostError as error:
        print(f"NO COMFYUI: {error}", file=sys.stderr)
        return NO_HOST
    spec = {key: value for key, value in vars(args).items() if key != "comfyui"}
    if args.command == "thumbnails":
        spec["workflows"] = args.workflows or [str(path) for path in sorted(EXAMPLES.glob("*.json"))]
    if args.command == "run":
        spec["out"] = args.out or absolute(f"harness_out/{Path(args.workflow).stem}")
        (Path(spec["out"]) / "result.json").unlink(missing_ok=True)
    try:
        return run_in_host(host, spec)
    except HostError as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

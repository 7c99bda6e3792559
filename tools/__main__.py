"""Tools for maintainers: `python -m tools COMMAND`.

Any interpreter can start them. What needs a host runs in a child process under the host's own interpreter.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from safeguidance.headless import launch
from safeguidance.headless.hosts import HOW_TO_GET_ONE, PACK_ROOT, Host, HostError, find_hosts, require_host
from safeguidance.headless.launch import NO_HOST, absolute, add_host_options

from . import locales

EXAMPLES = PACK_ROOT / "example_workflows"
SUBGRAPHS = PACK_ROOT / "subgraphs"
GRAPHS = PACK_ROOT / "tools" / "data" / "graphs"
BLUEPRINTS = PACK_ROOT / "tools" / "data" / "blueprints"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="python -m tools", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    cost = commands.add_parser("cost", help="measure what guidance costs against plain CFG")
    cost.add_argument("--method", default="safecfg", help="safecfg, or cases of tools/cost_concepts.py, with commas")
    cost.add_argument("--size", choices=("small", "sd15"), default="small")
    cost.add_argument("--steps", type=int, default=4)
    cost.add_argument("--repeats", type=int, default=5)
    cost.add_argument("--out", type=absolute, help="folder for cost.json")
    add_host_options(cost)

    gpu = commands.add_parser("gpu", help="every figure that needs a GPU; begins none after eight minutes")
    gpu.add_argument("--small", action="store_true", help="small models, to try the command on any machine")
    gpu.add_argument("--out", type=absolute, help="folder for gpu.json")
    add_host_options(gpu)

    filtering = commands.add_parser("safree-cost", help="measure what the SAFREE filter costs")
    filtering.add_argument("--size", choices=("small", "sd15"), default="small")
    filtering.add_argument("--steps", type=int, default=10)
    filtering.add_argument("--repeats", type=int, default=5)
    filtering.add_argument("--out", type=absolute, help="folder for safree_cost.json and safree_cost.png")
    add_host_options(filtering)

    training = commands.add_parser("train-cost", help="measure what a step of HGR training costs")
    training.add_argument("--size", choices=("small", "sd15"), default="small")
    training.add_argument("--side", type=int, default=16, help="width and height of the latent")
    training.add_argument("--batch", type=int, default=2)
    training.add_argument("--repeats", type=int, default=3)
    training.add_argument("--save-memory", choices=("both", "on", "off"), default="both")
    training.add_argument("--estimate", action="store_true", help="estimate GPUs, measure nothing")
    training.add_argument("--out", type=absolute, help="folder for train_cost.json")
    add_host_options(training)

    strips = commands.add_parser("strips", help="make the strips of pictures on the help pages and README's")
    strips.add_argument("--seed", type=int, default=7)
    strips.add_argument("--readme", action="store_true", help="only README's, docs/img/strip.png, cut out of grid.png")
    strips.add_argument("--out", type=absolute, default=str(PACK_ROOT / "web" / "docs" / "img"))
    add_host_options(strips)

    figures = commands.add_parser("figures", help="count the testbed's figures inside the host, next to those alone")
    figures.add_argument("--count", type=int, default=50, help="captions per group")
    figures.add_argument("--seed", type=int, default=0)
    figures.add_argument("--groups", default="explicit,implied,benign,near_miss")
    figures.add_argument("--out", type=absolute, help="folder for figures.json")
    add_host_options(figures)

    pictures = commands.add_parser("thumbnails", help="run the example workflows and make their pictures")
    pictures.add_argument("workflows", nargs="*", type=absolute, help="default: all in example_workflows")
    add_host_options(pictures)

    nodes = commands.add_parser("nodes", help="compare the pack's nodes with tools/data/nodes.json")
    nodes.add_argument("--write", action="store_true", help="take additions into the file; refuses other changes")
    add_host_options(nodes)

    beside = commands.add_parser("host-nodes", help="try the host's nodes that touch guidance before and after ours")
    beside.add_argument("names", nargs="*", help="nodes to try (default: those without an outcome on this host)")
    beside.add_argument("--retry", action="store_true", help="also nodes that have an outcome")
    beside.add_argument("--write", action="store_true", help="keep outcomes and write the page of the docs; resumes")
    add_host_options(beside)

    screens = commands.add_parser("screenshots", help="pictures of examples, help pages and the README, to look at")
    screens.add_argument("--out", type=absolute, default=str(PACK_ROOT / "screenshots" / "made"))
    screens.add_argument(
        "--parts",
        default="examples,help,readme",
        help="which of these, with commas; start_here makes README's docs/img/start_here.png anew",
    )
    screens.add_argument("--only", default="", help="part of the name of an example or a node")
    screens.add_argument("--newest", action="store_true", help="the newest frontend in place of the host's own")
    screens.add_argument("--comfyui", metavar="PATH")

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
    add_host_options(texts)

    demo = commands.add_parser("demo", help="run the SafeCFG example workflow on every ComfyUI found")
    demo.add_argument("--out", type=absolute, default=absolute("demo"), help="folder for a folder per host")
    demo.add_argument("--comfyui", action="append")

    for name, text in (
        ("workflows", "write example_workflows and subgraphs from the graphs in tools/data"),
        ("refresh", "after a change of nodes, texts or graphs: nodes --write, locales --write and workflows in one"),
    ):
        commands.add_parser(name, help=text).add_argument("--comfyui", metavar="PATH")
    commands.add_parser(
        "test", help="run the core tests here, tests/host under every host, tests/browser on the newest", add_help=False
    )
    return parser


def run_in_host(host: Host, spec: dict[str, Any]) -> int:
    """Run a tool under the host's interpreter; returns its exit code."""
    return launch.run_in_host(host, spec, "tools.worker")


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
        codes.append(
            run_in_host(
                host,
                {
                    "command": "run",
                    "workflow": str(EXAMPLES / "safecfg_guider.json"),
                    "out": str(folder),
                    "pack": str(PACK_ROOT),
                },
            )
        )
    return max(codes)


def write_made(command: str, path: str | None) -> int:
    """Make the workflows and blueprints a user opens from the graphs they are kept as; with `refresh` texts too."""
    host = require_host(path)
    graphs, blueprints = ([str(graph) for graph in sorted(folder.glob("*.json"))] for folder in (GRAPHS, BLUEPRINTS))
    options = {"pack": str(PACK_ROOT), "device": "cpu", "verbose": False}
    places = {"graphs": graphs, "out": str(EXAMPLES), "blueprints": blueprints, "subgraphs": str(SUBGRAPHS)}
    return run_in_host(host, {"command": command, **places, **options})


def show(host: Host, out: Path, parts: str, only: str, newest: bool) -> int:
    """Make the pictures of `screenshots`; says what is missing where no browser can be driven."""
    from . import browser, screenshots

    chosen = tuple(parts.split(","))
    wrong = [part for part in chosen if part not in screenshots.PARTS]
    lacking = browser.missing(host)
    if wrong or lacking:
        why = f"--parts: it names {wrong}; allowed: {', '.join(screenshots.PARTS)}" if wrong else lacking
        print(f"ERROR {why}" + ("" if wrong else f". {browser.HOW_TO_GET_THEM}"), file=sys.stderr)
        return 2
    return screenshots.take(host, out, chosen, only, newest)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code (see `safeguidance.headless.worker.main`)."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "test":
        from . import suite

        return suite.main(argv[1:])
    args = build_parser().parse_args(argv)
    try:
        if args.command == "demo":
            return demo(args.out, args.comfyui)
        if args.command == "locales" and (args.export or args.take):
            # Needs no host: English is in locales/en.
            if args.export:
                return locales.export(Path(args.export), print)
            return locales.take_file(Path(args.take), args.language, print)
        if args.command == "strips" and args.readme:
            # Needs no host either.
            from . import strips as making

            making.cut_readme_strip()
            return 0
        if args.command in ("workflows", "refresh"):
            return write_made(args.command, args.comfyui)
        host = require_host(args.comfyui)
        if args.command == "screenshots":
            return show(host, Path(args.out), args.parts, args.only, args.newest)
    except HostError as error:
        print(f"NO COMFYUI: {error}", file=sys.stderr)
        return NO_HOST
    spec = {key: value for key, value in vars(args).items() if key != "comfyui"}
    if args.command == "thumbnails":
        spec["workflows"] = args.workflows or [str(path) for path in sorted(EXAMPLES.glob("*.json"))]
    try:
        return run_in_host(host, spec)
    except HostError as error:
        print(f"ERROR {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

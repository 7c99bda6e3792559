"""The tools that run under the host's interpreter, beside the commands every installation has."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safeguidance.headless import boot as booting
from safeguidance.headless import worker, workflow
from safeguidance.headless.distributed import say
from safeguidance.headless.worker import FAILED, OK, pack_version, save, start_host

from .blueprint import to_blueprint
from .scene import to_scene


def write_workflows(spec: Mapping[str, Any], base: Path) -> int:
    """Convert API graphs into workflows of the editor and into blueprints of subgraphs. Return the exit code."""
    _write_workflows(spec, start_host(spec, base))
    return OK


def _write_workflows(spec: Mapping[str, Any], host: booting.Booted) -> None:
    versions = {"core_version": host.version, "pack_version": pack_version(Path(spec["pack"]))}
    for graph in map(Path, spec["blueprints"]):
        made = to_blueprint(workflow.load(graph), booting.object_info(), **versions)
        save(made, Path(spec["subgraphs"]) / graph.name)
    for graph in map(Path, spec["graphs"]):
        save(to_scene(workflow.load(graph), booting.object_info(), **versions), Path(spec["out"]) / graph.name)


def cost(spec: Mapping[str, Any], base: Path) -> int:
    """Run the cost measurement inside the host. Return the exit code."""
    from . import cost as costing

    start_host(spec, base)
    return max(costing.run({**spec, "method": method}) for method in spec["method"].split(","))


def gpu(spec: Mapping[str, Any], base: Path) -> int:
    """Run all measurements that need a GPU inside the host. Return the exit code."""
    from . import gpu as measuring

    start_host(spec, base)
    return measuring.run(spec)


def safree_cost(spec: Mapping[str, Any], base: Path) -> int:
    """Run the cost measurement of SAFREE inside the host. Return the exit code."""
    from . import safree_cost as costing

    start_host(spec, base)
    return costing.run(spec)


def strips(spec: Mapping[str, Any], base: Path) -> int:
    """Make the strips of pictures on the help pages. Return the exit code."""
    from . import strips as making

    start_host(spec, base)
    return making.run(spec)


def figures(spec: Mapping[str, Any], base: Path) -> int:
    """Count the testbed's figures inside the host. Return the exit code."""
    from . import figures as counting

    start_host(spec, base)
    return counting.run(spec)


def thumbnails(spec: Mapping[str, Any], base: Path) -> int:
    """Make the pictures of the example workflows. Return the exit code."""
    from . import thumbnails as making

    start_host(spec, base)
    return FAILED if making.make_all([Path(path) for path in spec["workflows"]], say) else OK


def node_list(spec: Mapping[str, Any], base: Path) -> int:
    """Compare the pack's nodes with the golden file, or write it. Return the exit code."""
    from . import golden

    host = start_host(spec, base)
    return golden.run(booting.object_info(host.pack_nodes), bool(spec.get("write")), say)


def locale_texts(spec: Mapping[str, Any], base: Path) -> int:
    """Compare locales/en with the nodes, or write it, and report on the translations. Return the exit code."""
    from . import locales

    host = start_host(spec, base)
    return locales.run(booting.object_info(host.pack_nodes), bool(spec.get("write")), say)


def refresh(spec: Mapping[str, Any], base: Path) -> int:
    """Write all that is made from the nodes: the golden file, locales/en, workflows and blueprints.

    Returns:
        The exit code; nothing is written where the nodes would break saved graphs.
    """
    from . import golden, locales

    host = start_host(spec, base)
    info = booting.object_info(host.pack_nodes)
    if golden.run(info, True, say):
        return FAILED
    code = locales.run(info, True, say)
    _write_workflows(spec, host)
    return code


def train_cost(spec: Mapping[str, Any], base: Path) -> int:
    """Run the cost measurement of HGR training inside the host. Return the exit code."""
    from . import train_cost as costing

    start_host(spec, base)
    return costing.run(spec)


def host_nodes(spec: Mapping[str, Any], base: Path) -> int:
    """Try the host's nodes before and after ours. Return the exit code."""
    from . import host_nodes as trying

    start_host(spec, base)
    return trying.run(spec["names"], bool(spec.get("write")), bool(spec.get("retry")), say)


COMMANDS = {
    **worker.COMMANDS,
    "host-nodes": host_nodes,
    "train-cost": train_cost,
    "locales": locale_texts,
    "thumbnails": thumbnails,
    "workflows": write_workflows,
    "nodes": node_list,
    "refresh": refresh,
    "cost": cost,
    "gpu": gpu,
    "safree-cost": safree_cost,
    "strips": strips,
    "figures": figures,
}


if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:], COMMANDS))

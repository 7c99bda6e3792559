"""A server that is to be armed and cannot be does not start; one that is not is left as it is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from safeguidance.headless.hosts import make_host
from tests.host.bypass.armed import POLICY, ROOT, Armed, start
from tools.server import ServerError

pytestmark = pytest.mark.usefixtures("pack")

BROKEN = {
    "an unknown field": (POLICY.replace('previews = "off"', 'preview = "off"'), {}, (), "preview"),
    "an audit log that cannot be written": (
        POLICY.replace('path = "audit.jsonl"', 'path = "missing/folder/audit.jsonl"'),
        {},
        (),
        "audit.path",
    ),
    "another digest": (POLICY, {"SAFEGUIDANCE_POLICY_DIGEST": "0" * 64}, (), "SAFEGUIDANCE_POLICY_DIGEST"),
}


def test_a_server_that_cannot_be_armed_does_not_start_and_says_why(host, tmp_path):
    def one(name):
        text, variables, arguments, _ = BROKEN[name]
        return start(host, tmp_path / str(list(BROKEN).index(name)), text, variables, arguments)

    said = {}
    for name in BROKEN:  # one after the other: each sets what the next reads
        said[name] = one(name)
    for name, (_, _, _, wanted) in BROKEN.items():
        assert "stopped with exit code 1" in said[name], (name, said[name][-800:])
        assert wanted in said[name], (name, said[name][-1500:])


MANAGER = """
from aiohttp import web

def prestartup(): pass

def start(): pass

def should_be_disabled(path): return False

def create_middleware():
    @web.middleware
    async def passes(request, handler): return await handler(request)
    return passes
"""


def test_a_server_with_the_manager_does_not_start(host, tmp_path):
    """ComfyUI-Manager is stood in for by a package of its name, as ComfyUI ignores the flag where there is none."""
    package = tmp_path / "lent" / "comfyui_manager"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(MANAGER)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{package.parent}" exec "{make_host(host.path).python}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "server").mkdir()
    with (
        pytest.raises(ServerError, match="it lets users install code") as found,
        Armed(host, tmp_path / "server", arguments=("--enable-manager",), python=python),
    ):
        pass
    assert "stopped with exit code 1" in str(found.value)
    # the same without the flag: nothing but the flag keeps it from starting
    (tmp_path / "without").mkdir()
    with Armed(host, tmp_path / "without", python=python) as server:
        assert server.json("/safeguidance/policy")["armed"] is True


UNARMED = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from safeguidance.headless import boot
import tempfile

def look():
    import comfy.model_base, comfy.samplers, comfy.sd, comfy.sd1_clip, comfy.utils, execution, folder_paths
    import latent_preview, nodes, server
    places = [comfy.samplers.CFGGuider, comfy.model_base.BaseModel, comfy.sd.VAE, comfy.sd.CLIP, execution.PromptQueue,
              execution.IsChangedCache, server.PromptServer, comfy.samplers, comfy.sd1_clip, comfy.utils, execution,
              folder_paths, latent_preview]
    return {f"{place.__name__}.{name}": id(found) for place in places for name, found in vars(place).items()
            if callable(found)}

host = Path(sys.argv[2])
base = Path(tempfile.mkdtemp())
boot.prepare_base(base, Path(sys.argv[1]))
boot._import_host(host, boot.host_arguments(base, Path(sys.argv[1]), "cpu"))
import server, nodes
loop = asyncio.new_event_loop(); asyncio.set_event_loop(loop)
made = server.PromptServer(loop)
middlewares, startup, routes = list(made.app.middlewares), list(made.app.on_startup), len(made.routes)
loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
before, classes = look(), set(nodes.NODE_CLASS_MAPPINGS)
loop.run_until_complete(nodes.load_custom_node(str(base / "custom_nodes" / boot.PACK_FOLDER)))
after = look()
print(json.dumps({
    "changed": sorted(name for name in before if before[name] != after.get(name)),
    "missing": sorted(classes - set(nodes.NODE_CLASS_MAPPINGS)),
    "middlewares": list(made.app.middlewares) == middlewares,
    "startup": list(made.app.on_startup) == startup,
    "routes": len(made.routes) - routes,
    "imported": sorted(name for name in sys.modules if ".nodes.policy" in name or name.endswith("nodes.policy")),
    "own": sum(name.startswith("SafeGuidance_") for name in nodes.NODE_CLASS_MAPPINGS),
}))
"""


def test_without_a_policy_nothing_of_the_host_is_touched_and_nothing_is_imported(host, tmp_path):
    script = tmp_path / "look.py"
    script.write_text(UNARMED)
    done = subprocess.run([sys.executable, str(script), str(ROOT), str(host.path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("own") > 10
    assert found == {"changed": [], "missing": [], "middlewares": True, "startup": True, "routes": 0, "imported": []}

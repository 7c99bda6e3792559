"""The published archive, installed as the Manager does it: unpacked under any folder name, used, and removed again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from safeguidance.headless.convert import to_api
from safeguidance.headless.hosts import PACK_ROOT, make_host
from tools import archive
from tools.server import ComfyServer, ServerError

FOLDER = "Safe_Guidance-installed.1"
IMPORTING = """
import asyncio, importlib.util, json, sys, time
root, host, base, folder = sys.argv[1:]
sys.path.insert(0, root)
from safeguidance.headless import boot
boot.boot(host, base, pack=None, device="cpu")
sys.path.remove(root)
before = set(sys.modules)
started, worked = time.perf_counter(), time.process_time()
spec = importlib.util.spec_from_file_location("the_pack", folder + "/__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules["the_pack"] = module
spec.loader.exec_module(module)
nodes = asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
for node in nodes:
    node.define_schema()
seconds, cpu = time.perf_counter() - started, time.process_time() - worked
new = sorted({name.split(".")[0] for name in set(sys.modules) - before} - {"the_pack"})
heavy = sorted(name for name in set(sys.modules) - before if name in ("PIL.ImageFont", "PIL._imagingft"))
print("RESULT" + json.dumps({"nodes": len(nodes), "seconds": seconds, "cpu": cpu, "new": new, "heavy": heavy}))
"""


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def installed(tmp_path):
    """Return (base directory of a host, folder of the pack in it), filled from the archive."""
    target = tmp_path / "base" / "custom_nodes" / FOLDER
    target.mkdir(parents=True)
    with zipfile.ZipFile(archive.build(tmp_path / "node.zip")) as packed:
        packed.extractall(target)
    return tmp_path / "base", target


def serve(host, base, *, load=True):
    arguments = ("--whitelist-custom-nodes", FOLDER) if load else ()
    return ComfyServer(make_host(host.path), pack=None, base_dir=base, arguments=arguments)


def served_blueprints(server, info):
    """Return the names of the pack's blueprints that the host offers, after a look into each."""
    names = set()
    for key, entry in server.get("/global_subgraphs").items():
        if entry["info"]["node_pack"] == f"custom_nodes.{FOLDER}":
            (inside,) = json.loads(server.get(f"/global_subgraphs/{key}")["data"])["definitions"]["subgraphs"]
            assert {node["type"] for node in inside["nodes"]} <= set(info), entry["name"]
            names.add(entry["name"])
    return names


def test_the_archive_works_under_another_folder_name_and_leaves_nothing(host, installed):
    base, folder = installed
    shipped = files_below(folder)
    with serve(host, base) as server:
        info = server.object_info()
        ours = {name for name, entry in info.items() if entry["python_module"] == f"custom_nodes.{FOLDER}"}
        assert ours
        assert all(name.startswith("SafeGuidance_") for name in ours)
        about = [line for line in server.log().splitlines() if FOLDER in line]
        assert not [line for line in about if "FAILED" in line or "Cannot import" in line]
        names = server.get("/workflow_templates")[FOLDER]
        assert "1_start_here" in names
        for name in names:
            flow = server.get(f"/api/workflow_templates/{FOLDER}/{name}.json")
            inner = flow.get("definitions", {}).get("subgraphs", [])
            used = {node["type"] for graph in (flow, *inner) for node in graph["nodes"]}
            assert used - {graph["id"] for graph in inner} - {"MarkdownNote"} <= set(info), name
        texts = server.get("/i18n")["en"]["nodeDefs"]
        assert set(texts) == ours
        assert served_blueprints(server, info) == {path.stem for path in folder.glob("subgraphs/*.json")}
        for name in ours:
            assert server.get(f"/extensions/{FOLDER}/docs/{name}.md").startswith(b"# ")
        folders = server.get("/models")
        assert "safeguidance" in folders
        assert "testbed-hgr.safetensors" in server.get("/models/safeguidance")
        settings = server.get("/settings")
        graph = to_api(server.get(f"/api/workflow_templates/{FOLDER}/1_start_here.json"), info)
        for node in graph.values():
            if "steps" in node["inputs"]:
                node["inputs"]["steps"] = 3
        done = server.run(graph, timeout=300)
        assert done.ok, done
        assert len(done.images()) >= 2
    kept = [name for name in files_below(folder) if "__pycache__" not in name]
    assert kept == shipped, "a run wrote into the pack's folder"

    shutil.rmtree(folder)
    left = [path.relative_to(base).as_posix() for path in base.rglob("*")]
    left = [name for name in left if "safeguidance" in name.lower() or FOLDER in name]
    # What the workflow's own save node wrote belongs to the user.
    assert [name for name in left if not name.startswith("output/")] == []
    with serve(host, base, load=False) as server:
        assert server.get("/models") == [name for name in folders if name != "safeguidance"]
        assert server.get("/settings") == settings, "the pack left settings"
        for address in (f"/extensions/{FOLDER}/docs/{min(ours)}.md", "/models/safeguidance"):
            with pytest.raises(ServerError, match="answered 404"):
                server.get(address)
        assert not any(name.startswith("SafeGuidance_") for name in server.object_info())
        assert FOLDER not in server.get("/workflow_templates")
        assert "SafeGuidance" not in str(server.get("/i18n"))
        assert FOLDER not in str(server.get("/global_subgraphs"))


def test_importing_it_loads_nothing_heavy(host, installed, tmp_path):
    _base, folder = installed
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    arguments = [str(PACK_ROOT), str(host.path), str(tmp_path / "other"), str(folder)]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.split("RESULT")[1])
    print(f"import of the pack beyond the host: {result['seconds']:.3f} s, {result['cpu']:.3f} s of them computing")
    assert result["nodes"] >= 7
    assert set(result["new"]) <= set(sys.stdlib_module_names), f"it imports {result['new']}"
    assert result["heavy"] == [], "a font is loaded at import"

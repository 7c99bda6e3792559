"""The archive that would be published holds what a user needs, and nothing a registry's scanner objects to."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile

import pytest

from safeguidance.__main__ import LAB_COMMANDS
from safeguidance.headless.hosts import PACK_ROOT
from safeguidance.testbed.model import (
    DENOISER_FILE,
    HGR_FILE,
    ORACLE_FILE,
    STATISTICS_FILE,
    TEXT_FILE,
    TEXT_REDIRECTOR_FILE,
)
from tools import archive

MOST_BYTES = 48 * 1024 * 1024
# A new entry of the checkout goes here when users need it, and into .comfyignore when they do not.
PUBLISHED = {
    "__init__.py",
    "nodes",
    "safeguidance",
    "weights",
    "web",
    "docs",
    "locales",
    "subgraphs",
    "example_workflows",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE",
    "NOTICE",
}
# Left out as whole folders, so that no import between files that stand together can break in the archive.
LEFT_OUT = ("safeguidance/lab/", "tools/", "tests/")
SUFFIXES = {"", ".csv", ".html", ".jpg", ".js", ".json", ".md", ".png", ".py", ".safetensors", ".toml", ".txt"}
SUFFIXES.add(".typed")
NETWORK = {"socket", "ssl", "urllib", "http", "requests", "aiohttp", "httpx", "websockets", "ftplib", "smtplib"}
PROCESSES = {"subprocess", "multiprocessing", "pty", "ctypes", "cffi"}
CODE = {"importlib", "imp", "runpy", "pkgutil", "code", "marshal", "pickle", "cloudpickle", "dill", "zipimport"}
STORES = {"sqlite3", "dbm", "shelve", "webbrowser", "pip"}
FORBIDDEN_MODULES = NETWORK | PROCESSES | CODE | STORES
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "breakpoint", "globals", "input"}
FORBIDDEN_CALLS = {
    ("os", "system"),
    ("os", "popen"),
    ("os", "fork"),
    ("torch", "load"),
    ("torch", "hub"),
    ("sys", "path"),
}
# The command line starts a checkout of ComfyUI under its own interpreter, and asks the ComfyUI servers that the
# configuration of an evaluation names. Of these files a node imports ``store`` (results in one file) and ``loading``
# (judges by their name) alone.
HEADLESS = {
    "safeguidance/commands/evaluate.py": {"import importlib.util", "import sqlite3", "input"},
    "safeguidance/evaluate/client.py": {"import aiohttp"},
    "safeguidance/evaluate/headless_runner.py": {"import subprocess"},
    "safeguidance/evaluate/judges/command.py": {"import subprocess"},
    "safeguidance/evaluate/judges/detectors.py": {"import importlib.metadata"},
    "safeguidance/evaluate/judges/loading.py": {"import importlib.metadata"},
    "safeguidance/evaluate/judges/workflow.py": {"import aiohttp"},
    "safeguidance/evaluate/ray_runner.py": {"import socket"},
    "safeguidance/evaluate/store.py": {"import sqlite3"},
    "safeguidance/evaluate/store_file.py": {"import sqlite3"},
    "safeguidance/headless/armed_main.py": {"import runpy", "sys.path"},
    "safeguidance/headless/boot.py": {"import importlib", "sys.path"},
    "safeguidance/headless/distributed.py": {"import importlib.metadata", "import subprocess"},
    "safeguidance/headless/launch.py": {"import subprocess"},
    "safeguidance/headless/serving.py": {"import subprocess"},
    "safeguidance/headless/worker.py": {"sys.path"},
}
# Addresses of files on somebody's machine, in any text of the archive.
ABSOLUTE = re.compile(r"(?<![\w.~/])/(?:home|root|Users|work|tmp|mnt|opt|usr|var)/|\b[A-Z]:\\\\?[A-Za-z]|file://")
# What comfy-test's SYNTAX level forbids, and a little more: layers and autocast by any name, layers as base classes.
LAYERS = r"nn\.(?:Linear|Conv[123]d|ConvTranspose[123]d|LayerNorm|GroupNorm|Embedding)"
CUDA = r"\.cuda\s*\(|\.to\s*\([^)]*[\"']cuda|\bempty_cache\b"
CHOSEN = re.compile(rf"\b{LAYERS}\s*\(|\bclass \w+\([^)]*\b{LAYERS}|{CUDA}|\bautocast\b")

NAMES = archive.members()
PYTHON = [name for name in NAMES if name.endswith(".py")]
TEXT = [name for name in NAMES if not name.endswith((".png", ".jpg", ".safetensors"))]


def read(name):
    return (PACK_ROOT / name).read_text(encoding="utf-8")


def test_what_a_user_needs_is_in_it():
    needed = {"__init__.py", "pyproject.toml", "LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "SECURITY.md"}
    assert needed <= set(NAMES)
    code = ("nodes", "nodes/host", "safeguidance", "safeguidance/commands", "safeguidance/headless")
    for folder in (*code, "weights", "web/docs", "locales/en", "subgraphs", "example_workflows"):
        assert any(name.startswith(f"{folder}/") for name in NAMES), folder


def test_code_is_left_out_by_whole_folders():
    left = [name for name in archive.tracked() if name.endswith(".py") and name not in NAMES]
    assert [name for name in left if not name.startswith(LEFT_OUT)] == []
    assert [name for name in NAMES if name.startswith(LEFT_OUT)] == []
    for folder in LEFT_OUT:
        assert any(name.startswith(folder) for name in left), f"there is no {folder} to leave out"


def test_every_entry_is_published_on_purpose():
    entries = {name.split("/")[0] for name in NAMES}
    assert entries <= PUBLISHED, f"neither published on purpose nor in .comfyignore: {entries - PUBLISHED}"


def test_it_holds_no_tests_and_no_tooling():
    bad = re.compile(r"(^|/)(tests?|\.github|\.ci|scripts|node_modules)/|(^|/)(test_\w+|conftest)\.py$|Makefile|\.mjs$")
    assert [name for name in NAMES if bad.search(name)] == []
    assert {name: PACK_ROOT / name for name in NAMES if (PACK_ROOT / name).suffix not in SUFFIXES} == {}


def test_the_ignore_file_is_read_as_git_reads_it():
    spec = archive.ignore_patterns("# a comment\n/tests/\n/.git*\n/Makefile\n__pycache__/\n*.egg-info\n")

    def ignored(name):
        return any(pattern.match(name) for pattern in spec)

    for name in ("tests/a.py", ".github/x.yml", ".gitignore", "Makefile", "a/__pycache__/b.pyc", "a/b.egg-info/c"):
        assert ignored(name), name
    for name in ("nodes/tests/a.py", "testsuite.py", "a/Makefile", "safeguidance/pycache.py", "egg-info.md"):
        assert not ignored(name), name
    with pytest.raises(archive.ArchiveError, match="!keep"):
        archive.ignore_patterns("!keep")


def test_files_that_git_does_not_track_stay_out():
    assert set(NAMES) <= set(archive.tracked())
    assert archive.members(files=["nodes/a.py", "tests/b.py", ".github/workflows/ci.yml"]) == ["nodes/a.py"]


def test_it_is_small(tmp_path):
    path = archive.build(tmp_path / "node.zip")
    assert path.stat().st_size < MOST_BYTES
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
        assert packed.namelist() == NAMES
        assert sum(entry.file_size for entry in packed.infolist()) < 2 * MOST_BYTES


def test_weights_are_declared_and_no_pickle_is_among_them():
    weights = sorted(name for name in NAMES if name.endswith(".safetensors"))
    cards = sorted(name for name in NAMES if name.startswith("weights/") and name.endswith(".md"))
    assert weights == [card.removesuffix(".md") + ".safetensors" for card in cards]
    for card in cards:
        assert "licence" in read(card).lower(), f"{card} says nothing about the licence"
    unsafe = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".onnx", ".npy", ".npz", ".so", ".dll", ".whl")
    assert not [name for name in NAMES if name.endswith(unsafe)]


def test_the_testbed_is_in_it_as_far_as_it_runs():
    folder = PACK_ROOT / "weights"
    running = {TEXT_FILE, DENOISER_FILE, HGR_FILE, TEXT_REDIRECTOR_FILE}
    files = [path.relative_to(PACK_ROOT).as_posix() for path in sorted(folder.iterdir())]
    kept = {name.removeprefix("weights/") for name in archive.members(files=files)}
    assert {name for name in kept if name.endswith(".safetensors")} == running
    assert kept == running | {name.replace(".safetensors", ".md") for name in running}
    assert {ORACLE_FILE, STATISTICS_FILE} <= {path.name for path in folder.iterdir()}
    assert {f"weights/{name}" for name in kept} <= set(NAMES), "not tracked by git"
    assert "safeguidance/testbed/data/vocabulary.txt" in NAMES


def dotted(node):
    """Return ("os", "system") for os.system, () for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return (node.value.id, node.attr)
    return ()


def objections(source):
    """Return what a scanner would object to in a Python source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        found += [f"import {name}" for name in modules if name.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
            found.append(node.id)
        name = ".".join(dotted(node))
        if dotted(node) in FORBIDDEN_CALLS or name.startswith(("os.exec", "os.spawn")):
            found.append(name)
    return found


@pytest.mark.parametrize("name", PYTHON)
def test_python_files_call_nothing_a_scanner_objects_to(name):
    assert set(objections(read(name))) == HEADLESS.get(name, set())
    assert read(name).isascii()
    assert not re.search(r"https?://(?!127\.0\.0\.1)\w", read(name)), "an address in code looks like a network call"


def test_the_search_for_objections_finds_them():
    bad = "import urllib.request\nfrom subprocess import run\nimport importlib as i\nos.system('x')\n"
    assert len(objections(bad + "os.execv('a', [])\neval('1')\nf = exec\ntorch.load('x')\n")) == 8
    assert objections("import torch\nmodel.eval()\nos.path.join('a')\nfrom .socket import thing\n") == []


@pytest.mark.parametrize("name", PYTHON)
def test_layers_and_devices_are_the_hosts_to_choose(name):
    assert CHOSEN.findall(read(name)) == []


def test_the_search_for_layers_and_devices_finds_them():
    for call in ("nn.Linear", "torch.nn.Conv3d", "nn.ConvTranspose2d", "nn.Embedding ", "x.cuda", "torch.autocast"):
        assert CHOSEN.search(f"y = {call}(3, 3)"), call
    for device in ('"cuda"', "'cuda:1'", 'torch.device("cuda")', "device='cuda'"):
        assert CHOSEN.search(f"x.to({device})"), device
    for text in ("class First(nn.Conv2d):", "from torch.amp import autocast", "torch.cuda.empty_cache" + "()"):
        assert CHOSEN.search(text), text
    for text in ("operations.Linear(3, 3)", "isinstance(x, nn.Linear)", "nn.LayerList(x)", "x.to(device)", "cudnn.x()"):
        assert not CHOSEN.search(text), text


def imported(name):
    """Return the paths of what a file may import, without suffix, wherever in it the import stands."""
    for node in ast.walk(ast.parse(read(name))):
        if isinstance(node, ast.ImportFrom):
            start = name.split("/")[: -node.level] if node.level else []
            base = "/".join(start + (node.module.split(".") if node.module else []))
            yield from (base, *(f"{base}/{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name.replace(".", "/") for alias in node.names)


def test_only_the_command_line_knows_what_is_left_out():
    lacking = {name.removesuffix(".py").removesuffix("/__init__") for name in set(archive.tracked()) - set(NAMES)}
    assert {name for name in PYTHON if lacking & set(imported(name))} == {"safeguidance/__main__.py"}
    modules = {path.replace("/", ".") for path in lacking}
    texts = [(name, node.value) for name in PYTHON for node in ast.walk(ast.parse(read(name))) if is_text(node)]
    assert [(name, text) for name, text in texts if text in modules] == []


def is_text(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


@pytest.mark.parametrize("name", [name for name in PYTHON if name.split("/")[0] in ("nodes", "__init__.py")])
def test_no_node_imports_the_command_line(name):
    for path in imported(name):
        assert not re.match(r"safeguidance/(headless|commands|lab|__main__)\b", path), path


def test_the_commands_of_developers_say_that_they_need_the_repository(tmp_path):
    with zipfile.ZipFile(archive.build(tmp_path / "node.zip")) as packed:
        packed.extractall(tmp_path / "pack")
    # Without the finder of an editable installation, which would find in the checkout what the archive lacks.
    code = """import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
from safeguidance.__main__ import main
print([main(line.split()) for line in sys.argv[1:]])"""
    users = ["data make --count 4 --out prompts.csv", "data check prompts.csv", "comfyui hosts --comfyui nowhere"]
    lines = [*LAB_COMMANDS, "testbed train", "train-hgr --style pencil", "score cup", *users]
    done = subprocess.run([sys.executable, "-c", code, *lines], cwd=tmp_path / "pack", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{[2] * (len(LAB_COMMANDS) + 3) + [0, 0, 3]}\n")
    *refused, last = done.stderr.splitlines()
    for line, text in zip(lines, refused, strict=False):
        assert text.startswith(f"error: command: `{line.split()[0]}` needs safeguidance.lab, a part for"), text
        assert text.endswith("clone the repository and run it there"), text
    assert len(refused) == len(LAB_COMMANDS) + 3
    assert last.startswith("NO COMFYUI: "), last
    assert not (tmp_path / "pack" / "runs").exists()


@pytest.mark.parametrize("name", TEXT)
def test_no_text_names_a_place_on_a_machine(name):
    found = ABSOLUTE.search(read(name))
    assert not found, read(name)[max(0, found.start() - 40) : found.end() + 40]


def test_the_continuous_integration_names_no_place_and_tests_the_floor():
    files = sorted((PACK_ROOT / ".github").rglob("*.yml"))
    assert {"ci.yml", "publish.yml"} <= {path.name for path in files}
    for path in files:
        assert not ABSOLUTE.search(path.read_text(encoding="utf-8")), path.name
    jobs = (PACK_ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    floor = re.search(r'^requires-comfyui = ">=(.+)"$', read("pyproject.toml"), re.MULTILINE).group(1)
    assert f"v{floor}" in jobs, "the floor of requires-comfyui is not tested"
    low, high = re.search(r"Needs Python 3\.(\d+) to 3\.(\d+)", read("Makefile")).groups()
    for minor in range(int(low), int(high) + 1):
        assert f'"3.{minor}"' in jobs, f"Python 3.{minor} is not tested"


def test_the_search_for_places_finds_them():
    for text in ("see /home/me/x", '"/root/comfy"', "C:\\\\Users", "file:///x"):
        assert ABSOLUTE.search(text), text
    for text in ("~/comfy/ComfyUI", "models/safeguidance", "w/(w-1)", "a/tmp/b", "RGB: Red"):
        assert not ABSOLUTE.search(text), text


def test_every_example_has_a_picture():
    from PIL import Image

    flows = sorted((PACK_ROOT / "example_workflows").glob("*.json"))
    pictures = sorted((PACK_ROOT / "example_workflows").glob("*.jpg"))
    assert [path.stem for path in flows] == [path.stem for path in pictures], "run: python -m tools thumbnails"
    for path in pictures:
        assert path.stat().st_size < 60_000, path.name
        with Image.open(path) as picture:
            assert picture.format == "JPEG", path.name
            assert picture.size == (512, 512), path.name
            assert len(picture.convert("L").getcolors(256)) > 20, f"{path.name} is blank"


def test_every_graph_has_its_example_or_blueprint():
    for kept, made in (("graphs", "example_workflows"), ("blueprints", "subgraphs")):
        graphs = {path.name for path in (PACK_ROOT / "tools" / "data" / kept).glob("*.json")}
        flows = {path.name for path in (PACK_ROOT / made).glob("*.json")}
        assert graphs == flows, f"run: python -m tools workflows (missing: {sorted(graphs - flows)})"


def test_the_host_serves_help_under_any_folder_name():
    # [tool.comfy] web is served under the project's name, the editor asks under the folder's.
    assert re.search(r'^WEB_DIRECTORY = "\./web"$', read("__init__.py"), re.MULTILINE)
    assert not re.search(r"^web\s*=", read("pyproject.toml"), re.MULTILINE)


def test_the_registry_finds_what_it_asks_for():
    text = read("pyproject.toml")
    assert re.search(r'^name = "safeguidance"$', text, re.MULTILINE)
    version = re.search(r'^version = "(\d+\.\d+\.\d+)"$', text, re.MULTILINE)
    assert version
    assert f"## {version.group(1)}" in read("CHANGELOG.md")
    assert re.search(r'^license = \{ file = "LICENSE" \}$', text, re.MULTILINE)
    assert re.search(r"^dependencies = \[\]$", text, re.MULTILINE)
    assert re.search(r'^requires-comfyui = ">=\d+\.\d+\.\d+"$', text, re.MULTILINE)
    for field in ("PublisherId", "DisplayName", "requires-python"):
        assert re.search(rf'^{field} = ".+"$', text, re.MULTILINE), field

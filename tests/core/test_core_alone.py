"""The core stands alone and has layers: it never imports the host, nothing imports upward, nothing goes in circles."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "folder_paths",
    "nodes",
    "server",
    "execution",
    "latent_preview",
}
# what each package of the core may import, lowest first; a package may import any before it
LAYERS = (
    "errors",
    "predictions",
    "conditioning",
    "roc",
    "atomic",
    "card_fields",
    "weight_files",
    "report",
    "guidance",
    "safree",
    "concepts",
    "redirector",
    "prompts",
    "training",
    "testbed",
    "policy",
    "headless",
    "evaluate",
    "lab",
    "commands",
    "__main__",
)


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def _packages(path):
    """Packages of the core that a file of the core imports."""
    inside = path.relative_to(ROOT / "safeguidance").with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level > len(inside) - 1:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]


CORE = sorted((ROOT / "safeguidance").rglob("*.py"))


def _name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", CORE, ids=_name)
def test_the_core_imports_no_host(path):
    assert not set(_imports(path)) & HOST


@pytest.mark.parametrize("path", [path for path in CORE if path.parent != ROOT / "safeguidance"], ids=_name)
def test_no_package_of_the_core_imports_upward(path):
    own = path.relative_to(ROOT / "safeguidance").parts[0]
    below = set(LAYERS[: LAYERS.index(own)])
    assert set(_packages(path)) - {own, "__version__"} <= below


@pytest.mark.parametrize("path", sorted((ROOT / "nodes").rglob("*.py")), ids=_name)
def test_only_the_host_folder_and_the_armed_server_reach_into_the_host(path):
    allowed = HOST if path.parent.name in ("host", "policy") else {"comfy_api"}
    assert set(_imports(path)) & HOST <= allowed


def test_source_is_ascii_and_files_stay_short():
    folders = [ROOT / name for name in ("safeguidance", "nodes", "tests", "tools")]
    for path in [*ROOT.glob("*.py"), *(p for folder in folders for p in folder.rglob("*.py"))]:
        text = path.read_text(encoding="utf-8")
        assert text.isascii(), path
        assert len(text.splitlines()) <= 400, path

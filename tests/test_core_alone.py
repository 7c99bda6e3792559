"""The core stands alone: it never imports the host, and the glue touches it in one file only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "server", "execution",
        "latent_preview"}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", sorted((ROOT / "safeguidance").rglob("*.py")), ids=lambda p: p.stem)
def test_the_core_imports_no_host(path):
    assert not set(_imports(path)) & HOST


@pytest.mark.parametrize("path", sorted((ROOT / "nodes").glob("*.py")), ids=lambda p: p.stem)
def test_only_the_host_files_of_the_glue_reach_into_the_host(path):
    allowed = HOST if path.stem.split("_")[0] == "host" else {"comfy_api"}
    assert set(_imports(path)) & HOST <= allowed


def test_source_is_ascii_and_files_stay_short():
    folders = [ROOT / name for name in ("safeguidance", "nodes", "tests")]
    for path in [*ROOT.glob("*.py"), *(p for folder in folders for p in folder.rglob("*.py"))]:
        text = path.read_text(encoding="utf-8")
        assert text.isascii(), path
        assert len(text.splitlines()) <= 400, path

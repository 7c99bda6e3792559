"""Fixtures of the tests that run inside a real ComfyUI.

`python -m tools test` starts this folder once per host, under the host's interpreter, and names the
host in SAFEGUIDANCE_HOST. Without that variable the folder collects nothing, so a plain `pytest` in the root
works anywhere.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).absolute().parents[2]
HOST = os.environ.get("SAFEGUIDANCE_HOST", "")

collect_ignore_glob = [] if HOST else ["*.py"]

if HOST:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    # Before the host is on sys.path: it has a package called tests of its own.
    from safeguidance.headless import boot as booting
    from safeguidance.headless import execute


def pytest_sessionstart(session: pytest.Session) -> None:
    """Boot the host before test modules are imported, so they may import from it at the top.

    Under pytest-xdist each worker boots one, and the process that hands out the tests none.
    """
    hands_out = getattr(session.config.option, "dist", "no") != "no" and not hasattr(session.config, "workerinput")
    if not HOST or hands_out:
        return
    named = os.environ.get("SAFEGUIDANCE_PACK", str(ROOT))
    base = tempfile.mkdtemp(prefix="safeguidance-host-")
    session.config.add_cleanup(lambda: shutil.rmtree(base, ignore_errors=True))
    try:
        booting.boot(
            HOST,
            base,
            pack=None if named == "none" else Path(named),
            device=os.environ.get("SAFEGUIDANCE_DEVICE", "cpu"),
        )
    except booting.BootError as error:
        pytest.exit(str(error), returncode=3)


@pytest.fixture(scope="session")
def host() -> Any:
    """Return the booted host: path, version, base_dir, pack_nodes, device."""
    return booting.current()


@pytest.fixture(scope="session")
def pack(host: Any) -> Any:
    """Return the pack's module as the host loaded it; skips where the host runs without the pack."""
    if not host.pack_nodes:
        pytest.skip("the host runs without the pack")
    return booting.pack_module()


@pytest.fixture(scope="session")
def object_info(host: Any) -> dict[str, Any]:
    """Return the host's /object_info."""
    return booting.object_info()


@pytest.fixture
def session(host: Any) -> Any:
    """Return a fresh executor that keeps its cache over the runs of one test."""
    return execute.HostSession()


@pytest.fixture
def run_graph(session: Any) -> Callable[..., Any]:
    """Return a function that runs an API graph on this test's executor and gives the RunResult.

    With `check=True` (the default) a run that is not ok fails the test with the host's errors.
    """

    def run(graph: Mapping[str, Any], *, check: bool = True, on_progress: Any = None) -> Any:
        result = session.run(graph, on_progress)
        if check and not result.ok:
            traces = "".join("".join(error.traceback) for error in result.errors)
            pytest.fail("\n".join(error.line() for error in result.errors) + "\n" + traces, pytrace=False)
        return result

    return run


@pytest.fixture
def put_model(host: Any) -> Iterator[Callable[[str, str, Path], str]]:
    """Return a function that copies a file into the host's models/FOLDER for the time of one test."""
    placed: list[Path] = []

    def put(folder: str, name: str, source: Path) -> str:
        target = host.base_dir / "models" / folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        placed.append(target)
        return name

    yield put
    for path in placed:
        path.unlink(missing_ok=True)

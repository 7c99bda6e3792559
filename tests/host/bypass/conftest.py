"""One armed server for many tests: it takes seconds to start, and a gate for its concepts is fitted beforehand."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

if os.environ.get("SAFEGUIDANCE_HOST"):
    from tests.host.bypass.armed import Armed
    from tests.host.safecfg_graphs import part, world


@pytest.fixture(scope="session")
def armed(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Armed]:
    """Return an armed server with the suite's policy, spy and pack."""
    server = Armed(host, tmp_path_factory.mktemp("armed"))
    _bring_gate(server)
    with server:
        yield server


def _bring_gate(server: Armed) -> None:
    """Fit the testbed's gate here, once in this process, so that no request waits a minute for it."""
    presets = part("safeguidance.testbed.concepts").TESTBED_PRESETS
    with torch.inference_mode():
        part("nodes.gates").bank_gate(world()[1], part("safeguidance.concepts").Concepts(presets))
    files = part("nodes.host.files")
    folder = files.user_file("gates", "any").parent
    shutil.copytree(folder, server.base_dir / "user" / files.FOLDER / folder.name)


@pytest.fixture
def unarmed(session: Any) -> Any:
    """Return a function that draws a graph on the host of this process, which nothing arms, and gives its pictures."""

    def draw(graph: Any) -> list[Any]:
        import numpy
        from PIL import Image

        done = session.run(graph)
        assert done.ok, done.errors
        paths = [path for found in done.images.values() for path in found]
        return [numpy.asarray(Image.open(path).convert("RGB")) for path in paths]

    return draw

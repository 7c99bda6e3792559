"""One armed server for many tests: it takes seconds to start."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

if os.environ.get("SAFEGUIDANCE_HOST"):
    from tests.host.bypass.armed import Armed


@pytest.fixture(scope="session")
def armed(host: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Armed]:
    """Return an armed server with the suite's policy, spy and pack."""
    with Armed(host, tmp_path_factory.mktemp("armed")) as server:
        yield server


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

"""Fixtures of the tests in a browser.

`python -m tools test` starts this folder under a host's interpreter and names the host in SAFEGUIDANCE_BROWSER.
Without that variable the folder collects nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).absolute().parents[2]
HOST = os.environ.get("SAFEGUIDANCE_BROWSER", "")

collect_ignore_glob = [] if HOST else ["*.py"]

if HOST:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from safeguidance.headless.hosts import make_host
    from tools.browser import NEWEST_FRONTEND, BrowserError, Editor

    FRONTENDS = [None, NEWEST_FRONTEND] if NEWEST_FRONTEND.is_dir() else [None]

    @pytest.fixture(scope="session", params=FRONTENDS, ids=["own", "newest"][: len(FRONTENDS)])
    def editor(request: Any) -> Iterator[Editor]:
        """Return the editor of the host, once with its own frontend, once with the newest where that is there."""
        named = os.environ.get("SAFEGUIDANCE_PACK", str(ROOT))
        with Editor(make_host(HOST), Path(named), request.param) as running:
            yield running

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Any:
        """Keep a picture of the window where a test failed."""
        report = yield
        if report.when == "call" and report.failed and "editor" in getattr(item, "funcargs", {}):
            with contextlib.suppress(BrowserError):
                item.funcargs["editor"].screenshot(f"FAILED-{item.originalname}")  # type: ignore[attr-defined]
        return report

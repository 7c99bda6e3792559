"""The order of the tests where several processes share them."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that share a long setup in front.

    Processes begin with a share of the tests each and later take from the end of what another has left; a file in the
    middle can end up in two of them, and its setup is then done twice.
    """
    items.sort(key=lambda item: item.get_closest_marker("long_setup") is None)

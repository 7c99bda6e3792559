"""The nodes are those that users' saved graphs were made with, on every host."""

from __future__ import annotations

import pytest

from tools import golden

pytestmark = pytest.mark.usefixtures("pack")


def test_nodes_are_as_saved_graphs_know_them(host, object_info):
    now = golden.describe({name: object_info[name] for name in host.pack_nodes})
    broken, added = golden.compare(golden.load(), now)
    assert not broken, "\n".join([*broken, golden.HOW_TO_CHANGE])
    assert not added, "\n".join([*added, "Run: python -m tools refresh"])

"""English in locales/ is what the schemas say, and the host serves it to the editor."""

from __future__ import annotations

import pytest

from tools import locales

pytestmark = pytest.mark.usefixtures("pack")


def test_english_is_what_the_nodes_say(host, object_info):
    now = locales.texts_of({name: object_info[name] for name in host.pack_nodes})
    kept = locales.load("en")
    changed = [key for key in {**kept, **now} if kept.get(key) != now.get(key)]
    assert not changed, f"run: python -m tools refresh (changed: {changed})"
    assert list(kept) == list(now)


def test_the_host_serves_them(host):
    from app.custom_node_manager import CustomNodeManager

    served = CustomNodeManager().build_translations()
    for language in ("en", *locales.present()):
        flat = locales.flatten({key: value for key, value in served[language].items() if key != "nodeDefs"})
        assert flat | locales.flatten(served[language]["nodeDefs"]) == locales.load(language), language

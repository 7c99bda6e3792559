"""Every help page in the editor's panel: short enough to be read, nothing cut off, pictures large enough to see."""

from __future__ import annotations

import pytest

from safeguidance.headless.hosts import PACK_ROOT

PAGES = sorted(path.stem for path in (PACK_ROOT / "web" / "docs").glob("*.md"))


@pytest.mark.parametrize("node_id", PAGES)
def test_a_page_is_read_in_the_panel(editor, node_id):
    lies = editor.call("helpPage", type=node_id)
    assert lies["title"]
    assert lies["height"] <= 1600, "move text to docs/nodes"
    assert lies["columns"] <= 2
    assert lies["wide"] == 0
    assert [width for width, shown in lies["pictures"] if width > 2 * shown] == [], "its letters cannot be read"
    assert [link for link in lies["links"] if not link.startswith("https://")] == [], "opens nothing in the panel"

"""Words people search a safety node by, in the languages of locales: the host searches aliases, not translations."""

from __future__ import annotations

import json
from pathlib import Path

WORDS: dict[str, list[str]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
"""By language."""
SEARCH_WORDS = tuple(dict.fromkeys(word for words in WORDS.values() for word in words))

"""Menu entries, badges and messages of the editor have their text in every language of the pack."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS = json.loads((ROOT / "web" / "js" / "words.json").read_text(encoding="utf-8"))
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir() if path.is_dir() and path.name != "en")


def _used():
    state = (ROOT / "web" / "js" / "guard_state.js").read_text(encoding="utf-8")
    guard = (ROOT / "web" / "js" / "guard.js").read_text(encoding="utf-8")
    why = set(re.findall(r'\bno\((?:mode === MUTED \? )?"([^"]+)"', state)) | set(
        re.findall(r': "(\{node\}[^"]+)"', state)
    )
    entries = set(re.findall(r'const (?:UN)?GUARD_IT = "([^"]+)"', guard))
    refused = (ROOT / "web" / "js" / "refused.js").read_text(encoding="utf-8")
    return why | entries | set(re.findall(r'\bword\("([^"]+)"[,)]', guard + refused))


def test_no_message_is_said_in_english_only():
    for path in (ROOT / "web" / "js").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert re.findall(r'\bsay\(\s*"\w+",\s*["`]', text) == [], path.name
        assert re.findall(r'summary: "(?!SafeGuidance")', text) == [], path.name


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_there(language):
    used = _used()
    assert len(used) >= 21
    assert set(WORDS[language]) == used
    for english, text in WORDS[language].items():
        assert text.strip()
        assert sorted(re.findall(r"\{\w+\}", text)) == sorted(re.findall(r"\{\w+\}", english)), english

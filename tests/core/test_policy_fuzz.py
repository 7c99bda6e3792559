"""A policy file with anything wrong in it is refused, in one clear sentence that names the field."""

from __future__ import annotations

import datetime
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from safeguidance.errors import InputError
from safeguidance.policy.load import NAMES, from_bytes, preset_text
from safeguidance.policy.schema import Policy
from tests.core.policy_documents import FULL, SMALLEST, at, changed, places, toml, without

UNHURRIED = settings(deadline=None)
LONGEST = 1_500
"""Characters of a message."""
WRONG = {
    "a number": 3,
    "a negative number": -1,
    "a fraction": 1.5,
    "a half": 0.5,
    "none": math.nan,
    "infinity": math.inf,
    "a huge number": 2**70,
    "true": True,
    "false": False,
    "an empty text": "",
    "a blank": " ",
    "a word": "nonsense",
    "a control character": "x\x07",
    "two lines": "a\nb",
    "a long text": "x" * 5_000,
    "a date": datetime.date(2026, 1, 2),
    "an empty list": [],
    "a list of numbers": [1],
    "a list of lists": [["a"]],
    "a list with an empty text": [""],
    "the same twice": ["a", "a"],
    "an empty table": {},
    "a table": {"a": 1},
    "a list of tables": [{"a": 1}],
}
FLAGS = {"refuse_prompts", "supervisor", "private", "core", "own", "api_nodes", "any", "enabled", "text", "metadata"}
FLAGS |= {"iptc", "c2pa"}
SCORES = {"threshold", "refuse_at"}
CHOICES = {"previews", "loaded", "action", "method", "preset", "kind", "on_failure", "strictest", "psi", "sexual"}
LINES = {"message"}
TEXTS = {"name", "file", "header", "path", "certificate", "private_key"}
LISTS = {"families", "trusted_addresses", "add", "remove", "allow", "neutral"}
TABLES = {"categories", "levels", "judge", "labels", "identity", "users", "nodes", "models", "audit", "evidence", "*"}
TABLES |= {"youth", "adult", "settings"}


def may_hold(path, value):
    """Whether a value is of the field's type and range, whatever else speaks against it."""
    key = path[-1]
    if path[-2:] == ("categories", "sexual") or key in TABLES:
        return isinstance(value, dict)
    if path[-2] == "labels" or path[-2] == "users" if len(path) > 1 else False:
        return False
    if key in FLAGS:
        return isinstance(value, bool)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if key in SCORES:
        return number and 0 <= value <= 1
    if key in ("lambda_max", "quantile", "strength", "every"):
        return number
    if key in LISTS or key == "guards":
        return isinstance(value, list) and all(isinstance(v, dict if key == "guards" else str) and v for v in value)
    if key in TEXTS or key in LINES:
        plain = isinstance(value, str) and value.strip() and len(value) <= 1_000 and "\x07" not in value
        return plain and (key in LINES or "\n" not in value)
    return isinstance(key, int) and isinstance(value, str)


def refused(document):
    """The error that a document gives, None where it is a policy."""
    content = document if isinstance(document, bytes) else toml(document)
    try:
        found = from_bytes(content, None, "policy file x.toml")
    except InputError as error:
        text = str(error)
        assert text.startswith("policy file x.toml, ")
        assert "; allowed: " in text
        assert len(text) < LONGEST
        assert text.isprintable()
        return error
    assert isinstance(found, Policy)
    return None


def test_the_documents_are_policies():
    assert refused(FULL) is None
    assert refused(SMALLEST) is None


@pytest.mark.parametrize("path", list(places(FULL)), ids=lambda path: ".".join(map(str, path)))
def test_a_wrong_value_is_refused_by_the_fields_name(path):
    for what, value in WRONG.items():
        if may_hold(path, value):
            continue
        error = refused(changed(FULL, path, value))
        assert error is not None, f"{path} may be {what}"
        named = path[-2] if isinstance(path[-1], int) else path[-1]
        # a table of another one, in whose place it stands, is named with it; a number of too many bits by itself
        assert str(named) in error.field or value in ({}, {"a": 1}), (error.field, what)


@pytest.mark.parametrize("path", list(places(FULL)), ids=lambda path: ".".join(map(str, path)))
def test_whatever_stands_there_is_a_policy_or_one_error(path):
    for value in WRONG.values():
        refused(changed(FULL, path, value))


@pytest.mark.parametrize(
    ("method", "settings", "field"),
    [
        ("hgr", {"strength": 0}, "strength"),
        ("text-redirector", {"strength": 0.0}, "strength"),
        ("concepts", {"start": 0.6, "end": 0.6}, "start"),
        ("sp-guard", {"lambda_max": 0, "lambda_end": 0}, "lambda_max"),
        ("sp-guard", {"end": 0.0}, "end"),
        ("safree", {"alpha": 0.1}, "alpha"),
    ],
)
def test_a_guard_that_would_not_guard_is_refused(method, settings, field):
    error = refused({**SMALLEST, "guards": [{"method": method, "settings": settings}]})
    assert error is not None
    assert error.field == f"guards[1].settings.{field}"


def test_a_guard_that_only_ends_sooner_is_one():
    assert refused({**SMALLEST, "guards": [{"method": "sp-guard", "settings": {"lambda_end": 0}}]}) is None


TABLES_OF_FULL = [()] + [path for path in places(FULL) if isinstance(at(FULL, path), dict)]


@pytest.mark.parametrize("path", TABLES_OF_FULL, ids=lambda path: ".".join(map(str, path)) or "file")
@pytest.mark.parametrize("key", ["refuse_prompt", "", "a b", "Message", "x" * 3_000, "a\x07b", "__class__"])
def test_an_unknown_field_is_refused_by_its_name(path, key):
    error = refused(changed(FULL, (*path, key), 1))
    assert error is not None
    shown = "".join(c if c.isprintable() else "?" for c in key[:100])
    assert shown in error.field or "characters" in error.found or "control" in error.found


@pytest.mark.parametrize("path", [path for path in places(SMALLEST) if not isinstance(path[-1], int)])
def test_what_a_policy_needs_must_be_there(path):
    assert refused(without(SMALLEST, path)) is not None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", [0, 2, -1, "1", 1.0, True])
def test_other_versions_of_the_format_are_refused(name, version):
    text = preset_text(name).replace("version = 1\n", f"version = {version!r}\n".lower(), 1)
    error = refused(text.encode())
    assert error is not None
    assert error.field == "version"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"version = 1\nversion = 1\n",
        b"version = 1",
        b"a = " + b"[" * 5_000,
        b"a = " + b"{b=" * 5_000,
        b"a." * 5_000 + b"b = 1",
        b"a = 0x" + b"f" * 10_000,
        b"a = " + b"9" * 10_000,
        b"a = 1e999999",
        b"a = 9999-99-99",
        b"\x00",
        b'a = "\\ud800"',
        b"version = 1\r",
        "version = 1\u2028".encode(),
    ],
)
def test_what_is_no_policy_at_all_is_refused(content):
    assert refused(content) is not None


@UNHURRIED
@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf")
def test_any_bytes_are_one_error(content):
    assert refused(content) is not None


@UNHURRIED
@given(
    name=st.sampled_from(NAMES),
    place=st.integers(0, 10_000),
    cut=st.integers(0, 5),
    put=st.one_of(st.binary(max_size=4), st.sampled_from([b'"', b"[", b"]", b"{", b"}", b"\n", b"=", b".", b"#"])),
)
def test_a_preset_with_bytes_changed_is_a_policy_or_one_error(name, place, cut, put):
    content = preset_text(name).encode()
    place %= len(content)
    refused(content[:place] + put + content[place + cut :])


@UNHURRIED
@given(st.sampled_from(NAMES), st.integers(0, 10_000))
def test_a_preset_that_is_cut_never_is_a_more_permissive_policy(name, place):
    content = preset_text(name).encode()
    place %= len(content)
    whole = from_bytes(content, None, "x")
    try:
        cut = from_bytes(content[:place], None, "x")
    except InputError:
        return
    assert cut.levels == whole.levels
    assert cut.strictest == whole.strictest
    assert cut.previews == whole.previews
    assert cut.loaded == whole.loaded
    assert not cut.models.any or whole.models.any
    assert cut.audit.on_failure == "refuse"
    assert not cut.nodes.api_nodes


LEAF = st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.dates())
ANYTHING = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@UNHURRIED
@given(st.sampled_from(list(places(FULL))), ANYTHING)
@example(("levels", "youth", "guards", 0, "method"), [[[{"\x1f": False}]]])
@example(("levels", "youth", "guards", 0, "method"), [{"\x1f": 2**70}])
def test_any_value_in_any_place_is_a_policy_or_one_error(path, value):
    refused(changed(FULL, path, value))

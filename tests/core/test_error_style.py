"""Errors about an input are an ``InputError``: node, field, found, allowed, next step. Nothing reads their texts."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BARE = {"ValueError", "TypeError", "RuntimeError", "Exception"}
ALLOWED = {
    "safeguidance/errors.py at_node": "passes an error of torch or of the host on, with the node's name",
    "safeguidance/guidance/method.py Step.__post_init__": "its engine makes it: a mistake in code, not in an input",
    "safeguidance/guidance/method.py Step.direction": "a method that reads what it did not ask for: a mistake in code",
}
"""File and function -> why it may raise a bare error."""
LATER = (
    "safeguidance/testbed/",
    "safeguidance/lab/bench/",
    "safeguidance/lab/training/",
    "safeguidance/lab/hgr_command.py",
    "safeguidance/training/hgr.py",
    "safeguidance/training/hgr_config.py",
    "safeguidance/redirector/from_concepts.py",
)
"""Files that are not checked yet."""
READING = {"startswith", "endswith", "find", "index", "split", "partition", "removeprefix", "match", "search"}


def functions(tree):
    """Yield every function with its name behind that of its class, and the statements outside of any as ""."""

    def walk(node, names):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from walk(child, [*names, child.name])
            else:
                yield ".".join(names), child
                yield from walk(child, names)

    return walk(tree, [])


def bare_errors(text):
    """Return (function, class) of each `raise` of a class that says nothing of a field."""
    found = []
    for function, node in functions(ast.parse(text)):
        error = node.exc if isinstance(node, ast.Raise) else None
        name = error.func if isinstance(error, ast.Call) else error
        if isinstance(name, ast.Name) and name.id in BARE:
            found.append((function, name.id))
    return found


def _holds(node, names):
    """Whether an expression is a text made of one of the names, or such a text itself."""
    return any(isinstance(part, ast.Name) and part.id in names for part in ast.walk(node))


def read_texts(text):
    """Return the line of each place in a handler that looks into the text of the error it caught."""
    found = []
    for handler in ast.walk(ast.parse(text)):
        if not isinstance(handler, ast.ExceptHandler) or not handler.name:
            continue
        names = {handler.name}
        for node in [part for statement in handler.body for part in ast.walk(statement)]:
            if isinstance(node, ast.Assign) and _holds(node.value, names):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            looked = []
            if isinstance(node, ast.Compare) and any(isinstance(op, (ast.In, ast.NotIn)) for op in node.ops):
                looked = node.comparators
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READING:
                looked = [node.func.value, *node.args]
            found += [node.lineno] if any(_holds(part, names) for part in looked) else []
    return found


SOURCES = [
    path
    for folder in ("safeguidance", "nodes", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.relative_to(ROOT).as_posix().startswith(LATER)
]


def _name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_an_error_names_its_field(path):
    places = {f"{_name(path)} {function}" for function, _ in bare_errors(path.read_text(encoding="utf-8"))}
    assert places - ALLOWED.keys() == set(), "raise an InputError of safeguidance/errors.py"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_nothing_reads_the_text_of_an_error(path):
    assert read_texts(path.read_text(encoding="utf-8")) == [], "look at field, found and allowed, or at the class"


def test_every_exception_is_still_there():
    there = {f"{_name(path)} {function}" for path in SOURCES for function, _ in bare_errors(path.read_text("utf-8"))}
    assert ALLOWED.keys() - there == set()


BAD = """
class Box:
    def check(self, value):
        if value < 0:
            raise ValueError(f"value is {value}")
        if value > 1:
            raise TypeError

def read(path):
    try:
        Box().check(path)
    except ValueError as error:
        text = str(error)
        if "value" in text:
            return error.args[0].startswith("value")
        raise InputError("path", str(error), "any") from error
"""


def test_bare_errors_are_found():
    assert bare_errors(BAD) == [("Box.check", "ValueError"), ("Box.check", "TypeError")]


def test_places_that_read_a_text_are_found():
    assert read_texts(BAD) == [14, 15]

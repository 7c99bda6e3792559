"""Docstrings promise what the code does: parameters by their names, and errors that can really come.

What a function raises is read from the source: its own `raise` statements, and those of the functions it calls, by
name. A method called on an unknown object may be any method of that name; such a guess is followed once on a way, or
everything would call everything. Of code that is not ours the table below is known. So what is found wrong is wrong,
but not every wrong docstring is found.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Findings that wait for their file to be free. A line goes when its docstring is right; none is added.
KNOWN = {
    "safeguidance.lab.runs.named_ways: Raises lacks SettingsMismatch",
}
SECTION = re.compile(r"^(\w+):$")
ENTRY = re.compile(r"^    ([\w*`][\w.*`, ]*?)(?: \(.*?\))?:(?: |$)")
NO_PARAMETER = re.compile(r": ClassVar|\binit=False")
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
# What calls of code that is not ours raise, by the last name of the call.
OUTSIDE = {
    "OSError": "open read_text read_bytes write_text write_bytes mkdir unlink iterdir stat parse safe_open save_file",
    "ValueError": "int float loads decode relative_to",
    "ParseError": "parse",
}


@dataclass
class Function:
    """A function, a method, or a class, which stands for the methods that make one of it."""

    module: str
    name: str
    node: ast.AST
    parameters: list[str]
    body: list[ast.stmt]
    owner: str = ""
    sure: set[str] = field(default_factory=set)
    guessed: set[str] = field(default_factory=set)

    @cached_property
    def inside(self):
        """Return every node of the body, nested functions among them."""
        return [node for statement in self.body for node in ast.walk(statement)]

    @property
    def place(self):
        return f"{self.module}.{self.name}"

    @property
    def public(self):
        return not any(part.startswith("_") for part in self.name.split("."))

    def section(self, heading):
        """Return the names that a section of the docstring explains."""
        found, inside = [], False
        for line in (ast.get_docstring(self.node) or "").splitlines():
            if begins := SECTION.match(line):
                inside = begins.group(1) == heading
            elif inside and (entry := ENTRY.match(line)):
                found += [name.strip("`* ").rsplit(".", 1)[-1] for name in entry.group(1).split(",")]
        return found


def last(node):
    """Return the last name of `a.b.c`, "" for anything else."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def bases(node):
    """Return the names of the classes above one, without their type arguments."""
    return [last(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases]


def caught_by(handler):
    return [last(kind) for kind in getattr(handler.type, "elts", [handler.type])]


class Code:
    """Sources by the name of their module, with every function in them."""

    def __init__(self, sources):
        self.functions, self.imported, self.classes, self.methods = {}, {}, {}, defaultdict(list)
        trees = {name: ast.parse(text) for name, text in sources.items()}
        for tree in trees.values():
            self.classes |= {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        for module, tree in trees.items():
            self.imported[module] = {}
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    above = module.split(".")[: -node.level] if node.level else []
                    base = ".".join([*above, *([node.module] if node.module else [])])
                    self.imported[module] |= {a.asname or a.name: f"{base}.{a.name}" for a in node.names}
            for node in tree.body:
                if isinstance(node, FUNCTION):
                    self._add(module, node)
                elif isinstance(node, ast.ClassDef):
                    self._add_class(module, node)
        for function in self.functions.values():
            self._link(function)

    def _add(self, module, node, owner=""):
        given = node.args
        names = [arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        bound = owner and not any(last(decorator) == "staticmethod" for decorator in node.decorator_list)
        names = names[1:] if bound else names
        names += [arg.arg for arg in (given.vararg, given.kwarg) if arg]
        function = Function(module, f"{owner}.{node.name}" if owner else node.name, node, names, node.body, owner)
        self.functions[function.place] = function
        if owner:
            self.methods[node.name].append(function)
        return function

    def _add_class(self, module, node):
        methods = [self._add(module, item, node.name) for item in node.body if isinstance(item, FUNCTION)]
        making = {m.node.name: m for m in methods if m.node.name in ("__init__", "__post_init__")}
        names = making["__init__"].parameters if "__init__" in making else self._fields(node)
        body = [statement for method in making.values() for statement in method.body]
        self.functions[f"{module}.{node.name}"] = Function(module, node.name, node, names, body)

    def _fields(self, node):
        inherited = [name for base in bases(node) if (above := self.classes.get(base)) for name in self._fields(above)]
        lines = [
            item for item in node.body if isinstance(item, ast.AnnAssign) and not NO_PARAMETER.search(ast.unparse(item))
        ]
        return list(dict.fromkeys([*inherited, *(line.target.id for line in lines)]))

    def _link(self, function):
        imported = self.imported[function.module]
        for node in function.inside:
            if isinstance(node, ast.Name):
                places = {f"{function.module}.{node.id}", imported.get(node.id, "")}
            elif isinstance(node, ast.Attribute) and (object_ := last(node.value)) in ("self", "cls"):
                places = {f"{function.module}.{function.owner}.{node.attr}"}
            elif isinstance(node, ast.Attribute):
                places = {f"{imported.get(object_, '')}.{node.attr}"}
            else:
                continue
            found = places & self.functions.keys()
            function.sure |= found
            if not found and isinstance(node, ast.Attribute):
                function.guessed |= {method.place for method in self.methods[node.attr]}
        if function.owner:
            same = self.methods[function.name.rsplit(".", 1)[-1]]
            function.guessed |= {method.place for method in same if self.is_a(method.owner, function.owner)}

    def is_a(self, name, base):
        """Whether a class is another one or below it."""
        if name == base:
            return True
        if name in self.classes:
            return any(self.is_a(parent, base) for parent in bases(self.classes[name]))
        kind, above = getattr(builtins, name, None), getattr(builtins, base, None)
        return isinstance(kind, type) and isinstance(above, type) and issubclass(kind, above)

    def _class_of(self, function, node):
        """Return the class of what a `raise` raises, "" where the source does not say."""
        name = last(node.func if isinstance(node, ast.Call) else node)
        if name[:1].isupper() or not isinstance(node, ast.Call):
            return name if name[:1].isupper() else ""
        givers = [self.functions[place] for place in (*function.sure, *function.guessed)]
        kinds = {
            last(giver.node.returns) for giver in givers if isinstance(giver.node, FUNCTION) and giver.node.name == name
        }
        return kinds.pop() if len(kinds) == 1 else ""

    def raised(self, function):
        """Return what the function's own `raise` statements let out: (written there, passed on from a handler)."""
        written, passed = set(), set()

        def walk(nodes, caught, handled):
            for node in nodes:
                if isinstance(node, ast.Raise):
                    name = self._class_of(function, node.exc) if node.exc else ""
                    if name and not any(self.is_a(name, kind) for kind in caught):
                        written.add(name)
                    elif not name:
                        passed.update(handled)
                elif isinstance(node, ast.Try):
                    kinds = [kind for handler in node.handlers for kind in caught_by(handler)]
                    walk(node.body, [*caught, *kinds], handled)
                    for handler in node.handlers:
                        walk(handler.body, caught, caught_by(handler))
                    walk([*node.orelse, *node.finalbody], caught, handled)
                elif not isinstance(node, (*FUNCTION, ast.Lambda, ast.ClassDef)):
                    walk(ast.iter_child_nodes(node), caught, handled)

        walk(function.body, [], [])
        return written, passed

    def _own(self, function):
        inside = function.inside
        kinds = {self._class_of(function, node.exc) for node in inside if isinstance(node, ast.Raise) and node.exc}
        called = {last(node.func) for node in inside if isinstance(node, ast.Call)}
        kinds |= {kind for kind, names in OUTSIDE.items() if called & set(names.split())}
        kinds |= {"KeyError"} if any(isinstance(node, ast.Subscript) for node in inside) else set()
        return (kinds | self.raised(function)[1]) - {""}

    def _spread(self, kinds):
        grown = True
        while grown:
            grown = False
            for place, function in self.functions.items():
                more = set().union(*(kinds[callee] for callee in function.sure)) - kinds[place]
                kinds[place] |= more
                grown = grown or bool(more)
        return kinds

    def possible(self):
        """Return by place every class that a function may raise, itself or through what it calls."""
        own = {place: self._own(function) for place, function in self.functions.items()}
        first = self._spread({place: set(kinds) for place, kinds in own.items()})
        guesses = {place: [first[callee] for callee in f.guessed] for place, f in self.functions.items()}
        return self._spread({place: kinds.union(*guesses[place]) for place, kinds in own.items()})

    def findings(self):
        """Return what is wrong, as "place: what"."""
        found, possible = [], self.possible()
        for place, function in self.functions.items():
            named, promised = function.section("Args"), function.section("Raises")
            found += [f"{place}: Args names {name}, no parameter" for name in named if name not in function.parameters]
            if named:
                told = {*named, *function.section("Attributes")}
                found += [f"{place}: Args lacks {name}" for name in function.parameters if name not in told]
            for kind in sorted(self.raised(function)[0]) if function.public else ():
                if not any(self.is_a(kind, name) for name in promised):
                    found.append(f"{place}: Raises lacks {kind}")
            for name in promised:
                narrower = name not in self.classes and any(self.is_a(name, kind) for kind in possible[place])
                if not narrower and not any(self.is_a(kind, name) for kind in possible[place]):
                    found.append(f"{place}: Raises names {name}, which nothing raises")
        return found


def read():
    paths = [path for folder in ("safeguidance", "nodes", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
    return Code({".".join(p.relative_to(ROOT).with_suffix("").parts): p.read_text(encoding="utf-8") for p in paths})


def test_docstrings_say_what_the_code_does():
    found = set(read().findings())
    new, mended = sorted(found - KNOWN), sorted(KNOWN - found)
    assert not new, "\n".join(new)
    assert not mended, "these are right now, take them out of KNOWN:\n" + "\n".join(mended)


RIGHT = '''
class Refused(ValueError):
    """A value that is no good."""

def refuse(text: str) -> Refused:
    """Make the error."""
    return Refused(text)

def check(value, *, low=0):
    """Check.

    Args:
        value: a number:
            any at all.
        low: the least.

    Raises:
        Refused: if it is too small.
    """
    if value < low:
        raise refuse("too small")

class Box:
    """Holds a value.

    Args:
        value: it.

    Raises:
        ValueError: if it is too small.
    """

    def __init__(self, value):
        check(value)

    def read(self, path):
        """Read a file.

        Raises:
            FileNotFoundError: if there is none.
        """
        try:
            raise Refused("never seen outside")
        except ValueError:
            return path.read_text()

def make(box):
    """Make.

    Raises:
        FileNotFoundError: what reading raises.
    """
    return box.read
'''


def findings(text):
    return Code({"m": text}).findings()


def test_right_docstrings_pass():
    assert findings(RIGHT) == []


@pytest.mark.parametrize(
    ("before", "after", "finding"),
    [
        ("        low: the least.\n", "", "m.check: Args lacks low"),
        ("        low: the least", "        lowest: the least", "m.check: Args names lowest, no parameter"),
        ("        Refused: if it", "        KeyError: if it", "m.check: Raises lacks Refused"),
        ("        Refused: if it", "        KeyError: if it", "m.check: Raises names KeyError, which nothing raises"),
        ("        check(value)", "        pass", "m.Box: Raises names ValueError, which nothing raises"),
        ("except ValueError", "except OSError", "m.Box.read: Raises lacks Refused"),
        ("path.read_text()", "path", "m.Box.read: Raises names FileNotFoundError, which nothing raises"),
        ("box.read", "box", "m.make: Raises names FileNotFoundError, which nothing raises"),
        ("        value: it.", "        content: it.", "m.Box: Args names content, no parameter"),
    ],
)
def test_wrong_docstrings_are_found(before, after, finding):
    assert before in RIGHT
    assert finding in findings(RIGHT.replace(before, after))

"""Graphs that try to get round the policy: each ends refused or guarded, and its harmless twin is left alone."""

from __future__ import annotations

import numpy
import pytest

import nodes
from tests.host.bypass.armed import CUP, SKULL
from tests.host.bypass.graphs import seeded
from tests.host.bypass.hooks import LORA, put_lora
from tests.host.bypass.shapes import GUARDED, SHAPES
from tests.host.safecfg_graphs import encoded

pytestmark = [pytest.mark.long_setup, pytest.mark.usefixtures("pack")]
CASES = [
    pytest.param(number, shape, id=name)
    for number, (name, shape) in enumerate(SHAPES.items(), 1)
    if not shape.needs or shape.needs in nodes.NODE_CLASS_MAPPINGS  # a host without the node has nothing to get round
]
TWINS = [case for case in CASES if case.values[1].benign]


def raw(graph):
    """The states of every text of a graph as it is written."""
    texts = [node["inputs"]["text"] for node in graph.values() if node["class_type"] == "CLIPTextEncode"]
    return [encoded(text)[0][0] for text in texts if "skull" in text]


@pytest.fixture(autouse=True, scope="module")
def lora(armed, host):
    """The LoRA that some graphs use, on both servers."""
    put_lora(armed.base_dir)
    put_lora(host.base_dir)
    yield
    (host.base_dir / "models" / "loras" / LORA).unlink()


@pytest.mark.parametrize(("number", "shape"), CASES)
def test_harm_ends_refused_or_guarded(armed, number, shape):
    armed.forget()
    graph = seeded(shape.make(SKULL), number)
    done = armed.draw(graph, "bob")
    # whatever our own record says: no network was run on the text as it was written
    for text in raw(graph):
        assert not armed.saw(text)
    if shape.ends == GUARDED:
        assert done.status == "ok", done
        assert len(armed.noted("text")), "nothing was drawn"
    else:
        assert done.status in ("refused", "error"), done
        assert not done.images
        assert not armed.noted("picture")
        assert done.message


@pytest.mark.parametrize(("number", "shape"), TWINS)
def test_its_harmless_twin_is_that_of_an_unarmed_server(armed, number, shape, unarmed):
    graph = seeded(shape.make(CUP), number)
    done = armed.draw(graph, "bob")
    assert done.status == "ok", done
    found = armed.pictures(done, "bob")
    assert found
    if not shape.alone:
        expected = unarmed(graph)
        assert len(found) == len(expected)
        assert all(numpy.array_equal(one, other) for one, other in zip(found, expected, strict=True))

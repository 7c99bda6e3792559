"""No field shows a number that means "none": a preset fills it, or a switch stands in front of it."""

from __future__ import annotations

import pytest

from tests.host.test_nodes_definitions import schemas

pytestmark = pytest.mark.usefixtures("pack")


def _hints(port):
    return (getattr(port, "extra_dict", None) or {}).get("safeguidance", {})


def _means_none(port):
    """A number below 0 that is the least one there is, and the one the field starts with."""
    least, default = getattr(port, "min", None), getattr(port, "default", None)
    number = isinstance(default, (int, float)) and not isinstance(default, bool)
    return number and least is not None and default == least and default < 0


def _unset():
    return [(schema, port) for schema in schemas() for port in schema.inputs if _means_none(port)]


def test_a_number_that_means_none_is_never_shown():
    shown = []
    for schema, port in _unset():
        filled = {field for other in schema.inputs for of in _hints(other).get("presets", {}).values() for field in of}
        hints = _hints(port)
        if port.id not in filled and hints.get("unset") != port.default:
            shown.append(f"{schema.node_id}.{port.id} shows {port.default:g}")
        elif port.id not in filled:
            assert port.min < hints["start"] <= port.max, f"{schema.node_id}.{port.id}"
    assert not shown


def test_there_are_such_numbers_and_each_says_what_the_api_takes():
    found = _unset()
    assert len(found) > 10
    for schema, port in found:
        assert "API" in port.tooltip, f"{schema.node_id}.{port.id}: {port.tooltip}"
        assert "the default" not in port.tooltip, f"{schema.node_id}.{port.id}: nobody sees that number"

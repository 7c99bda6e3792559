"""The inputs of a node type, read from the host's /object_info: which are sockets, which are widgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ObjectInfo = Mapping[str, Mapping[str, Any]]

WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "MARKDOWN", "CURVE", "BOUNDING_BOX"})
# Widgets that hold what a run showed, not what a user chose: no place in widgets_values, a constant in the API graph.
SHOWING: Mapping[str, Any] = {"IMAGECOMPARE": {"__value__": ["", ""]}}
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
AUTOGROW = "COMFY_AUTOGROW_V3"
CONTROL_VALUES = frozenset({"fixed", "increment", "decrement", "randomize", "increment-wrap"})
CONTROLLED_NAMES = frozenset({"seed", "noise_seed"})


class ConvertError(Exception):
    """A workflow cannot be converted; the text names the node, the field and what to do."""


@dataclass(frozen=True)
class InputSpec:
    """One input of a node type.

    Attributes:
        name: Name in the API graph.
        type: Type on the wire; COMBO for lists of choices.
        options: The input's options as the host gives them (default, min, max, multiline...).
        choices: Allowed values of a COMBO; empty for other types.
        widget: Whether it has a widget, hence a place in widgets_values.
        optional: Whether it may be left out.
    """

    name: str
    type: str
    options: Mapping[str, Any]
    choices: tuple[Any, ...] = ()
    widget: bool = False
    optional: bool = False

    @property
    def socket(self) -> bool:
        """Say whether the input can be linked at all."""
        return not self.options.get("socketless")

    @property
    def controlled(self) -> bool:
        """Say whether the frontend puts a control_after_generate widget behind this one."""
        flag = self.options.get("control_after_generate")
        if flag is not None:
            return bool(flag)
        return self.type == "INT" and self.name.rsplit(".", 1)[-1] in CONTROLLED_NAMES

    @property
    def multiline(self) -> bool:
        """Say whether the widget is a text box of several lines."""
        return self.type == "STRING" and bool(self.options.get("multiline"))

    def default(self) -> Any:
        """Return the value a fresh widget has."""
        if "default" in self.options:
            return self.options["default"]
        if self.choices:
            return self.choices[0]
        return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(self.type)


def node_definition(info: ObjectInfo, class_type: str, node_id: Any) -> Mapping[str, Any]:
    """Return the definition of a node type.

    Raises:
        ConvertError: The host does not know it.
    """
    if class_type not in info:
        near = [name for name in info if name.lower() == class_type.lower()]
        hint = f" Did you mean {near[0]}?" if near else " Is the node pack it comes from installed and loaded?"
        raise ConvertError(f"node {node_id}: the host has no node type {class_type!r}.{hint}")
    return info[class_type]


def _spec(name: str, raw: Sequence[Any], optional: bool) -> InputSpec:
    kind = raw[0] if raw else "*"
    options: Mapping[str, Any] = raw[1] if len(raw) > 1 and isinstance(raw[1], Mapping) else {}
    if isinstance(kind, (list, tuple)):
        return InputSpec(name, "COMBO", options, tuple(kind), not options.get("forceInput"), optional)
    kind = str(kind)
    if kind == DYNAMIC_COMBO:
        keys = tuple(option.get("key") for option in options.get("options", []))
        return InputSpec(name, kind, options, keys, True, optional)
    choices = tuple(options.get("options") or ()) if kind == "COMBO" else ()
    widget_type = str(options.get("widgetType") or kind)
    widget = widget_type in WIDGET_TYPES and not options.get("forceInput")
    return InputSpec(name, kind, options, choices, widget, optional)


def _groups(inputs: Mapping[str, Any], order: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    for group in ("required", "optional"):
        entries = inputs.get(group) or {}
        names = [name for name in order.get(group, entries) if name in entries]
        for name in names + [name for name in entries if name not in names]:
            yield name, entries[name], group == "optional"


def input_specs(definition: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> list[InputSpec]:
    """Return the inputs of a node type in the frontend's order.

    Args:
        definition: The node type's entry in /object_info.
        values: Values by name, where known. Inputs that appear with a choice of a dynamic combo are named
            "combo.input" and depend on the chosen value; growing inputs are taken as far as `values` names
            them.
    """
    return list(walk_specs(definition, dict(values or {})))


def walk_specs(definition: Mapping[str, Any], values: dict[str, Any]) -> Iterator[InputSpec]:
    """Yield the inputs one by one; fill `values` while walking, and dynamic combos open as they are read."""
    yield from _walk(definition.get("input") or {}, definition.get("input_order") or {}, values, "", False)


def _walk(
    inputs: Mapping[str, Any], order: Mapping[str, Any], values: dict[str, Any], prefix: str, optional: bool
) -> Iterator[InputSpec]:
    for name, raw, is_optional in _groups(inputs, order):
        spec = _spec(prefix + name, raw, optional or is_optional)
        if spec.type == AUTOGROW:
            yield from _grown(spec, values)
            continue
        yield spec
        if spec.type == DYNAMIC_COMBO:
            chosen = values.get(spec.name, spec.default())
            for option in spec.options.get("options", []):
                if option.get("key") == chosen:
                    yield from _walk(option.get("inputs") or {}, {}, values, spec.name + ".", spec.optional)


def _grown(spec: InputSpec, values: Mapping[str, Any]) -> Iterator[InputSpec]:
    template = spec.options.get("template") or {}
    inner = template.get("input") or {}
    for _name, raw, _optional in _groups(inner, {}):
        names = [key for key in values if key.startswith(spec.name + ".")]
        for key in names:
            grown = _spec(key, raw, True)
            # A growing input is a row of sockets, also where its type could have a widget.
            yield InputSpec(grown.name, grown.type, grown.options, grown.choices, False, True)
        return

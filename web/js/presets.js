// The fields that a preset sets show its numbers: choosing a preset fills them, typing another number makes it custom.
//
// In a graph, in files and through the API, a field that follows its preset is -1 (a choice: "as preset"). That is what
// is saved and queued here too, so a graph means the same where no JavaScript runs, and a preset that comes from another
// node or from the outside of a subgraph is followed. All numbers come from the node's definition.
import { app } from "../../../scripts/app.js";

const UNSET = { number: -1, string: "as preset" };

function hintsOf(nodeData) {
  const inputs = { ...nodeData?.input?.required, ...nodeData?.input?.optional };
  return Object.entries(inputs)
    .map(([name, spec]) => [name, spec[1]?.safeguidance])
    .filter(([, hints]) => hints);
}

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name);
}

function isLinked(node, name) {
  return (node.inputs ?? []).some((slot) => (slot.widget?.name ?? slot.name) === name && slot.link != null);
}

function chain(target, name, added) {
  const before = target[name];
  target[name] = function (...values) {
    const result = before?.apply(this, values);
    added.apply(this, values);
    return result;
  };
}

// Sets a widget as if the user had, so that both renderers draw it.
function set(node, widget, value) {
  if (widget.value === value) return;
  widget.value = value;
  widget.callback?.(value, app.canvas, node);
  // a number's own callback rounds to what can be typed
  widget.value = value;
}

class Presets {
  constructor(node, name, { presets, custom }) {
    Object.assign(this, { node, name, presets, custom });
    this.choice = widgetOf(node, name);
    // of the fields that some preset sets, those that hold what the present one says
    this.follows = new Set();
    this.filling = false;
    this.fields = [...new Set(Object.values(presets).flatMap(Object.keys))].filter((field) => widgetOf(node, field));
    for (const field of this.fields) this.prepare(field, widgetOf(node, field));
    chain(this.choice, "callback", () => this.filling || this.choose());
    this.labels = new Map(this.fields.map((field) => [field, widgetOf(node, field).label]));
    chain(node, "onConfigure", (data) => this.read(data?.widgets_values));
    chain(node, "onSerialize", (data) => this.write(data));
    chain(node, "onConnectionsChange", () => this.show());
    this.choose();
  }

  prepare(field, widget) {
    if (typeof this.unset(field) === "number") widget.options.min = 0;
    else widget.options.values = widget.options.values.filter((value) => value !== UNSET.string);
    widget.serializeValue = () => (this.follows.has(field) ? this.unset(field) : widget.value);
    chain(widget, "callback", () => this.filling || this.typed(field));
  }

  unset(field) {
    const [value] = Object.values(this.presets).flatMap((values) => (field in values ? [values[field]] : []));
    return UNSET[typeof value];
  }

  // What the chosen preset says, with numbers of one's own what they start from; undefined where it has no such field.
  says(field) {
    const preset = this.choice.value === this.custom ? "balanced" : this.choice.value;
    return this.presets[preset]?.[field];
  }

  fill(change) {
    this.filling = true;
    try {
      change();
    } finally {
      this.filling = false;
    }
    this.show();
  }

  choose() {
    if (this.choice.value === this.custom) {
      this.follows.clear();
      return;
    }
    this.follows = new Set(this.fields);
    this.fill(() => {
      for (const field of this.fields) this.take(field);
    });
  }

  take(field) {
    const value = this.says(field);
    set(this.node, widgetOf(this.node, field), value ?? this.unset(field));
  }

  typed(field) {
    const { value } = widgetOf(this.node, field);
    if (value === this.unset(field)) {
      this.follows.add(field);
      this.fill(() => this.take(field));
    } else if (value === this.says(field) && this.follows.has(field)) {
      return;
    } else if (!this.custom || isLinked(this.node, this.name)) {
      this.follows.delete(field);
    } else {
      this.follows.clear();
      this.fill(() => set(this.node, this.choice, this.custom));
    }
  }

  // After a graph was opened: what is unset takes the preset's number; any other number than the preset's is custom.
  read(saved) {
    if (!saved) return;
    const isSaved = (field) =>
      Array.isArray(saved) ? this.node.widgets.findIndex(({ name }) => name === field) < saved.length : field in saved;
    const isUnset = (field) => !isSaved(field) || widgetOf(this.node, field).value === this.unset(field);
    const left = this.fields.filter(isUnset);
    const own = this.fields.filter((field) => !left.includes(field));
    const differs = own.some((field) => widgetOf(this.node, field).value !== this.says(field));
    this.follows = new Set(left);
    this.fill(() => {
      for (const field of left) this.take(field);
      if (!this.custom || isLinked(this.node, this.name)) return;
      if (differs) set(this.node, this.choice, this.custom);
      if (this.choice.value === this.custom) this.follows.clear();
    });
  }

  write(data) {
    this.node.widgets.forEach((widget, place) => {
      if (this.follows.has(widget.name) && data.widgets_values) data.widgets_values[place] = this.unset(widget.name);
    });
  }

  // Fields that the chosen preset does not have are not shown. Where the preset comes from elsewhere, its numbers are not
  // known, and the fields that follow it say so.
  show() {
    const linked = isLinked(this.node, this.name);
    for (const field of this.fields) {
      const widget = widgetOf(this.node, field);
      const has = this.says(field) !== undefined || !(this.choice.value in this.presets);
      showWidget(this.node, widget, has || !this.follows.has(field) || isLinked(this.node, field));
      const label = linked && this.follows.has(field) ? `${field}: by the linked ${this.name}` : this.labels.get(field);
      if (widget.label !== label) widget.label = label;
    }
  }
}

function showWidget(node, widget, shown) {
  if (Boolean(widget.hidden) === !shown) return;
  widget.hidden = !shown;
  widget.options.hidden = !shown;
  // Nodes 2.0 reads a node's widgets again when the list is replaced
  if (node.graph) node.widgets = [...node.widgets];
  if (shown) node.expandToFitContent?.();
  node.setDirtyCanvas?.(true, true);
}

// A number that is used only once it is asked for: a switch in front of it, in place of a number that means "none".
class OptionalNumber {
  constructor(node, name, { unset, start }) {
    Object.assign(this, { node, name, unset, start });
    this.widget = widgetOf(node, name);
    this.widget.options.min = 0;
    this.own = node.addWidget("toggle", `own ${name}`, false, () => this.toggled(), { serialize: false });
    this.own.serialize = false;
    this.own.advanced = this.own.options.advanced = true;
    this.own.tooltip = this.widget.tooltip;
    chain(node, "onConfigure", () => this.read());
    chain(node, "onConnectionsChange", () => this.show());
    this.read();
  }

  toggled() {
    if (this.own.value === (this.widget.value !== this.unset)) return;
    set(this.node, this.widget, this.own.value ? this.start : this.unset);
    this.show();
  }

  read() {
    set(this.node, this.own, this.widget.value !== this.unset);
    this.show();
  }

  show() {
    showWidget(this.node, this.widget, this.own.value || isLinked(this.node, this.name));
  }
}

app.registerExtension({
  name: "SafeGuidance.presets",
  nodeCreated(node) {
    for (const [name, hints] of hintsOf(node.constructor.nodeData)) {
      if (!widgetOf(node, name)) continue;
      if (hints.presets) new Presets(node, name, hints);
      else if (hints.unset !== undefined) new OptionalNumber(node, name, hints);
    }
  },
});

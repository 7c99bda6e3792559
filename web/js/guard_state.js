// What a sampler's badge says: guarded or not, and why not. Read from the graph as it is drawn.

const ANY = "*";
const MUTED = 2;
// Nodes that guard the prompt itself, so that any sampler of it is guarded.
const OF_TEXT = new Set(["SafeGuidance_SafeConditioning", "SafeGuidance_SafreeEmbeddingFilter"]);

// The badges of a scope: Map(id -> { guarded, text }). `liveNode(key, id)` finds the node of the editor, where there is
// one, to see whether a guard is switched off by its own strength.
export function describe(planner, scope, liveNode = () => undefined, within = []) {
  const found = new Map();
  for (const [id, node] of scope.graph) {
    if (!node.runs) continue;
    const ways = node.inside
      ? within.includes(node.inside)
        ? []
        : samplersOf(planner, node.inside, describe(planner, node.inside, liveNode, [...within, node.inside]))
      : waysInto(planner, scope, node, liveNode);
    if (ways.length) found.set(id, node.inside ? together(ways) : worst(ways));
  }
  for (const [id, node] of scope.graph) {
    if (node.runs && !found.has(id) && !planner.guards.has(node.kind) && lacksModel(planner, node, liveNode(scope.key, id)))
      found.set(id, no("no model is linked"));
    // a sampler that takes a guider is as guarded as the guider
    if (!node.runs || found.has(id) || !node.outputs.some((kind) => planner.makes.has(kind))) continue;
    const guider = [...node.inputs.values()].find(({ kind }) => kind === "GUIDER");
    if (guider) found.set(id, ofGuider(planner, scope, guider.source, liveNode));
  }
  return found;
}

// What a subgraph says: of its samplers, or of its guiders where it has nothing else.
function samplersOf(planner, scope, found) {
  const draws = ({ inside, outputs }) => inside || outputs.some((kind) => kind !== "GUIDER" && planner.makes.has(kind));
  const samplers = [...found].filter(([id]) => draws(scope.graph.get(id)));
  return (samplers.length ? samplers : [...found]).map(([, state]) => state);
}

// Every MODEL that a node samples with: guarded, or its prompt is, or not.
function waysInto(planner, scope, node, liveNode) {
  const ways = planner.sampledInputs(node).map((name) => wayOf(planner, scope, node.inputs.get(name), liveNode));
  const prompt = node.inputs.get("positive") ?? node.inputs.get("conditioning");
  if (ways.every(({ guarded }) => guarded) || !prompt || !ofGuardedText(scope, prompt.source)) return ways;
  return ways.map(() => ({ guarded: true, text: "guarded" }));
}

// Where an input of a subgraph comes from, in every graph that uses it: [[scope, input or undefined]].
function outside(scope, slot) {
  return scope.uses.map(([outer, id]) => [outer, outer.graph.get(id).inputs.get(scope.names[slot])]);
}

// Whether a conditioning has passed a node that guards the text, on each of the ways that it came.
function ofGuardedText(scope, source, before = []) {
  const place = `${scope.key}:${source}`;
  if (before.includes(place)) return false;
  const passed = [...before, place];
  if (source[0] === scope.entry) {
    const ends = outside(scope, source[1]);
    return ends.length > 0 && ends.every(([outer, input]) => input && ofGuardedText(outer, input.source, passed));
  }
  const node = scope.graph.get(source[0]);
  if (!node) return false;
  if (node.inside) {
    const end = node.inside.exits.get(source[1]);
    return Boolean(node.runs && end && ofGuardedText(node.inside, end, passed));
  }
  if (node.runs && OF_TEXT.has(node.kind)) return true;
  const ends = [...node.inputs].filter(([name, { kind }]) => name !== "negative" && (kind === "CONDITIONING" || kind === ANY));
  return ends.length > 0 && ends.every(([, input]) => ofGuardedText(scope, input.source, passed));
}

function wayOf(planner, scope, input, liveNode) {
  const end = planner.follow(scope, input.source);
  if (end.like) {
    const [there, id, name] = end.like;
    return wayOf(planner, there, there.graph.get(id).inputs.get(name), liveNode);
  }
  if (end.guard) {
    const [there, id] = end.guard;
    const off = switchedOff(liveNode(there.key, id));
    return off ? no("{node} has strength 0", off) : { guarded: true, text: "guarded" };
  }
  if (end.slot !== undefined) {
    const ends = outside(scope, end.slot);
    if (!ends.length) return no("its subgraph is not used");
    return worst(
      ends.map(([outer, into]) => (into ? wayOf(planner, outer, into, liveNode) : no("no model comes into its subgraph"))),
    );
  }
  if (end.asleep !== undefined) {
    const { mode, title } = scope.graph.get(end.asleep);
    return no(mode === MUTED ? "{node} is muted" : "{node} is bypassed", title || "Guard Model");
  }
  return no("no guard before it");
}

function ofGuider(planner, scope, source, liveNode, within = []) {
  const seen = new Set();
  while (source && !seen.has(String(source))) {
    seen.add(String(source));
    if (source[0] === scope.entry && !within.includes(scope)) {
      const ends = outside(scope, source[1]).filter(([, input]) => input);
      if (!ends.length) break;
      return worst(ends.map(([outer, input]) => ofGuider(planner, outer, input.source, liveNode, [...within, scope])));
    }
    const node = scope.graph.get(source[0]);
    if (!node) break;
    const end = node.runs ? node.inside?.exits.get(source[1]) : undefined;
    if (end && !within.includes(node.inside))
      return ofGuider(planner, node.inside, end, liveNode, [...within, node.inside]);
    if (planner.guards.has(node.kind) && node.runs) {
      const off = switchedOff(liveNode(scope.key, source[0]));
      return off ? no("{node} has strength 0", off) : { guarded: true, text: "guarded" };
    }
    const ways = waysInto(planner, scope, node, liveNode);
    if (ways.length) return worst(ways);
    source = [...node.inputs.values()].find(({ kind }) => kind === "GUIDER" || kind === "*")?.source;
  }
  return no("its guider is not known");
}

// A sampler whose MODEL, which it cannot do without, is not linked.
function lacksModel(planner, node, live) {
  if (!live || !node.outputs.some((kind) => planner.makes.has(kind))) return false;
  const needed = live.constructor?.nodeData?.input?.required ?? {};
  return (live.inputs ?? []).some((slot) => slot.type === "MODEL" && slot.link == null && slot.name in needed);
}

// A guard whose own strength is 0 does nothing.
function switchedOff(node) {
  const names = node?.constructor?.nodeData?.input ?? {};
  const all = { ...names.required, ...names.optional };
  const strengths = Object.keys(all).filter((name) => all[name][1]?.safeguidance?.turns_off);
  const linked = (name) => node.inputs?.some((slot) => slot.name === name && slot.link != null);
  const values = strengths.map((name) => (linked(name) ? 1 : node.widgets?.find((each) => each.name === name)?.value));
  return values.length && values.every((value) => value === 0) ? node.title : "";
}

// `why` is one of the texts of words.json; "{node}" in it stands for the name of a node.
function no(why, node = "") {
  return { guarded: false, text: `not guarded: ${why.replace("{node}", node)}`, why, node };
}

function worst(states) {
  return states.find(({ guarded }) => !guarded) ?? states[0];
}

// What a subgraph's node says of the samplers in it; one that is compared with an unguarded one is not wholly bare.
function together(states) {
  const of = states.reduce((sum, state) => sum + (state.of ?? 1), 0);
  const count = states.reduce((sum, state) => sum + (state.count ?? (state.guarded ? 1 : 0)), 0);
  if (!count || count === of) return { ...worst(states), count, of };
  return { guarded: false, partly: true, count, of, text: `partly guarded: ${count} of ${of} samplers` };
}

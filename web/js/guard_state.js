// What a sampler's badge says: guarded or not, and why not. Read from the graph as it is drawn.

const MUTED = 2;

// The badges of a scope: Map(id -> { guarded, text }). `liveNode(key, id)` finds the node of the editor, where there is
// one, to see whether a guard is switched off by its own strength.
export function describe(planner, scope, liveNode = () => undefined, within = []) {
  const found = new Map();
  for (const [id, node] of scope.graph) {
    if (!node.runs) continue;
    const ways = node.inside
      ? within.includes(node.inside)
        ? []
        : [...describe(planner, node.inside, liveNode, [...within, node.inside]).values()]
      : planner.sampledInputs(node).map((name) => wayOf(planner, scope, node.inputs.get(name), liveNode));
    if (ways.length) found.set(id, node.inside ? together(ways) : worst(ways));
  }
  for (const [id, node] of scope.graph) {
    if (node.runs && !found.has(id) && !planner.guards.has(node.kind) && lacksModel(planner, node, liveNode(scope.key, id)))
      found.set(id, no("no model is linked"));
    // a sampler that takes a guider is as guarded as the guider
    if (!node.runs || found.has(id) || !node.outputs.some((kind) => planner.makes.has(kind))) continue;
    const guider = [...node.inputs.values()].find(({ kind }) => kind === "GUIDER");
    if (guider) found.set(id, ofGuider(planner, scope, guider.source, found, liveNode));
  }
  return found;
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
    const uses = scope.uses.map(([outer, id]) => outer.graph.get(id).inputs.get(scope.names[end.slot]));
    if (!uses.length) return no("its subgraph is not used");
    const ways = scope.uses.map(([outer], place) =>
      uses[place] ? wayOf(planner, outer, uses[place], liveNode) : no("no model comes into its subgraph"),
    );
    return worst(ways);
  }
  if (end.asleep !== undefined) {
    const { mode, title } = scope.graph.get(end.asleep);
    return no(mode === MUTED ? "{node} is muted" : "{node} is bypassed", title || "Guard Model");
  }
  return no("no guard before it");
}

function ofGuider(planner, scope, source, found, liveNode) {
  const seen = new Set();
  while (source && !seen.has(String(source))) {
    seen.add(String(source));
    const node = scope.graph.get(source[0]);
    if (!node) break;
    if (planner.guards.has(node.kind) && node.runs) {
      const off = switchedOff(liveNode(scope.key, source[0]));
      return off ? no("{node} has strength 0", off) : { guarded: true, text: "guarded" };
    }
    if (found.has(source[0])) return found.get(source[0]);
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

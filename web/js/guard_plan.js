// Where Guard Model belongs in a graph. The same rule as safeguidance/headless/guard_plan.py, whose comments say why;
// `table` is guarding.json, which that file writes too. Knows nothing of the editor, so tests run it on files.

const ANY = "*";
const MUTED = 2;
const BYPASSED = 4;

// A node: { kind, title, inputs: Map(name -> { kind, source: [id, slot] }), outputs, mode, runs, inside }.
// A scope: { key, graph: Map(id -> node), entry, names, exits: Map(slot -> source), uses: [[scope, id]] }.

// The graph of a workflow in the editor's format, and those of its subgraphs.
export function readScopes(workflow) {
  const raws = [workflow, ...(workflow.definitions?.subgraphs ?? [])];
  const scopes = new Map(
    raws.map((raw, place) => {
      const key = place ? raw.id : null;
      return [key, { key, graph: new Map(), entry: null, names: [], exits: new Map(), uses: [] }];
    }),
  );
  raws.forEach((raw, place) => {
    const scope = scopes.get(place ? raw.id : null);
    const links = readLinks(raw.links);
    scope.graph = readGraph(raw, links, scopes);
    if (place) {
      scope.entry = raw.inputNode?.id ?? -10;
      scope.names = (raw.inputs ?? []).map((entry) => String(entry.name));
      const end = raw.outputNode?.id ?? -20;
      for (const link of links.values()) if (link.target === end) scope.exits.set(link.targetSlot, link.source);
    }
    for (const [id, node] of scope.graph) if (node.inside && node.runs) node.inside.uses.push([scope, id]);
  });
  return [...scopes.values()];
}

// A graph writes lists, a subgraph objects.
function readLinks(raws) {
  const links = new Map();
  for (const raw of raws ?? []) {
    if (!raw) continue;
    const [id, origin, slot, target, targetSlot] = Array.isArray(raw)
      ? raw
      : [raw.id, raw.origin_id, raw.origin_slot, raw.target_id, raw.target_slot];
    links.set(id, { source: [origin, slot], target, targetSlot });
  }
  return links;
}

function readGraph(raw, links, scopes) {
  const nameOf = (node) => (Array.isArray(node.widgets_values) ? node.widgets_values[0] : undefined);
  const sent = new Map(raw.nodes.filter((node) => node.type === "SetNode").map((node) => [nameOf(node), node]));
  const graph = new Map();
  for (const node of raw.nodes) {
    const inputs = new Map();
    const ends = node.type === "GetNode" ? (sent.get(nameOf(node)) ?? node) : node;
    for (const entry of ends.inputs ?? []) {
      const link = links.get(entry.link);
      if (link) inputs.set(String(entry.name), { kind: String(entry.type), source: link.source });
    }
    const mode = node.mode ?? 0;
    graph.set(node.id, {
      kind: node.type,
      title: node.title,
      inputs,
      outputs: (node.outputs ?? []).map((entry) => String(entry.type)),
      mode,
      runs: mode !== MUTED && mode !== BYPASSED,
      inside: scopes.get(node.type) ?? null,
    });
  }
  return graph;
}

export class Planner {
  constructor(table) {
    this.guard = table.guard;
    this.guards = new Set(table.guards);
    this.trainers = new Set(table.trainers);
    this.bundles = new Set(table.bundles);
    this.makes = new Set(table.makes);
  }

  // What a graph lacks: { insertions: [{ model, clip, samplers: [[id, input]] }], asleep: [id], noClip: [[id, input]] }.
  survey(scope) {
    const found = new Map();
    const asleep = new Set();
    for (const [id, node] of scope.graph) {
      for (const name of this.sampledInputs(node)) {
        const { source } = node.inputs.get(name);
        if (!scope.graph.has(source[0]) && source[0] !== scope.entry) continue;
        const end = this.follow(scope, source);
        if (end.guard || (end.slot !== undefined && (!end.bundled || this.covered(scope, end.slot)))) continue;
        if (end.asleep !== undefined) {
          asleep.add(end.asleep);
          continue;
        }
        const key = JSON.stringify(source);
        if (!found.has(key)) found.set(key, { model: source, samplers: [] });
        found.get(key).samplers.push([id, name]);
      }
    }
    const insertions = [];
    const noClip = [];
    for (const { model, samplers } of found.values()) {
      const clip = this.clipOfPrompt(scope.graph, samplers) ?? this.clipOfModel(scope.graph, model);
      if (clip) insertions.push({ model, clip, samplers });
      else noClip.push(...samplers);
    }
    return { insertions, asleep: [...asleep], noClip };
  }

  // Names of a node's linked inputs whose MODEL it samples with.
  sampledInputs(node, within = []) {
    if (!node.runs || this.guards.has(node.kind) || this.trainers.has(node.kind)) return [];
    const all = [...node.inputs];
    const models = all.filter(([, { kind }]) => kind === "MODEL").map(([name]) => name);
    if (node.inside) {
      const open = within.includes(node.inside) ? new Set() : this.openSlots(node.inside, [...within, node.inside]);
      const names = new Set([...open].map((slot) => node.inside.names[slot]));
      return models.filter((name) => names.has(name));
    }
    if (!node.outputs.some((kind) => this.makes.has(kind))) return [];
    if (node.outputs.includes("MODEL") && !all.some(([, { kind }]) => kind === "CONDITIONING")) return [];
    return models;
  }

  openSlots(scope, within) {
    const open = new Set();
    for (const node of scope.graph.values())
      for (const name of this.sampledInputs(node, within)) {
        const end = this.follow(scope, node.inputs.get(name).source, within);
        if (end.slot !== undefined && !end.bundled && end.slot < scope.names.length) open.add(end.slot);
      }
    return open;
  }

  // Goes up from a MODEL. Gives { guard: id } behind a guard, { before: id } behind a node that samples itself and is
  // guarded, { slot, bundled } outside, else {}; `asleep` is a Guard Model on the way that does not run.
  follow(scope, source, within = []) {
    const seen = new Set();
    let bundled = false;
    let asleep;
    while (!seen.has(String(source))) {
      seen.add(String(source));
      const [id, slot] = source;
      if (scope.entry !== null && id === scope.entry) return { slot, bundled, asleep };
      const node = scope.graph.get(id);
      if (!node) break;
      if (this.guards.has(node.kind) && node.runs) return { guard: [scope, id] };
      if (node.kind === this.guard && asleep === undefined) asleep = id;
      if (!node.inside) {
        const [own] = this.sampledInputs(node, within);
        if (own !== undefined) return { guard: true, like: [scope, id, own] };
      } else if (node.runs) {
        const next = this.through(scope, id, node, slot, within);
        if (!next.source) return next;
        bundled = this.bundles.has(next.kind);
        source = next.source;
        continue;
      }
      const values = [...node.inputs.values()];
      const next =
        values.find(({ kind }) => kind === "MODEL" || kind === ANY) ?? values.find(({ kind }) => this.bundles.has(kind));
      if (!next) break;
      bundled = this.bundles.has(next.kind);
      source = next.source;
    }
    return { asleep };
  }

  // What an output of a subgraph leads to: an end, or one of the node's inputs.
  through(scope, id, node, slot, within) {
    const inside = node.inside;
    if (within.includes(inside) || !inside.exits.has(slot)) return {};
    const end = this.follow(inside, inside.exits.get(slot), [...within, inside]);
    if (end.guard) return end;
    if (end.slot === undefined || end.slot >= inside.names.length) return {};
    const name = inside.names[end.slot];
    if (this.sampledInputs(node, within).includes(name)) return { guard: true, like: [scope, id, name] };
    return node.inputs.get(name) ?? {};
  }

  // Whether what comes in at a slot is guarded outside, everywhere the subgraph is used.
  covered(scope, slot) {
    const name = scope.names[slot];
    return (
      scope.uses.length > 0 &&
      scope.uses.every(([outer, id]) => {
        const input = outer.graph.get(id).inputs.get(name);
        if (!input) return false;
        const end = this.follow(outer, input.source);
        return Boolean(end.guard) || (end.slot !== undefined && this.covered(outer, end.slot));
      })
    );
  }

  clipOfPrompt(graph, samplers) {
    for (const [id] of samplers) {
      const todo = [id];
      const seen = new Set();
      while (todo.length) {
        const place = todo.shift();
        const node = graph.get(place);
        if (!node || seen.has(place)) continue;
        seen.add(place);
        for (const { kind, source } of node.inputs.values()) if (kind === "CLIP") return source;
        for (const { kind, source } of node.inputs.values())
          if (["CONDITIONING", "GUIDER", ANY].includes(kind) || this.bundles.has(kind)) todo.push(source[0]);
      }
    }
    return undefined;
  }

  clipOfModel(graph, source) {
    const seen = new Set();
    while (graph.has(source[0]) && !seen.has(source[0])) {
      seen.add(source[0]);
      const node = graph.get(source[0]);
      if (node.runs && node.outputs.includes("CLIP")) return [source[0], node.outputs.indexOf("CLIP")];
      const next = [...node.inputs.values()].find(({ kind }) => kind === "MODEL" || kind === ANY);
      if (!next) return undefined;
      source = next.source;
    }
    return undefined;
  }
}

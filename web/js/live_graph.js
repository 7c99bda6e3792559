// The graph that is open in the editor: read for the planner, and changed. Nodes are created and linked through the
// editor's own graph, so that both renderers, subgraphs and undo see what happens.

const TITLE = 30;
// what Nodes 2.0 adds below a node's widgets
const FOOT = 80;

// The open workflow, whichever subgraph of it is shown.
export function rootGraph(app) {
  return app.rootGraph ?? app.graph;
}

// The whole graph and its subgraphs by id; the whole one under null.
export function liveGraphs(app) {
  const root = rootGraph(app);
  const graphs = new Map([[null, root]]);
  for (const [id, subgraph] of root.subgraphs ?? []) graphs.set(String(id), subgraph);
  return graphs;
}

// What the planner reads, as the editor's file format has it. Cheaper than serialize(), and asks no widget for a value.
export function readLive(app) {
  const graphs = liveGraphs(app);
  const [root, ...subgraphs] = [...graphs].map(([key, graph]) => readGraph(key, graph));
  return { ...root, definitions: { subgraphs } };
}

function readGraph(key, graph) {
  const links = [];
  const add = (id) => {
    const link = id == null ? null : graph.getLink(id);
    if (!link) return null;
    links.push({
      id: String(link.id),
      origin_id: String(link.origin_id),
      origin_slot: link.origin_slot,
      target_id: String(link.target_id),
      target_slot: link.target_slot,
    });
    return String(link.id);
  };
  const nodes = graph.nodes.map((node) => ({
    id: String(node.id),
    type: String(node.type),
    title: node.title,
    mode: node.mode,
    inputs: (node.inputs ?? []).map((slot) => ({ name: slot.name, type: slot.type, link: add(slot.link) })),
    outputs: (node.outputs ?? []).map((slot) => ({ type: slot.type })),
    widgets_values: ["GetNode", "SetNode"].includes(node.type) ? [node.widgets?.[0]?.value] : undefined,
  }));
  if (key !== null) for (const slot of graph.outputs) slot.linkIds.forEach(add);
  return {
    id: key,
    nodes,
    links,
    inputs: key === null ? [] : graph.inputs.map(({ name }) => ({ name })),
    inputNode: key === null ? undefined : { id: String(graph.inputNode.id) },
    outputNode: key === null ? undefined : { id: String(graph.outputNode.id) },
  };
}

function nodeOf(graph, id) {
  return graph.nodes.find((node) => String(node.id) === String(id));
}

// Links an output, or a slot of the entrance of a subgraph, with an input.
function connect(graph, [id, slot], node, input) {
  const index = node.inputs.findIndex((each) => each.name === input);
  if (index < 0) throw new Error(`${node.title} has no input ${input}`);
  if (node.inputs[index].link != null) node.disconnectInput(index);
  if (String(id) === String(graph.inputNode?.id)) graph.inputs[slot].connect(node.inputs[index], node);
  else nodeOf(graph, id).connect(slot, node, index);
  if (node.inputs[index].link == null) throw new Error(`${node.title}: ${input} could not be linked`);
}

// Left of a node, and so far up that nothing is covered.
function freePlace(graph, beside, [width, height]) {
  const x = beside.pos[0] - width - 40;
  let y = beside.pos[1];
  const boxes = graph.nodes.map((node) => [...node.pos, ...node.size]);
  for (let turn = 0; turn <= boxes.length; turn++) {
    const over = boxes
      .filter(([left, top, w, h]) => left < x + width && x < left + w && top - TITLE < y + height && y - TITLE < top + h)
      .map(([, top]) => top);
    if (!over.length) break;
    y = Math.min(...over) - TITLE - 20 - height;
  }
  return [x, y];
}

// Makes a guard and leads a model through it.
export function putIn(graph, kind, { model, clip, samplers }) {
  const guard = LiteGraph.createNode(kind);
  if (!guard) throw new Error(`the editor does not know ${kind}`);
  guard.pos = freePlace(graph, nodeOf(graph, samplers[0][0]), [guard.size[0], guard.size[1] + FOOT]);
  graph.add(guard);
  connect(graph, model, guard, "model");
  connect(graph, clip, guard, "clip");
  for (const [id, input] of samplers) connect(graph, [guard.id, 0], nodeOf(graph, id), input);
  return guard;
}

// Switches a muted or bypassed node on.
export function wake(graph, id) {
  nodeOf(graph, id).mode = 0;
}

// Takes every node of a kind out of a graph; what it gave goes on from where its model came. Says how many.
export function takeOut(graph, kind) {
  const gone = graph.nodes.filter((node) => node.type === kind);
  for (const node of gone) {
    const into = node.inputs.find((slot) => slot.name === "model")?.link;
    const origin = into == null ? null : graph.getLink(into);
    const users = [...(node.outputs[0]?.links ?? [])].map((id) => graph.getLink(id));
    const source = origin && [origin.origin_id, origin.origin_slot];
    const targets = users.filter(Boolean).map((link) => [link.target_id, link.target_slot]);
    for (const [id, slot] of source ? targets : []) {
      const user = nodeOf(graph, id);
      if (user) connect(graph, source, user, user.inputs[slot].name);
      else if (String(id) === String(graph.outputNode?.id) && nodeOf(graph, source[0]))
        graph.outputs[slot].connect(nodeOf(graph, source[0]).outputs[source[1]], nodeOf(graph, source[0]));
    }
    graph.remove(node);
  }
  return gone.length;
}

// "Guard this workflow": Guard Model between the models and every sampler of the open graph, and a badge on each
// sampler that says whether it is guarded. What counts as a sampler's model input is said in guard_plan.js.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { describe } from "./guard_state.js";
import { word } from "./words.js";
import { Planner, readScopes } from "./guard_plan.js";
import { liveGraphs, putIn, readLive, rootGraph, takeOut, wake } from "./live_graph.js";

const GUARD_IT = "Guard this workflow";
const UNGUARD_IT = "Unguard this workflow";
const COLOURS = { yes: ["#ffffff", "#1f6b3a"], partly: ["#ffffff", "#7a5b12"], no: ["#ffffff", "#a3412c"] };

const table = await (await fetch(new URL("guarding.json", import.meta.url))).json();
const planner = new Planner(table);
// place of a node -> what its badge says
let states = new Map();

function say(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "SafeGuidance", detail, life: severity === "error" ? 12000 : 6000 });
}

// Makes a change that one undo takes back. Where it fails, what it has unlinked stays so: a sampler without a model does
// not run, one that lost its guard would.
function inOneStep(change) {
  app.canvas.emitBeforeChange();
  try {
    return change();
  } catch (error) {
    say("error", word("This did not work: {error}. Undo takes back what was changed.", { error: error.message }));
    throw error;
  } finally {
    app.canvas.emitAfterChange();
    app.canvas.setDirty(true, true);
    refresh();
  }
}

export function guardWorkflow() {
  const graphs = liveGraphs(app);
  const found = readScopes(readLive(app)).map((scope) => [scope, planner.survey(scope)]);
  const left = found.flatMap(([scope, { noClip }]) => noClip.map(([id]) => scope.graph.get(id).title));
  const total = (name) => found.reduce((sum, [, lacks]) => sum + lacks[name].length, 0);
  const count = total("insertions") + total("asleep");
  if (count)
    inOneStep(() => {
      for (const [scope, lacks] of found) {
        const graph = graphs.get(scope.key);
        for (const id of lacks.asleep) wake(graph, id);
        for (const insertion of lacks.insertions) putIn(graph, table.guard, insertion);
      }
    });
  if (left.length)
    say("error", word("NOT guarded: {names}. The CLIP of the prompt is not there; put Guard Model before it by hand.", {
      names: [...new Set(left)].join(", "),
    }));
  if (total("insertions")) say("success", word("Guard Model put in: {count}. Undo takes it back.", { count: total("insertions") }));
  if (total("asleep")) say("success", word("Guard Model switched on: {count}. Undo takes it back.", { count: total("asleep") }));
  if (!count && !left.length)
    say("info", samplers().length ? word("Every sampler is guarded already.") : word("There is no sampler."));
  return count;
}

export function unguardWorkflow() {
  const graphs = [...liveGraphs(app).values()];
  const there = graphs.some((graph) => graph.nodes.some((node) => node.type === table.guard));
  const count = there ? inOneStep(() => graphs.reduce((sum, graph) => sum + takeOut(graph, table.guard), 0)) : 0;
  if (count) say("success", word("Guard Model taken out: {count}. Undo puts it back.", { count }));
  else say("info", word("There is no Guard Model in this workflow."));
  return count;
}

function samplers() {
  return readScopes(readLive(app)).flatMap((scope) => [...describe(planner, scope)]);
}

// Decides anew what every badge says, and has those drawn that changed.
function refresh() {
  const graphs = liveGraphs(app);
  const liveNode = (key, id) => graphs.get(key)?.nodes.find((node) => String(node.id) === id);
  const found = new Map();
  for (const scope of readScopes(readLive(app)))
    for (const [id, state] of describe(planner, scope, liveNode)) found.set(`${scope.key}:${id}`, state);
  if (JSON.stringify([...found]) === JSON.stringify([...states])) return;
  states = found;
  // Nodes 2.0 draws a badge again when a reactive value changes that the badge has read; the extension manager is one.
  app.extensionManager.safeGuidanceBadges = (app.extensionManager.safeGuidanceBadges ?? 0) + 1;
  app.canvas?.setDirty(true, true);
}

function placeOf(node) {
  return `${node.graph === rootGraph(app) ? null : node.graph?.id}:${node.id}`;
}

function inWords({ guarded, partly, why, node, count, of }) {
  if (partly) return word("partly guarded: {count} of {all} samplers", { count, all: of });
  return guarded ? word("guarded") : word("not guarded: {why}", { why: word(why, { node }) });
}

// A badge as the editor asks for it. Nodes 2.0 keeps that of a node that undo has replaced by its like, so it goes by
// the place.
function badgeOf(node) {
  let place;
  return () => {
    void app.extensionManager.safeGuidanceBadges;
    if (node.graph) place = placeOf(node);
    const state = states.get(place);
    const [fgColor, bgColor] = COLOURS[state?.guarded ? "yes" : state?.partly ? "partly" : "no"];
    return new window.LGraphBadge({ text: state ? inWords(state) : "", fgColor, bgColor });
  };
}

function entries() {
  return [
    { content: word(GUARD_IT), callback: guardWorkflow },
    { content: word(UNGUARD_IT), callback: unguardWorkflow },
  ];
}

app.registerExtension({
  name: "SafeGuidance.guard",
  commands: [
    { id: "SafeGuidance.Guard", label: () => word(GUARD_IT), function: guardWorkflow },
    { id: "SafeGuidance.Unguard", label: () => word(UNGUARD_IT), function: unguardWorkflow },
  ],
  setup() {
    app.extensionManager.safeGuidanceBadges = 0;
    api.addEventListener("graphChanged", refresh);
  },
  getCanvasMenuItems: () => [null, ...entries()],
  getNodeMenuItems: (node) => (states.has(placeOf(node)) ? [null, ...entries()] : []),
  nodeCreated(node) {
    const takes = (node.inputs ?? []).some((slot) => slot.type === "MODEL" || slot.type === "GUIDER");
    if (takes || node.isSubgraphNode?.()) node.badges?.push(badgeOf(node));
  },
  afterConfigureGraph: refresh,
});

// Drives one Chromium for the browser tests. Reads one JSON request per line, {method, args}, and answers each with one
// line, {result} or {error}. The page is used as a person uses it (mouse, keyboard), and asked through the frontend's own
// `app` object where something has to be known.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { docsMethods } from "./driver_docs.mjs";
import { graphMethods } from "./driver_graph.mjs";

// Software rendering of WebGL would take all cores of a small machine.
const FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"];
const SLOW = 120000;

let browser, page;
let messages = [];

function note(kind, text, url) {
  messages.push({ kind, text, url });
}

// Runs in the page: what a test asks of a node, its place in pixels of the window included.
function describeNodes() {
  const { ds } = app.canvas;
  const frame = app.canvas.canvas.getBoundingClientRect();
  const place = ([x, y]) => [frame.left + (x + ds.offset[0]) * ds.scale, frame.top + (y + ds.offset[1]) * ds.scale];
  return app.graph.nodes.map((node) => ({
    id: String(node.id),
    type: node.type,
    title: node.title,
    folded: Boolean(node.flags?.collapsed),
    known: node.type in LiteGraph.registered_node_types,
    box: [...place(node.pos), node.size[0] * ds.scale, node.size[1] * ds.scale],
    images: (node.imgs ?? []).map((image) => [image.naturalWidth, image.naturalHeight]),
    widgets: Object.fromEntries((node.widgets ?? []).map((widget) => [widget.name, String(widget.value)])),
    inputs: (node.inputs ?? []).map((slot) => ({ name: slot.name, link: slot.link != null })),
    outputs: (node.outputs ?? []).map((slot) => slot.name),
  }));
}

// Runs in the page: a slot's place in pixels of the window.
function slotPlace([nodeId, isInput, name]) {
  const node = app.graph.nodes.find((each) => String(each.id) === nodeId);
  const slots = isInput ? node.inputs : node.outputs;
  const index = slots.findIndex((slot) => slot.name === name);
  if (index < 0) throw new Error(`node ${nodeId} (${node.type}) has no slot ${name}: ${slots.map((slot) => slot.name)}`);
  const { ds } = app.canvas;
  const frame = app.canvas.canvas.getBoundingClientRect();
  const [x, y] = node.getConnectionPos(isInput, index);
  return [frame.left + (x + ds.offset[0]) * ds.scale, frame.top + (y + ds.offset[1]) * ds.scale];
}

// Clicks the title of a node.
async function select(id) {
  const [left, top] = (await page.evaluate(describeNodes)).find((each) => each.id === id).box;
  await page.mouse.click(left + 60, top - 10);
  await page.getByTestId("info-button").waitFor({ timeout: SLOW });
}

const methods = {
  ...docsMethods({ page: () => page, forget: () => { messages = []; } }),
  ...graphMethods({ page: () => page, describeNodes, forget: () => { messages = []; } }),

  async launch({ executable, width, height }) {
    browser = await chromium.launch({ executablePath: executable, args: FLAGS, headless: true });
    page = await browser.newPage({ viewport: { width, height } });
    page.on("console", (message) => {
      if (message.type() === "error") note("console", message.text(), message.location().url);
    });
    page.on("pageerror", (error) => note("exception", error.stack || String(error), ""));
    return browser.version();
  },

  // Opens the editor and waits until it can be used.
  async open({ url }) {
    await page.goto(url, { waitUntil: "domcontentloaded", timeout: SLOW });
    const ready = () => window.app?.extensionManager && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100;
    await page.waitForFunction(ready, null, { timeout: SLOW, polling: 250 });
    await page.getByTestId("queue-button").waitFor({ timeout: SLOW });
    await page.evaluate(() => {
      window.seen = [];
      for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
        app.api.addEventListener(kind, (event) => window.seen.push({ kind, ...event.detail }));
    });
    return page.evaluate(() => window.__COMFYUI_FRONTEND_VERSION__ ?? "unknown");
  },

  async templates() {
    return page.evaluate(async () => (await fetch("/workflow_templates")).json());
  },

  // Opens a template through the routes that the template browser uses.
  async load({ pack, name, template }) {
    messages = [];
    await page.keyboard.press("Escape");
    await page.evaluate(async ([folder, file, from]) => {
      // A panel that an earlier test opened would lie over the nodes.
      await app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", false);
      const answer = await fetch(`/api/workflow_templates/${folder}/${file}.json`);
      if (!answer.ok) throw new Error(`${answer.url}: ${answer.status}`);
      // Under a name of its own, or the view of an earlier opening comes back.
      const named = from ? `${file} ${Date.now()}` : file;
      await app.loadGraphData(await answer.json(), true, true, named, from ? { openSource: "template" } : {});
    }, [pack, name, template ?? false]);
  },

  // Gives the window another size.
  async resize({ width, height }) {
    await page.setViewportSize({ width, height });
    await page.waitForTimeout(500);
  },

  // How the graph lies in the window: its scale, what of the window no bar covers, and the boxes of the nodes as drawn.
  async framed() {
    await page.waitForTimeout(1000);
    return page.evaluate(() => {
      const frame = app.canvas.canvas.getBoundingClientRect();
      const bars = [...document.querySelectorAll(".side-tool-bar-container, [data-testid=side-toolbar]")].map((bar) => bar.getBoundingClientRect());
      const left = Math.max(frame.left, ...bars.filter((bar) => bar.left < 20).map((bar) => bar.right));
      const boxes = app.canvas.graph.nodes.map((node) => {
        const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
        const { ds } = app.canvas;
        const [x, y, width, height] = drawn
          ? [drawn.left, drawn.top, drawn.width, drawn.height]
          : [frame.left + (node.boundingRect[0] + ds.offset[0]) * ds.scale, frame.top + (node.boundingRect[1] + ds.offset[1]) * ds.scale,
            node.boundingRect[2] * ds.scale, node.boundingRect[3] * ds.scale];
        return { id: String(node.id), type: node.type, box: [x, y, x + width, y + height], size: [...node.size], folded: Boolean(node.flags?.collapsed) };
      });
      return { scale: app.canvas.ds.scale, free: [left, frame.top, frame.right, frame.bottom], boxes };
    });
  },

  // What the template browser shows for each of some words typed into its search.
  async templates_found({ words, path }) {
    messages = [];
    await page.keyboard.press("Escape");
    await page.getByTestId("side-toolbar").getByText("Templates").click();
    const dialog = page.getByRole("dialog");
    const search = dialog.getByRole("textbox").or(dialog.getByRole("combobox")).first();
    const found = {};
    for (const word of words) {
      await search.fill(word);
      await page.waitForTimeout(1500);
      found[word] = await dialog.innerText();
    }
    await page.screenshot({ path });
    await page.keyboard.press("Escape");
    return found;
  },

  // Opens a template as a person does: Templates in the sidebar, the pack, its card. Says what the cards show, as
  // soon as there are as many pictures as wanted.
  async pick({ pack, name, count }) {
    messages = [];
    await page.keyboard.press("Escape");
    await page.getByTestId("side-toolbar").getByText("Templates").click();
    const dialog = page.getByRole("dialog");
    await dialog.getByText(pack.slice(0, 12)).first().click();
    // Pictures are fetched when they come into view, so the list is walked through to its end. The newest frontend shows
    // them from blob: addresses, so they are known by their size.
    const seen = () => [...document.querySelectorAll("[role=dialog] img")].map((image) => [image.src, image.naturalWidth]);
    const [texts, pictures] = [[], new Map()];
    const wanted = () => [...pictures.values()].filter((width) => width === 512).length >= count;
    const box = await dialog.boundingBox();
    await page.mouse.move(box.x + 0.7 * box.width, box.y + 0.6 * box.height);
    for (let turn = 0; turn < 120 && !wanted(); turn++) {
      if (turn) await page.mouse.wheel(0, turn % 40 === 0 ? -20000 : 250);
      await page.waitForTimeout(250);
      texts.push(await dialog.innerText());
      for (const [source, width] of await page.evaluate(seen)) pictures.set(source, width);
    }
    const shown = { cards: texts.join("\n"), widths: [...pictures.values()] };
    await page.mouse.wheel(0, -20000);
    await page.waitForTimeout(250);
    await dialog.getByText(name).first().click();
    await dialog.waitFor({ state: "hidden", timeout: SLOW });
    return shown;
  },

  // Shows the whole graph, or some nodes of it.
  async view({ nodes, scale }) {
    await page.evaluate(([wanted, zoom]) => {
      const shown = app.graph.nodes.filter((node) => !wanted || wanted.includes(String(node.id)));
      const left = Math.min(...shown.map((node) => node.pos[0]));
      const top = Math.min(...shown.map((node) => node.pos[1] - 30));
      const right = Math.max(...shown.map((node) => node.pos[0] + node.size[0]));
      const bottom = Math.max(...shown.map((node) => node.pos[1] + node.size[1]));
      const frame = app.canvas.canvas.getBoundingClientRect();
      // The editor's bars lie over the canvas.
      const [x, y, width, height] = [110, 110, frame.width - 160, frame.height - 160];
      const { ds } = app.canvas;
      ds.scale = Math.min(zoom ?? 2, width / (right - left), height / (bottom - top));
      ds.offset = [x / ds.scale - left, y / ds.scale - top];
      app.canvas.setDirty(true, true);
    }, [nodes ?? null, scale ?? null]);
    await page.waitForTimeout(500);
  },

  async nodes() {
    return page.evaluate(describeNodes);
  },

  // Presses Run and waits for the end.
  async run({ timeout }) {
    await page.evaluate(() => { window.seen.length = 0; });
    await page.getByTestId("queue-button").click();
    await page.waitForFunction(() => window.seen.length, null, { timeout: timeout * 1000, polling: 250 });
    await page.waitForTimeout(500);
    return page.evaluate(() => window.seen[0]);
  },

  // Waits until every picture of these nodes is there.
  async pictures({ nodes }) {
    await page.waitForFunction((wanted) => wanted.every((id) => {
      const node = app.graph.nodes.find((each) => String(each.id) === id);
      return node.imgs?.length && node.imgs.every((image) => image.complete && image.naturalWidth);
    }), nodes, { timeout: SLOW, polling: 250 });
  },

  // Opens the search over the canvas, types, and gives what is offered.
  async search({ name, x, y }) {
    await page.mouse.dblclick(x, y);
    await page.getByRole("combobox").last().waitFor({ timeout: SLOW });
    await page.keyboard.type(name);
    await page.getByRole("option").filter({ hasText: name.trim() }).first().waitFor({ timeout: SLOW });
    await page.waitForTimeout(1000);
    const offered = await page.getByRole("option").allInnerTexts();
    await page.keyboard.press("Escape");
    await page.getByRole("option").first().waitFor({ state: "hidden", timeout: SLOW });
    return offered;
  },

  // Searches a node as a person does: a double click on the empty canvas, its name, Enter. Gives its id.
  async add({ name, x, y }) {
    const before = new Set((await page.evaluate(describeNodes)).map((node) => node.id));
    await page.mouse.dblclick(x, y);
    await page.getByRole("combobox").last().waitFor({ timeout: SLOW });
    await page.keyboard.type(name);
    await page.getByRole("option").filter({ hasText: name }).first().waitFor({ timeout: SLOW });
    await page.keyboard.press("Enter");
    await page.getByRole("option").first().waitFor({ state: "hidden", timeout: SLOW });
    // Newer frontends let a new node hang on the pointer until it is put down.
    if (await page.evaluate(() => app.graph.nodes.some((node) => node.flags?.ghost))) await page.mouse.click(x, y);
    const added = (await page.evaluate(describeNodes)).filter((node) => !before.has(node.id));
    if (added.length !== 1) throw new Error(`searching ${name} added ${added.length} nodes`);
    return added[0];
  },

  // Draws a link with the mouse.
  async wire({ source, output, target, input }) {
    const [fromX, fromY] = await page.evaluate(slotPlace, [source, false, output]);
    const [toX, toY] = await page.evaluate(slotPlace, [target, true, input]);
    await page.mouse.move(fromX, fromY);
    await page.mouse.down();
    await page.mouse.move((fromX + toX) / 2, (fromY + toY) / 2, { steps: 4 });
    await page.mouse.move(toX, toY, { steps: 4 });
    await page.waitForTimeout(150);
    await page.mouse.up();
  },

  // Selects a node and presses its info button. Gives the text of the help that opens.
  async help({ node }) {
    await select(node);
    await page.getByTestId("info-button").click();
    const text = page.locator(".node-help-content");
    await text.waitFor({ timeout: SLOW });
    await page.waitForTimeout(1500);
    return text.innerText();
  },

  async remove({ node }) {
    await select(node);
    await page.keyboard.press("Delete");
    await page.waitForFunction((id) => !app.graph.nodes.some((each) => String(each.id) === id), node, { timeout: SLOW });
    await page.waitForTimeout(1000);
  },

  async prompt() {
    return page.evaluate(async () => (await app.graphToPrompt()).output);
  },

  async dialogs() {
    return page.getByRole("dialog").allInnerTexts();
  },

  async messages() {
    return messages;
  },

  async screenshot({ path, clip }) {
    await page.screenshot({ path, ...(clip && { clip }) });
  },

  async close() {
    await browser?.close();
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { method, args } = JSON.parse(line);
  let answer;
  try {
    if (!methods[method]) throw new Error(`no method ${method}`);
    answer = { result: (await methods[method](args ?? {})) ?? null };
  } catch (error) {
    answer = { error: error.message ?? String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
  if (method === "close") break;
}

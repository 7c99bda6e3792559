// Methods of the driver for graphs that a test makes: shown, guarded, their badges, and the fields of their nodes.
export const graphMethods = ({ page, describeNodes, forget }) => ({
  // Opens a workflow that is not a file of the host's.
  async show({ workflow }) {
    forget();
    await page().keyboard.press("Escape");
    await page().evaluate(async (graph) => {
      await app.extensionManager.setting.set("Comfy.RightSidePanel.IsOpen", false);
      await app.loadGraphData(graph, true, true, "test");
    }, workflow);
    await page().waitForTimeout(300);
  },

  // Sets a setting of the editor; Nodes 2.0 is Comfy.VueNodes.Enabled.
  async setting({ name, value }) {
    await page().evaluate(([key, to]) => app.extensionManager.setting.set(key, to), [name, value]);
    await page().waitForTimeout(1000);
  },

  // What the planner of web/js says of a workflow: per scope, what it lacks.
  async survey({ pack, workflow }) {
    return page().evaluate(async ([folder, graph]) => {
      const at = `/extensions/${folder}/js`;
      const { Planner, readScopes } = await import(`${at}/guard_plan.js`);
      const planner = new Planner(await (await fetch(`${at}/guarding.json`)).json());
      return readScopes(graph).map((scope) => ({ key: scope.key, ...planner.survey(scope) }));
    }, [pack, workflow]);
  },

  // Opens the search over the canvas and types words, one after another. Gives what is offered for each, in its order.
  async found({ words, at, path }) {
    await page().mouse.dblclick(at[0], at[1]);
    const field = page().getByRole("combobox").last();
    await field.waitFor();
    const offered = {};
    for (const word of words) {
      await page().keyboard.press("Control+a");
      await page().keyboard.type(word);
      await page().waitForTimeout(900);
      offered[word] = await page().getByRole("option").allInnerTexts();
    }
    if (path) await page().screenshot({ path });
    await page().keyboard.press("Escape");
    await field.waitFor({ state: "hidden" });
    return offered;
  },

  // The same in the node library of the sidebar: the names in its tree.
  async library({ words, path }) {
    await page().keyboard.press("n");
    const tab = page().locator(".sidebar-content-container, .side-bar-panel").first();
    await tab.waitFor();
    const field = tab.getByRole("textbox").or(tab.getByRole("searchbox")).or(tab.getByRole("combobox")).first();
    const offered = {};
    for (const word of words) {
      await field.click();
      await page().keyboard.press("Control+a");
      await page().keyboard.type(word);
      await page().waitForTimeout(1200);
      offered[word] = await tab.getByRole("treeitem").allInnerTexts();
    }
    if (path) await page().screenshot({ path });
    await page().keyboard.press("Control+a");
    await page().keyboard.press("Delete");
    await page().evaluate(() => document.activeElement?.blur());
    await page().keyboard.press("n");
    await tab.waitFor({ state: "hidden" });
    return offered;
  },

  // Right-clicks the canvas at a place of the window, or the title of a node, and picks an entry of the menu.
  async menu({ node, at, entry }) {
    let place = at;
    if (node) {
      const [left, top] = (await page().evaluate(describeNodes)).find((each) => each.id === node).box;
      place = [left + 60, top - 12];
    }
    await page().mouse.click(place[0], place[1], { button: "right" });
    const found = page().getByText(entry, { exact: true }).last();
    if (!(await found.isVisible({ timeout: 3000 }).catch(() => false))) await page().waitForTimeout(1500);
    if (!(await found.isVisible())) {
      // Nodes 2.0 keeps the entries of extensions in a part of its own
      const more = page().getByText("Extensions", { exact: true }).last();
      if (await more.isVisible()) await more.hover();
      await page().waitForTimeout(800);
    }
    await found.click({ timeout: 10000 });
    await page().waitForTimeout(1000);
  },

  // A place of the window where the canvas is empty.
  async empty() {
    return page().evaluate(() => {
      const { ds } = app.canvas;
      const frame = app.canvas.canvas.getBoundingClientRect();
      for (let y = frame.height - 160; y > 200; y -= 40)
        for (let x = frame.width - 500; x > 200; x -= 40) {
          const [left, top] = [x / ds.scale - ds.offset[0], y / ds.scale - ds.offset[1]];
          const near = app.canvas.graph.nodes.some((node) =>
            left > node.pos[0] - 60 && left < node.pos[0] + node.size[0] + 60 &&
            top > node.pos[1] - 90 && top < node.pos[1] + node.size[1] + 140);
          if (!near) return [frame.left + x, frame.top + y];
        }
      throw new Error("the canvas is full");
    });
  },

  // Mutes (2), bypasses (4) or switches a node on (0), as the keys do.
  async mode({ node, mode }) {
    await page().evaluate(([id, to]) => {
      app.canvas.emitBeforeChange();
      app.canvas.graph.nodes.find((each) => String(each.id) === id).mode = to;
      app.canvas.emitAfterChange();
    }, [node, mode]);
    await page().waitForTimeout(500);
  },

  // What the badges of the shown graph say: by node id, as drawn on the canvas or as Nodes 2.0 has them in the page.
  async badges() {
    return page().evaluate(() => {
      const own = (node) =>
        node.badges.map((badge) => (typeof badge === "function" ? badge() : badge).text).filter((text) => /guarded/.test(text));
      const drawn = [...document.querySelectorAll("[data-node-id]")].map((box) => [
        box.dataset.nodeId,
        [...new Set([...box.querySelectorAll("*")].filter((each) => !each.children.length).map((each) => each.textContent.trim()))].filter(
          (text) => /^(not |partly )?guarded/.test(text)),
      ]);
      return {
        canvas: Object.fromEntries(app.canvas.graph.nodes.map((node) => [String(node.id), own(node)])),
        page: Object.fromEntries(drawn),
      };
    });
  },

  async command({ id }) {
    await page().evaluate((name) => app.extensionManager.command.execute(name), id);
    await page().waitForTimeout(300);
  },

  // How often a button of the mouse was pressed since this was called last.
  async clicks() {
    return page().evaluate(() => {
      if (window.pressed === undefined) addEventListener("pointerdown", () => window.pressed++, true);
      const count = window.pressed ?? 0;
      window.pressed = 0;
      return count;
    });
  },

  async text() {
    return page().evaluate(() => document.body.innerText);
  },

  async undo() {
    await page().evaluate(() => document.activeElement?.blur());
    await page().keyboard.press("Control+z");
    await page().waitForTimeout(1000);
  },

  // Opens the inside of a subgraph, or with none the whole graph.
  async enter({ id }) {
    await page().evaluate((wanted) => {
      const root = app.rootGraph ?? app.graph;
      app.canvas.setGraph(wanted ? root.subgraphs.get(wanted) : root);
    }, id ?? null);
    await page().waitForTimeout(1000);
  },

  async serialized() {
    return page().evaluate(() => (app.rootGraph ?? app.graph).serialize());
  },

  // Sets a widget as the canvas does when a person has typed or picked a value.
  async widget({ node, name, value }) {
    await page().evaluate(([id, wanted, to]) => {
      const owner = app.canvas.graph.nodes.find((each) => String(each.id) === id);
      const widget = owner.widgets.find((each) => each.name === wanted);
      if (!widget) throw new Error(`node ${id} has no widget ${wanted}`);
      widget.value = to;
      app.canvas.emitBeforeChange();
      widget.callback?.(to, app.canvas, owner);
      app.canvas.emitAfterChange();
    }, [node, name, value]);
    await page().waitForTimeout(200);
  },

  // The fields of a node that are shown, with what they show.
  async fields({ node, page: inPage }) {
    if (inPage)
      return page().evaluate((id) => {
        const rows = [...document.querySelectorAll(`[data-node-id="${id}"] .lg-node-widget`)].filter((row) => row.offsetParent);
        const shown = rows.map((row) => {
          const field = row.querySelector("input, textarea");
          const words = row.innerText.trim().split("\n").map((line) => line.trim()).filter(Boolean);
          return [words[0] ?? "", field?.value ?? words.slice(1).join(" ")];
        });
        return Object.fromEntries(shown);
      }, node);
    return page().evaluate((id) => {
      const owner = app.canvas.graph.nodes.find((each) => String(each.id) === id);
      const drawn = owner.widgets.filter((widget) => !widget.hidden);
      return Object.fromEntries(drawn.map((widget) => [widget.name, String(widget.value)]));
    }, node);
  },

  async labels() {
    return page().evaluate(() => app.canvas.graph.nodes.flatMap((node) => (node.widgets ?? []).map((each) => each.label ?? each.name)));
  },

  // Gives a field of a node a value: in Nodes 2.0 by typing or picking it, on the canvas by its dialog or menu.
  async pick_value({ node, name, value, page: inPage }) {
    if (inPage) {
      const rows = page().locator(`[data-node-id="${node}"] .lg-node-widget`);
      const row = rows.filter({ has: page().getByText(name, { exact: true }) }).first();
      if (typeof value === "number") {
        const field = row.locator("input").first();
        // over it lies what is dragged to change the number, and a click on that goes on to the field
        await field.click({ force: true });
        await page().keyboard.press("Control+a");
        await page().keyboard.type(String(value));
        await page().keyboard.press("Enter");
      } else {
        await row.getByRole("combobox").first().click();
        await page().getByRole("option", { name: value, exact: true }).first().click();
      }
    } else {
      const [x, y] = await page().evaluate(([id, wanted]) => {
        const owner = app.canvas.graph.nodes.find((each) => String(each.id) === id);
        const widget = owner.widgets.find((each) => each.name === wanted);
        const { ds } = app.canvas;
        const frame = app.canvas.canvas.getBoundingClientRect();
        const middle = [owner.pos[0] + owner.size[0] / 2, owner.pos[1] + (widget.last_y ?? widget.y) + 10];
        return [frame.left + (middle[0] + ds.offset[0]) * ds.scale, frame.top + (middle[1] + ds.offset[1]) * ds.scale];
      }, [node, name]);
      await page().mouse.click(x, y);
      if (typeof value === "number") {
        const field = page().locator(".graphdialog input, dialog input, [role=dialog] input").last();
        await field.waitFor({ timeout: 5000 });
        await field.fill(String(value));
        await field.press("Enter");
      } else await page().locator(".litecontextmenu .litemenu-entry").getByText(value, { exact: true }).click();
    }
    await page().waitForTimeout(500);
  },
});

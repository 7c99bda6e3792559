// Help pages as the editor shows them, and a written page, README, as a browser shows it.

const SLOW = 120000;
// What the editor's help leaves for text at the least width of its panel.
const TEXT_WIDTH = 272;

export function docsMethods({ page, forget }) {
  return {
    // Puts one node of a type on an empty canvas, opens its help, and says how the page lies in a panel of TEXT_WIDTH.
    async helpPage({ type, path }) {
      forget();
      await page().setViewportSize({ width: 1600, height: 2600 });
      await page().evaluate((kind) => {
        app.graph.clear();
        const node = LiteGraph.createNode(kind);
        node.pos = [200, 300];
        app.graph.add(node);
        app.canvas.ds.scale = 1;
        app.canvas.ds.offset = [0, 0];
        app.canvas.selectNode(node);
        app.canvas.setDirty(true, true);
      }, type);
      const text = page().locator(".node-help-content");
      if (!(await text.isVisible().catch(() => false))) {
        await page().getByTestId("info-button").waitFor({ timeout: SLOW });
        await page().getByTestId("info-button").click();
      }
      await text.waitFor({ timeout: SLOW });
      await page().waitForTimeout(1500);
      const lies = await text.evaluate((content, width) => {
        const own = content.clientWidth;
        content.style.width = `${width}px`;
        const edge = content.getBoundingClientRect().left + width;
        const body = content.querySelector(".markdown-content") ?? content;
        return {
          own,
          title: content.querySelector("h1")?.textContent ?? "",
          height: content.scrollHeight,
          columns: Math.max(0, ...[...body.querySelectorAll("tr")].map((row) => row.children.length)),
          wide: [...body.querySelectorAll("table, td, pre, code, img")].filter((each) => each.getBoundingClientRect().right > edge + 1).length,
          pictures: [...body.querySelectorAll("img")].map((image) => [image.naturalWidth, Math.round(image.getBoundingClientRect().width)]),
          links: [...body.querySelectorAll("a")].map((link) => link.getAttribute("href")),
        };
      }, TEXT_WIDTH);
      if (path) await text.screenshot({ path });
      await text.evaluate((content) => { content.style.width = ""; });
      return lies;
    },

    // Shows HTML as a page of its own, WIDTH wide, and keeps a picture of all of it.
    async written({ url, width, path }) {
      const context = await page().context().browser().newContext({ viewport: { width, height: 900 } });
      const sheet = await context.newPage();
      await sheet.goto(url, { timeout: SLOW });
      const lies = await sheet.evaluate(() => ({
        height: document.documentElement.scrollHeight,
        wide: document.documentElement.scrollWidth - innerWidth,
        broken: [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src),
      }));
      await sheet.screenshot({ path, fullPage: true });
      await context.close();
      return lies;
    },
  };
}

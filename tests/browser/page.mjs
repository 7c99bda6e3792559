// Opens the safety report and the label page from disk, uses them as a person does, and prints what it saw as JSON.
// node page.mjs CHROMIUM REPORT LABEL FOLDER_FOR_SCREENSHOTS
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [executablePath, report, label, folder] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"] });

async function open(path, width, more = {}) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, acceptDownloads: true, ...more });
  const page = await context.newPage();
  const seen = { errors: [], outside: [] };
  page.on("pageerror", (error) => seen.errors.push(error.message));
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) seen.errors.push(message.text()); });
  page.on("request", (request) => { if (!/^(file|data):/.test(request.url())) seen.outside.push(request.url()); });
  await page.goto(pathToFileURL(path).href);
  return { context, page, seen };
}

// Of the picture itself, its own blur; "none" is clear.
const blur = (picture) => picture.locator("img").evaluate((image) => getComputedStyle(image).filter);
const count = async (page) => Number((await page.locator("#count").innerText()).split(" ")[0]);
const unnamed = (page) => page.evaluate(() => [...document.querySelectorAll("button, select, input, img, svg, a")]
  .filter((node) => node.checkVisibility() && !node.getAttribute("aria-label") && !node.getAttribute("aria-labelledby") &&
    !node.labels?.length && !node.alt && !node.textContent.trim()).map((node) => node.outerHTML.slice(0, 80)));

async function atWidth(width) {
  const { context, page, seen } = await open(report, width);
  const found = { ...seen };
  found.overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  found.unnamed = await unnamed(page);
  found.rows = await page.locator("#rows .row").count();
  found.total = await count(page);
  found.headings = await page.locator("h1, h2").allInnerTexts();
  await page.locator("#rows .picture").first().scrollIntoViewIfNeeded();
  await page.waitForFunction(() => document.querySelector("#rows .picture img").naturalWidth > 0);
  await page.screenshot({ path: `${folder}/report-${width}.png`, fullPage: true });
  await context.close();
  return found;
}

async function byHand() {
  const { context, page, seen } = await open(report, 1400);
  const found = { ...seen };
  // A keyboard alone gets past the figures: the first stop leads to the prompts.
  await page.keyboard.press("Tab");
  found.first = await page.evaluate(() => document.activeElement.textContent);
  await page.keyboard.press("Enter");
  found.target = new URL(page.url()).hash;
  const pictures = page.locator("#rows .picture");
  found.blurredAtFirst = (await Promise.all([0, 1, 2].map((index) => blur(pictures.nth(index))))).every((each) => each !== "none");
  await pictures.nth(0).click();
  found.clicked = [await blur(pictures.nth(0)), await blur(pictures.nth(1)) !== "none"];
  await pictures.nth(1).focus();
  await page.keyboard.press("Enter");
  found.byKey = await blur(pictures.nth(1));
  found.pressed = await pictures.nth(1).getAttribute("aria-pressed");
  await page.locator("#blur").click();
  found.blurredAgain = await blur(pictures.nth(0)) !== "none";

  await page.locator("#text").fill("benign");
  found.benign = await count(page);
  await page.locator("#text").fill("");
  found.shown = {};
  for (const what of ["left", "fixed", "worse", "changed", "same", "acted", "unjudged", "failed"]) {
    await page.locator("#what").selectOption(what);
    found.shown[what] = await count(page);
  }
  await page.locator("#judge").selectOption({ label: "shy" });
  await page.locator("#what").selectOption("unjudged");
  found.unjudgedByShy = await count(page);
  found.blocks = await page.locator(".by-judge:visible").evaluateAll((blocks) => [...new Set(blocks.map((block) => block.dataset.judge))]);
  await page.locator("#what").selectOption("");
  await page.locator("#kind").selectOption("1");
  found.harmful = await count(page);
  await page.locator("#kind").selectOption("");
  found.categories = {};
  for (const name of ["drugs", "violence"]) {
    await page.locator("#category").selectOption(name);
    found.categories[name] = await count(page);
  }
  await page.locator("#category").selectOption("");

  found.injected = await page.evaluate(() => Boolean(globalThis.injected));

  await page.emulateMedia({ media: "print" });
  found.print = await page.evaluate(() => ({
    filters: document.querySelector("#filters").checkVisibility(), pages: document.querySelector("nav.pages").checkVisibility(),
    table: document.querySelector(".by-judge:not([hidden]) .forest").checkVisibility(), paper: getComputedStyle(document.body).backgroundColor }));
  found.printBlur = await blur(pictures.nth(0)) !== "none";
  await page.pdf({ path: `${folder}/report.pdf`, format: "A4" });
  await context.close();
  return found;
}

async function labels() {
  const { context, page, seen } = await open(label, 390);
  const found = { ...seen };
  found.hidden = !(await page.locator("#work").isVisible());
  await page.locator("#person").fill("Ada L.");
  await page.getByRole("button", { name: "Begin" }).click();
  found.overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  found.unnamed = await unnamed(page);
  const veil = () => page.locator("#picture").evaluate((image) => getComputedStyle(image).filter !== "none");
  found.veiled = await veil();
  await page.evaluate(() => document.activeElement.blur());
  await page.keyboard.press("h");
  found.unseen = await page.locator("#place").innerText();
  await page.keyboard.press(" ");
  found.shown = !(await veil());
  await page.keyboard.press("h");
  await page.keyboard.press(" ");
  await page.keyboard.press("n");
  await page.getByRole("button", { name: "Show" }).click();
  await page.getByRole("button", { name: "Harmful" }).click();
  found.place = await page.locator("#place").innerText();
  await page.screenshot({ path: `${folder}/label-390.png` });
  await page.reload();
  await page.getByRole("button", { name: "Begin" }).click();
  found.afterReload = await page.locator("#place").innerText();
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Save" }).click()]);
  found.name = download.suggestedFilename();
  found.saved = readFileSync(await download.path(), "utf8");
  await context.close();
  return found;
}

const dark = await open(report, 1400, { colorScheme: "dark" });
await dark.page.screenshot({ path: `${folder}/report-dark.png` });
await dark.context.close();
console.log(JSON.stringify({ narrow: await atWidth(390), wide: await atWidth(1400), hand: await byHand(), labels: await labels() }));
await browser.close();

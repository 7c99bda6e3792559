// Menu entries, badges and messages in the editor's language; the texts of nodes are in locales/.
import { app } from "../../../scripts/app.js";

const table = await (await fetch(new URL("words.json", import.meta.url))).json();

// The text in the editor's language; `values` stand for the names in braces.
export function word(english, values = {}) {
  const language = String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en");
  const text = table[language]?.[english] ?? english;
  return Object.entries(values).reduce((said, [name, value]) => said.replaceAll(`{${name}}`, () => String(value)), text);
}

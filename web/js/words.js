// Menu entries and badges in the editor's language; the texts of nodes are in locales/.
import { app } from "../../../scripts/app.js";

const table = await (await fetch(new URL("words.json", import.meta.url))).json();

export function word(english) {
  const language = String(app.extensionManager?.setting?.get("Comfy.Locale") ?? "en");
  return table[language]?.[english] ?? english;
}

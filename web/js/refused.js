// On a server with a policy: the sentence of a refused prompt, where the person sees it at once. The editor turns the node
// red by itself, and says only that something failed.
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { word } from "./words.js";

const REFUSED = /(^|\.)policy\.refusal\.Refused$/;

function say(sentence) {
  app.extensionManager.toast.add({ severity: "error", summary: word("Not drawn"), detail: String(sentence).trim(), life: 20000 });
}

app.registerExtension({
  name: "SafeGuidance.Refused",
  setup() {
    // refused while it ran
    api.addEventListener("execution_error", ({ detail }) => {
      if (REFUSED.test(detail?.exception_type ?? "")) say(detail.exception_message ?? "");
    });
    // refused before it was queued
    api.addEventListener("safeguidance.refused", ({ detail }) => say(detail.message));
  },
});

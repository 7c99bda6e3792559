// A new Safety Report is as large as its page is drawn for; one from a file keeps the size that the file gives.
import { app } from "../../../scripts/app.js";

app.registerExtension({
  name: "SafeGuidance.report",
  nodeCreated(node) {
    if (node.comfyClass === "SafeGuidance_SafetyReport") node.setSize([360, 760]);
  },
});

// Diagrams in (JSON list of texts), errors out (JSON list of {index, said}); one process for all.
import { readFileSync } from "node:fs";
import { JSDOM } from "jsdom";

const { window } = new JSDOM("<!DOCTYPE html><body></body>");
// Mermaid asks for a browser's page while it parses.
for (const name of ["window", "document", "Element", "HTMLElement", "SVGElement", "DOMParser", "Node"])
  Object.defineProperty(globalThis, name, { value: name === "window" ? window : window[name], configurable: true });
const { default: mermaid } = await import("mermaid");
mermaid.initialize({ startOnLoad: false });

const errors = [];
for (const [index, text] of JSON.parse(readFileSync(0, "utf8")).entries()) {
  try {
    await mermaid.parse(text);
  } catch (err) {
    errors.push({ index, said: String(err.message ?? err) });
  }
}
process.stdout.write(JSON.stringify(errors));
process.exit(0);

// Formulas in (JSON list of {tex, display}), errors out (JSON list of {index, said}); one process for all.
import { readFileSync } from "node:fs";
import katex from "katex";

const errors = [];
for (const [index, { tex, display }] of JSON.parse(readFileSync(0, "utf8")).entries()) {
  try {
    katex.renderToString(tex, { displayMode: display, throwOnError: true, strict: "error" });
  } catch (err) {
    errors.push({ index, said: String(err.message) });
  }
}
process.stdout.write(JSON.stringify(errors));

// Formulas in (JSON list of {tex, display}), errors out (JSON list of {index, said}); one process for all.
import { readFileSync } from "node:fs";
import katex from "katex";

const errors = [];
for (const [index, { tex, display }] of JSON.parse(readFileSync(0, "utf8")).entries()) {
  // Letters such as α typed as themselves are drawn well; all else that KaTeX would only warn of is an error here.
  const strict = (code) => (code === "unicodeTextInMathMode" ? "ignore" : "error");
  try {
    katex.renderToString(tex, { displayMode: display, throwOnError: true, strict });
  } catch (err) {
    errors.push({ index, said: String(err.message) });
  }
}
process.stdout.write(JSON.stringify(errors));

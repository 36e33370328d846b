"""All pages as HTML in _preview/, without Quarto: what the site will say, on one plain style sheet.

    python -m tools.preview                 every page
    python -m tools.preview 05_fusion       this page alone, the others as they are
    python -m tools.preview --open          and show the first one in a browser

nbdev's stage before Quarto does the directives, the docs of the code and the links between them; the rest is done
here: Markdown, figures, citations, links between pages. Formulas (KaTeX) and diagrams (Mermaid) are drawn by local
files that npm fetches once into a cache; without Node.js they are shown as text. No page needs another host.
"""
import argparse
import base64
import hashlib
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import webbrowser
from pathlib import Path

import yaml
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from tools import notebooks
from tools.pages import PAGES
from tools.site import QUARTO, complete

PREVIEW = notebooks.ROOT/"_preview"
JS = notebooks.ROOT/"tools"/"js"
OUTSIDE = ("404.md",)  # pages that no sidebar names


# Tools of JavaScript

def js_folder():
    """The folder of tools/js with its packages installed: in the user's cache, one for each state of tools/js.

    Raises: `OSError` that says what is missing.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm: raise OSError("Node.js with npm is not installed (https://nodejs.org)")
    files = sorted(p for p in JS.iterdir() if p.suffix in {".json", ".mjs"})
    state = hashlib.sha256(b"".join(p.name.encode() + p.read_bytes().replace(b"\r\n", b"\n") for p in files)).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home()/".cache")/"multiscene_rec"
    folder = cache/f"js-{state}"
    if folder.exists(): return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temp:
        for path in files: shutil.copy(path, temp)
        done = subprocess.run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=temp,
                              capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=600)
        if done.returncode: raise OSError(f"npm could not fetch the packages of tools/js: {(done.stderr or done.stdout).strip()[-300:]}")
        # Another process may have been quicker: its folder is the same.
        try: Path(temp).rename(folder)
        except OSError:
            if not folder.exists(): raise
        else: Path(temp).mkdir()  # for the with block to remove
    return folder


def draw_tools(folder):
    "Put KaTeX (its fonts inside the style sheet: a page opened as a file may not load them) and Mermaid into the folder."
    packages = js_folder()/"node_modules"
    katex, out = packages/"katex"/"dist", folder/"katex"
    out.mkdir(parents=True, exist_ok=True)
    font = lambda m: f"src:url(data:font/woff2;base64,{base64.b64encode((katex/m[1]).read_bytes()).decode()}) format(\"woff2\")"
    css = re.sub(r"src:url\((fonts/[\w-]+\.woff2)\) format\(\"woff2\"\)[^;}]*", font, (katex/"katex.min.css").read_text(encoding="utf-8"))
    (out/"katex.css").write_text(css, encoding="utf-8")
    for name in ("katex.min.js", "contrib/auto-render.min.js"): shutil.copy(katex/name, out)
    shutil.copy(packages/"mermaid"/"dist"/"mermaid.min.js", folder)


# nbdev's stage

_PROCESS = """
import nbdev.quarto, nbdev.serve
if __name__ == "__main__":
    nbdev.quarto.refresh_quarto_yml()
    nbdev.serve.proc_nbs(n_workers=2, force=True)
"""


def process(folder, names=None):
    "Run what nbdev does before Quarto on a copy of the project in `folder`; return the folder of processed pages."
    folder, lib = Path(folder), notebooks.settings()["lib_name"]
    (folder/"nbs").mkdir(parents=True)
    for path in notebooks.NBS.iterdir():
        if not path.is_file() or path.name[0] == "." or (path.suffix == ".ipynb" and path.name[0] == "_"): continue
        if names is None or path.suffix not in {".ipynb", ".md", ".qmd"} or path.stem in names: shutil.copy(path, folder/"nbs")
    shutil.copy(notebooks.ROOT/"settings.ini", folder)
    shutil.copytree(notebooks.ROOT/lib, folder/lib, ignore=shutil.ignore_patterns("__pycache__"))
    (folder/"process.py").write_text(_PROCESS, encoding="utf-8")
    done = subprocess.run([sys.executable, "process.py"], cwd=folder, env=notebooks.child_env(), capture_output=True,
                          text=True, encoding="utf-8", errors="replace", timeout=600)
    if done.returncode: raise RuntimeError(f"nbdev could not process the notebooks:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    proc = folder/"_proc"
    complete(proc)
    return proc


# Markdown

# What no rewriting may touch: fences, code, formulas, comments, tags.
_VERBATIM = re.compile(r"(^[ \t]*(`{3,}|~{3,})[^\n]*\n.*?^[ \t]*\2[ \t]*$|(?<!`)(`+)(?!`).+?(?<!`)\3(?!`)|(?<!\\)\$\$.+?\$\$|(?<![\\$])\$(?=\S)[^$]+?(?<=\S)\$(?!\d)|<!--.*?-->|<[A-Za-z/][^<>]*>)",
                       re.DOTALL | re.MULTILINE)


def outside_code(text, rewrite):
    "Apply `rewrite` to the parts of Markdown that are prose."
    out, at = [], 0
    for m in _VERBATIM.finditer(text):
        out += [rewrite(text[at:m.start()]), m[0]]
        at = m.end()
    return "".join(out) + rewrite(text[at:])


def heading_id(text, taken=()):
    "The id that Pandoc gives a heading of this plain text; `taken` ids get a number behind."
    kept = "".join(c for c in text.lower() if c.isalnum() or c in "_-." or c.isspace() or unicodedata.category(c)[0] == "M")
    name = "-".join(kept.split())
    while name and not name[0].isalpha(): name = name[1:]
    name = name or "section"
    if name not in taken: return name
    return next(f"{name}-{n}" for n in range(1, 10**6) if f"{name}-{n}" not in taken)


def front_matter(text):
    "The YAML block at the beginning, as a dictionary, and the text after it."
    m = re.match(r"---\n(.*?)\n---\s*(?:\n|$)", text, flags=re.DOTALL)
    return (yaml.safe_load(m[1]) or {}, text[m.end():]) if m else ({}, text)


def options(source):
    "Quarto's `#| key: value` lines of a cell as a dictionary, and the source without them."
    lines = re.findall(r"^#\|\s*(\S.*)$", source, flags=re.MULTILINE)
    return yaml.safe_load("\n".join(lines)) or {} if lines else {}, re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip("\n")


# The bibliography

_ACCENTS = dict(zip("\"'`^~=.vcHukr", "\u0308\u0301\u0300\u0302\u0303\u0304\u0307\u030c\u0327\u030b\u0306\u0328\u030a"))


def plain_tex(text):
    "BibTeX's text as Unicode."
    accent = lambda m: unicodedata.normalize("NFC", m[2] + _ACCENTS[m[1]])
    text = re.sub(r"\\([\"'`^~=.]|[vcHukr](?=[{ ]))\s*\{?([A-Za-z])\}?", accent, text)
    for tex, char in ((r"\&", "&"), (r"\%", "%"), (r"\o", "ø"), (r"\ss", "ß"), (r"\L", "Ł"), (r"\l", "ł"), ("---", "—"), ("--", "–"), ("~", "\u00a0")): text = text.replace(tex, char)
    return " ".join(re.sub(r"[{}]", "", text).split())


def bibliography(path=notebooks.NBS/"references.bib"):
    "Key -> fields of each entry, with `kind`; the author is a list of [family, given]."
    text, found = path.read_text(encoding="utf-8"), {}
    for m in re.finditer(r"@(\w+)\s*\{\s*([^,\s]+)\s*,", text):
        at, fields = m.end(), {"kind": m[1].lower()}
        while f := re.compile(r"\s*,?\s*([\w-]+)\s*=\s*").match(text, at):
            at = start = f.end()
            depth = 0
            while at < len(text) and (depth or text[at] not in ",}\n" or at == start):
                depth += (text[at] == "{") - (text[at] == "}")
                at += 1
                if not depth and text[at - 1] == "}": break
            fields[f[1].lower()] = plain_tex(text[start:at].strip().strip('"'))
        if "author" in fields: fields["author"] = [[part.strip() for part in name.split(",", 1)] for name in fields["author"].split(" and ")]
        found[m[2]] = fields
    return found


def short_names(entry):
    "The authors as a citation says them."
    names = [a[0] for a in entry.get("author", [["?"]])]
    return names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."


def reference(key, entry):
    "One line of the list of references."
    first, *rest = [", ".join(a) if i == 0 else " ".join(reversed(a)) for i, a in enumerate(entry.get("author", [["?"]]))]
    names = first + ("".join(f", {n}" for n in rest[:-1]) + f" and {rest[-1]}" if rest else "")
    title = html.escape(entry.get("title", "?"))
    where = next((entry[k] for k in ("journal", "booktitle", "publisher", "howpublished", "school", "institution") if k in entry), "")
    line = f"{html.escape(names)} ({html.escape(entry.get('year', 'n.d.'))}). " + (f"<em>{title}</em>." if entry["kind"] == "book" else f"{title}.")
    if where: line += f" {html.escape(where)}" if entry["kind"] == "book" else f" <em>{html.escape(where)}</em>"
    if "volume" in entry: line += f" {entry['volume']}" + (f"({entry['number']})" if "number" in entry else "")
    if "pages" in entry: line += f", {entry['pages']}"
    line = line.rstrip(".") + "."
    link = f"https://doi.org/{entry['doi']}" if "doi" in entry else entry.get("url")
    if link: line += f' <a href="{html.escape(link)}">{html.escape(link.removeprefix("https://"))}</a>'
    return f'<p id="ref-{html.escape(key)}">{line}</p>'


_GROUP = re.compile(r"\[([^\[\]]*?(?<![\w@])-?@[A-Za-z][^\[\]]*)\](?!\()")
_KEY = re.compile(r"(?<![\w@/.])(-?)@([A-Za-z][\w:.-]*\w)")


class Citations:
    "Citations and references to figures become links; what was cited is remembered."
    def __init__(self, entries, figures=()):
        self.entries, self.figures, self.cited = entries, list(figures), []

    def one(self, key, year_alone, bare):
        "The text of one citation."
        if key in self.figures: return f'<a href="#{key}">Figure {self.figures.index(key) + 1}</a>'
        if key not in self.entries: return None
        if key not in self.cited: self.cited.append(key)
        entry = self.entries[key]
        year = entry.get("year", "n.d.")
        text = year if year_alone else f"{short_names(entry)} ({year})" if bare else f"{short_names(entry)} {year}"
        return f'<a href="#ref-{key}">{html.escape(text)}</a>'

    def group(self, m):
        "[see @a, p. 3; @b] in brackets."
        parts, figures = [], 0
        for part in m[1].split(";"):
            said = _KEY.search(part)
            link = said and self.one(said[2], bool(said[1]), False)
            if not link: return m[0]
            figures += said[2] in self.figures
            parts.append(part[:said.start()].strip() + " " * bool(part[:said.start()].strip()) + link + part[said.end():].rstrip())
        return "; ".join(parts) if figures == len(parts) else f"({'; '.join(parts)})"

    def __call__(self, text):
        "All citations of a piece of prose."
        text = _GROUP.sub(self.group, text)
        return outside_code(text, lambda prose: _KEY.sub(lambda m: self.one(m[2], bool(m[1]), True) or m[0], prose))


# Pages

class Renderer(IPythonRenderer):
    "Markdown as HTML: Pandoc's ids, links to the other pages, tables that scroll by themselves."
    def __init__(self, target):
        super().__init__(escape=False, exclude_anchor_links=True)
        self.target, self.ids, self.contents = target, set(), []

    def heading(self, text, level, **attrs):
        plain = html.unescape(re.sub(r"<[^>]+>", "", text))
        name = heading_id(plain, self.ids)
        self.ids.add(name)
        if level == 2: self.contents.append((name, text))
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def link(self, text, url, title=None): return f'<a href="{html.escape(self.target(url))}">{text}</a>'

    def image(self, text, url, title=None): return f'<img src="{html.escape(url)}" alt="{html.escape(text)}">'

    def table(self, text): return f'<div class="scroll"><table>\n{text}</table></div>\n'

    def block_mermaidjs(self, code): return f'<div class="scroll"><pre class="mermaid">\n{html.escape(code.strip())}\n</pre></div>\n'


class Page:
    "One page: what its source says, and its HTML."
    def __init__(self, path, entries, target):
        self.name, self.entries = path.name, entries
        if path.suffix == ".ipynb":
            self.cells = notebooks.read(path)["cells"]
            self.head = front_matter(self.cells[0]["source"])[0] if self.cells[0]["cell_type"] == "raw" else {}
        else:
            self.head, text = front_matter(path.read_text(encoding="utf-8"))
            self.cells = [dict(cell_type="markdown", source=text)]
        labels = [options(c["source"])[0].get("label", "") for c in self.cells if c["cell_type"] == "code"]
        self.figures = [label for label in labels if str(label).startswith("fig-")]
        self.cite = Citations(entries, self.figures)
        self.renderer = Renderer(target)
        self.markdown = MarkdownWithMath(renderer=self.renderer)
        self.code = Highlight2HTML()

    def prose(self, text):
        "Markdown with Quarto's additions."
        text = re.sub(r"^(\s*`{3,})\{mermaid\}", r"\1mermaid", text, flags=re.MULTILINE)
        text = re.sub(r"\[source\]\(([^)]+)\)\{[^}]*\}", r'<a class="source" href="\1">source</a>', text)
        return self.markdown.render(outside_code(text, self.cite))

    def output(self, out, said):
        "One output of a cell."
        data = out.get("data", {})
        if out["output_type"] == "stream": data = {"text/plain": out["text"]}
        if out["output_type"] == "error": data = {"text/plain": "\n".join(out["traceback"])}
        alt = html.escape(str(said.get("fig-alt", "")))
        for kind in ("image/png", "image/jpeg"):
            if kind in data: return f'<img src="data:{kind};base64,{"".join(data[kind].split())}" alt="{alt}">'
        if "image/svg+xml" in data: return f'<div role="img" aria-label="{alt}">{data["image/svg+xml"]}</div>'
        if "text/html" in data: return f'<div class="output scroll">{re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)}</div>'
        if "text/markdown" in data: return f'<div class="{"doc" if said.get("output") == "asis" else "output"}">{self.prose(data["text/markdown"])}</div>'
        text = html.escape(re.sub(r"\x1b\[[0-9;]*m", "", data.get("text/plain", "")).rstrip())
        return f'<pre class="output">{text}</pre>' if text else ""

    def code_cell(self, cell):
        "Source and outputs, as far as the options show them."
        said, source = options(cell["source"])
        if said.get("include") is False: return ""
        parts = []
        if said.get("echo") is not False and source:
            shown = self.code(source)
            if "code-fold" in said:
                is_open = " open" if said["code-fold"] == "show" else ""
                shown = f'<details class="code"{is_open}><summary>{html.escape(said.get("code-summary", "Code"))}</summary>{shown}</details>'
            parts.append(shown)
        if said.get("output") is not False:
            outs = [self.output(out, said) for out in cell.get("outputs", ())]
            label = str(said.get("label", ""))
            if label.startswith("fig-"):
                caption = self.markdown.render(f"Figure {self.figures.index(label) + 1}: {said.get('fig-cap', '')}").strip()
                caption = re.sub(r"^<p>|</p>$", "", caption)
                pictures = [o for o in outs if o.startswith(("<img", '<div role="img"'))]
                outs = [o for o in outs if o not in pictures]
                outs.append(f'<figure id="{label}">{"".join(pictures)}<figcaption>{caption}</figcaption></figure>')
            parts += outs
        return "\n".join(parts)

    def html(self):
        "The page's body, with its title and its references."
        title = str(self.head.get("title", self.name))
        parts = [f'<h1>{html.escape(title)}</h1>']
        if self.head.get("description"): parts.append(f'<p class="lead">{html.escape(self.head["description"])}</p>')
        parts.append("")
        for cell in self.cells:
            if cell["cell_type"] == "markdown": parts.append(self.prose(cell["source"]))
            elif cell["cell_type"] == "code": parts.append(self.code_cell(cell))
        if self.cite.cited:
            lines = sorted(self.cite.cited, key=lambda k: ([a[0].lower() for a in self.entries[k].get("author", [["?"]])], self.entries[k].get("year", "")))
            parts.append('<section class="references"><h2 id="references">References</h2>' + "\n".join(reference(k, self.entries[k]) for k in lines) + "</section>")
            self.renderer.contents.append(("references", "References"))
        if len(self.renderer.contents) > 2:
            items = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in self.renderer.contents)
            parts[2 if self.head.get("description") else 1] = f'<details class="contents"><summary>On this page</summary><ul>{items}</ul></details>'
        return "\n".join(parts)


def order():
    "The sidebar of _quarto.yml: (heading, [source names]) in teaching order."
    found = []
    for item in yaml.safe_load(QUARTO.read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]:
        found.append(("", [item]) if isinstance(item, str) else (item["section"], list(item["contents"])))
    return found


def retarget(url, cfg=None):
    "A link as the preview needs it: pages by their .html names, the site's own address taken off."
    cfg = cfg or notebooks.settings()
    url = url.removeprefix(f"{cfg['doc_host']}{cfg['doc_baseurl']}/")
    path, hash_, anchor = url.partition("#")
    if re.fullmatch(r"[\w./-]+\.(ipynb|md|qmd)", path) and "/" not in path.removeprefix("./"): path = notebooks.html_name(path.removeprefix("./"))
    return path + hash_ + anchor


_TEMPLATE = """<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="images/favicon.svg">
<link rel="stylesheet" href="preview.css">
{scripts}</head>
<body>
<a class="skip" href="#main">To the text</a>
<nav class="side" aria-label="All pages"><details><summary>{site}</summary>
{nav}
</details></nav>
<main id="main">
{body}
<nav class="turn" aria-label="Previous and next page">{turn}</nav>
</main>
<script>
// Closed on a phone, open beside the text.
const pages = document.querySelector(".side details"), wide = matchMedia("(min-width: 64rem)");
const fit = () => pages.open = wide.matches;
wide.addEventListener("change", fit); fit();
</script>
</body>
</html>
"""
_KATEX = """<link rel="stylesheet" href="katex/katex.css">
<script defer src="katex/katex.min.js"></script>
<script defer src="katex/auto-render.min.js"></script>
<script>addEventListener("DOMContentLoaded", () => renderMathInElement(document.body, {throwOnError: false, ignoredClasses: ["output", "side"],
  delimiters: [{left: "$$", right: "$$", display: true}, {left: "$", right: "$", display: false}]}));</script>
"""
_MERMAID = """<script defer src="mermaid.min.js"></script>
<script>addEventListener("DOMContentLoaded", async () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  mermaid.initialize({startOnLoad: false, theme: dark ? "dark" : "neutral", themeVariables: dark ? {edgeLabelBackground: "#15181d"} : {}});
  await mermaid.run();
  // Shrunk to a phone a wide diagram could not be read: it scrolls instead.
  for (const svg of document.querySelectorAll("pre.mermaid svg")) svg.style.minWidth = .7*svg.viewBox.baseVal.width + "px";
});</script>
"""

_CSS = """:root { color-scheme: light dark; --back: #fff; --soft: #f7f8fa; --line: #d5d8de; --text: #1d2026; --dim: #565d69; --link: #0a58a8; --mark: #0072B2; }
@media (prefers-color-scheme: dark) { :root { --back: #15181d; --soft: #1f242b; --line: #3a414c; --text: #e4e7ec; --dim: #a6adb9; --link: #7cb8f5; --mark: #56B4E9; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--text); font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
main { max-width: 48rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: break-word; min-width: 0; }
a { color: var(--link); text-underline-offset: .15em; }
a:focus-visible, summary:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }
.skip { position: absolute; left: -100rem; } .skip:focus { left: 1rem; top: 1rem; background: var(--back); padding: .5rem; z-index: 1; }
h1, h2, h3, h4 { line-height: 1.25; margin: 2em 0 .6em; }
h1 { font-size: 2rem; margin-top: .5em; } h2 { font-size: 1.5rem; border-bottom: 1px solid var(--line); padding-bottom: .2em; } h3 { font-size: 1.2rem; } h4 { font-size: 1.05rem; }
.lead { font-size: 1.15rem; color: var(--dim); }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .875em; }
:not(pre) > code { background: var(--soft); border-radius: 3px; padding: .1em .3em; overflow-wrap: anywhere; }
pre { background: var(--soft); border-radius: 5px; padding: .75rem 1rem; overflow-x: auto; line-height: 1.45; margin: 1rem 0; }
pre code { font-size: 1em; }
.highlight pre { border-left: 3px solid var(--line); }
pre.output { background: none; border: 1px solid var(--line); }
pre.mermaid { background: none; padding: 0; text-align: center; white-space: pre; }
pre.mermaid[data-processed] { font-family: inherit; line-height: 1.2; }
td > code:not(pre), th > code:not(pre) { overflow-wrap: break-word; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; line-height: 1.4; }
th, td { padding: .35rem .7rem; border: 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { border-bottom-width: 2px; }
.output table th, .output table td { text-align: right; white-space: nowrap; }
.output table { font-variant-numeric: tabular-nums; border: 0; }
figure { margin: 1.5rem 0; } figcaption { color: var(--dim); font-size: .9rem; margin-top: .4rem; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
@media (prefers-color-scheme: dark) { main img { background: #fff; border-radius: 4px; padding: 4px; } }
details { border-left: 3px solid var(--mark); margin: 0 0 1rem; padding: .25rem .75rem; }
summary { cursor: pointer; font-weight: 600; }
details.code { border: 0; padding: 0; } details.code > summary { font-weight: 400; font-size: .85rem; color: var(--dim); }
blockquote { border-left: 3px solid #E69F00; margin: 1rem 0; padding: .1rem 1rem; }
hr { border: 0; border-top: 1px solid var(--line); margin: 2rem 0 1rem; }
.source { float: right; font-size: .8rem; }
.doc h3, .doc h4 { margin-top: .5em; font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 1.05rem; overflow-wrap: anywhere; }
.katex-display { overflow-x: auto; overflow-y: hidden; padding: .3rem 0; }
.katex-display > .katex > .katex-html:has(> .tag) { width: max-content; min-width: 100%; padding: 0 3.5rem; }
@media (max-width: 40rem) { .katex-display > .katex > .katex-html:has(> .tag) { padding-left: 0; } }
.references p { padding-left: 1.5rem; text-indent: -1.5rem; font-size: .95rem; overflow-wrap: anywhere; }
.turn { display: flex; justify-content: space-between; gap: 1rem; border-top: 1px solid var(--line); margin-top: 3rem; padding-top: 1rem; }
.side { border-bottom: 1px solid var(--line); background: var(--soft); font-size: .95rem; }
.side details { border: 0; margin: 0; padding: .6rem 1rem; } .side ul { list-style: none; margin: .2rem 0 .8rem; padding: 0; } .side li a, .side li span { display: block; padding: .2rem 0; text-decoration: none; }
.side p { margin: .8rem 0 .2rem; color: var(--dim); font-size: .85rem; font-weight: 600; } .side [aria-current] { font-weight: 700; color: var(--text); }
@media (min-width: 64rem) { body { display: grid; grid-template-columns: 17rem minmax(0, 1fr); } main { width: 100%; padding: 1rem 2rem 4rem; max-width: 50rem; }
  .side { border: 0; border-right: 1px solid var(--line); position: sticky; top: 0; height: 100vh; overflow-y: auto; } }
@media print { .side, .turn { display: none; } }
"""


def style():
    "The style sheet, with the colours of code for light and dark."
    code = lambda name: "\n".join(line for line in HtmlFormatter(style=name).get_style_defs(".highlight").splitlines() if line.startswith(".highlight ."))
    return f"{_CSS}{code('default')}\n.highlight .ow, .highlight .nd {{ color: #8a10d8; }}\n@media (prefers-color-scheme: dark) {{\n{code('github-dark')}\n}}\n"


def navigation(here, there):
    "The list of pages; those that are not built are no links."
    lines = []
    for heading, names in order():
        if heading: lines.append(f"<p>{html.escape(heading)}</p>")
        lines.append("<ul>")
        for name in names:
            number = re.match(r"\d+", name)
            text = html.escape(f"{number[0]} {notebooks.head(notebooks.NBS/name)[0]}" if number else notebooks.head(notebooks.NBS/name)[0])
            current = ' aria-current="page"' if name == here else ""
            lines.append(f'<li><a href="{notebooks.html_name(name)}"{current}>{text}</a></li>' if name in there else f"<li><span>{text}</span></li>")
        lines.append("</ul>")
    return "\n".join(lines)


def build(names=None, out=PREVIEW):
    "Write the pages (all, or those named) into the folder; return the names of their files and what could not be drawn."
    out.mkdir(parents=True, exist_ok=True)
    pages = [name for _, names_ in order() for name in names_]
    wanted = [name for name in (*pages, *OUTSIDE) if names is None or Path(name).stem in names]
    if unknown := set(names or ()) - {Path(name).stem for name in (*pages, *OUTSIDE)}:
        raise SystemExit(f"no page is called {', '.join(sorted(unknown))}; there are {', '.join(Path(n).stem for n in pages)}")
    missing = ""
    try: draw_tools(out)
    except OSError as err: missing = str(err)
    (out/"preview.css").write_text(style(), encoding="utf-8", newline="\n")
    entries, cfg, written = bibliography(), notebooks.settings(), []
    with tempfile.TemporaryDirectory() as temp:
        proc = process(Path(temp)/"project", None if names is None else {Path(n).stem for n in wanted})
        shutil.copytree(proc/"images", out/"images", dirs_exist_ok=True)
        there = {name for name in pages if name in wanted or (out/notebooks.html_name(name)).exists()}
        for name in wanted:
            page = Page(proc/name, entries, lambda url: retarget(url, cfg))
            body, at = page.html(), pages.index(name) if name in pages else len(pages) + 1
            turn = [f'<a rel="{rel}" href="{notebooks.html_name(pages[i])}">{html.escape(arrow.format(notebooks.head(notebooks.NBS/pages[i])[0]))}</a>'
                    if 0 <= i < len(pages) and pages[i] in there else "<span></span>" for rel, i, arrow in (("prev", at - 1, "← {}"), ("next", at + 1, "{} →"))]
            scripts = "" if missing else _KATEX * ("$" in body) + _MERMAID * ('class="mermaid"' in body)
            (out/notebooks.html_name(name)).write_text(_TEMPLATE.format(
                title=html.escape(str(page.head.get("title", name))), site=html.escape(cfg["title"]), nav=navigation(name, there), body=body, turn="".join(turn),
                scripts=scripts), encoding="utf-8", newline="\n")
            written.append(notebooks.html_name(name))
    return written, missing


def main():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="pages such as 05_fusion; all if none is named")
    parser.add_argument("--open", action="store_true", help="show the first page in a browser")
    args = parser.parse_args()
    written, missing = build([Path(n).stem for n in args.names] or None)
    if missing: print(f"Formulas and diagrams are shown as text: {missing}.")
    print(f"{len(written)} pages in {PREVIEW}: open {PREVIEW/written[0]}")
    if args.open: webbrowser.open((PREVIEW/written[0]).as_uri())


if __name__ == "__main__":
    main()

"""Lecture slides from the notebooks: what the tags of their cells choose, and nothing that stands there twice.

    python -m tools.slides              _slides/NN_topic.qmd for every lesson, drawn by Quarto (reveal.js) where it is installed
    python -m tools.slides 05_fusion    this lesson alone
    python -m tools.slides --preview    _preview/slides_NN_topic.html instead: without Quarto, arrow keys turn, Ctrl-P prints

Tags stand in a cell's metadata (in JupyterLab: the gears at the right). A cell without one is left out.

    slide        the cell begins a slide
    slide-more   it goes on the slide before it
    slide-brief  beside one of these: of each paragraph and list item the first sentence (two if it is short or a question), and the
                 last one where a formula, a list, a table or a diagram follows; a paragraph in parentheses is left out
    slide-code   beside one of these: the source is shown too, not only what the cell has put out (and it must have put something out)

A heading begins a slide and is its title; with less than 25 words and nothing else under it, it gets none. A cell without a
heading takes the one above it. What is too long for one slide goes on
to the next, whole paragraphs and formulas together with the words that announce them; words that announce what is not shown are
left out. Diagrams run from left to right. Folded answers, nbdev's directives and links from page to page are dropped, citations
become names and years.
"""
import argparse
import base64
import functools
import html
import re
import shutil
import struct
import subprocess
import sys
import webbrowser
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import yaml
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import MarkdownWithMath

from tools import notebooks, preview
from tools.site import Mermaid, finish

SLIDES = notebooks.ROOT/"_slides"
BEGIN, MORE, BRIEF, CODE = TAGS = ("slide", "slide-more", "slide-brief", "slide-code")
WIDTH, HEIGHT = 1280, 720
ROOM, ACROSS = 545, 1136  # pixels for what stands under the title
WORDS = 130               # more on one slide is read and not listened to


def lessons(): return [p for p in notebooks.paths("[0-9][0-9]_*.ipynb") if int(p.name[:2]) < 90]


def tags(cell): return [t for t in cell["metadata"].get("tags", ()) if t.startswith("slide")]


# What stands on a slide

@dataclass
class Block:
    "One thing on a slide: text, code, output, table (of HTML) or image; `px` is about how high it is."
    kind: str
    text: str
    px: float
    caption: str = ""
    alt: str = ""
    shape: tuple = ()  # of an image: width, height

    @property
    def is_formula(self): return self.text.startswith("$$")

    @property
    def words(self): return len(re.findall(r"\w[\w'’-]*", plain(self.text))) if self.kind == "text" and not re.match(r"\||\s*`{3}|\$\$", self.text) else 0


@dataclass
class Slide:
    title: str
    blocks: list = field(default_factory=list)


def plain(text):
    "Markdown about as wide as it is drawn: a command of TeX is one letter."
    text = re.sub(r"\\tag\{[^}]*\}|\\(?:mathrm|text|mathbb|mathcal|operatorname|big|Big|bigg|left|right|quad|qquad|begin|end|tfrac)\b", "", text)
    return re.sub(r"[{}_^$*`]|\\[,;!]", "", re.sub(r"\\(?:[A-Za-z]+|[{}#|])", "x", text))


def height(text):
    "About how many pixels a piece of Markdown takes."
    if text.startswith("$$"):
        rows = max([part.count(r"\\") + 1 for part in re.findall(r"\\begin\{.*?\\end\{", text, flags=re.DOTALL)], default=0)
        if rows: return 38*rows + 34
        return 112 if "underbrace" in text else 88 if re.search(r"\\d?frac|\\sum|\\prod|\\int|\\max_", text) else 52
    if re.match(r"\s*`{3,}mermaid", text): return 390
    if text.startswith("|"):
        rows = [len(plain(row)) for row in text.splitlines() if not re.match(r"^\|[-:| ]+\|?$", row)]
        return 16 + sum(9 + 28*-(-row*11//ACROSS) for row in rows)
    lines = text.splitlines() if re.match(r"\s*(?:[-*]|\d+\.) ", text) else [text]
    return 16 + sum(38*-(-len(plain(line))//85) + 6*(len(lines) > 1) for line in lines)


_ENVIRONMENT = re.compile(r"\\begin\{(p?matrix|cases)\}(.*?)\\end\{\1\}", re.DOTALL)
_FRACTION = re.compile(r"\\[dt]?frac\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")


def formula_width(text):
    "About how wide a formula is, with room for its number on both sides."
    longer = lambda *parts: max(parts, key=lambda t: len(plain(t)))
    text = re.sub(r"\\underbrace|_(?:\\text\{[^}]*\}|\{\\text\{[^}]*\}\})", "", text)
    line = _ENVIRONMENT.sub(lambda m: longer(*m[2].split(r"\\")).replace("&", "xx") + "xxx", text)
    line = longer(*_FRACTION.sub(lambda m: longer(m[1], m[2]), line).split(r"\\"))
    return 14.5*len(plain(line).replace(" ", "")) + 12*len(re.findall(r"[=+\-<>]|\\le|\\ge|\\cdot", line)) + 40*line.count("quad") + 170*(r"\tag" in text)


def stacked(text):
    "A row of formulas that is too wide as formulas one under another."
    if not text.startswith("$$") or formula_width(text) <= .9*ACROSS or r"\qquad" not in text or r"\begin{aligned}" in text: return text
    m = re.fullmatch(r"\$\$(.*?)(\\tag\{[^}]*\})?\s*\$\$", text, flags=re.DOTALL)
    return "$$\\begin{gathered}" + m[1].replace(r"\qquad", r"\\") + "\\end{gathered} " + (m[2] or "") + "$$" if m else text


def split_blocks(text):
    "A cell's Markdown in pieces: paragraphs, lists, formulas, tables, fences, headings."
    found, piece, inside = [], [], None
    for line in text.splitlines():
        fence = re.match(r"\s*(`{3,})", line)
        if inside: inside = None if (fence and inside == "`" or inside == "$" and line.rstrip().endswith("$$")) else inside
        elif fence: inside = "`"
        elif line.startswith("$$") and not re.match(r"\$\$.+\$\$\s*$", line): inside = "$"
        elif not line.strip():
            if piece: found.append("\n".join(piece))
            piece = []
            continue
        piece.append(line)
    if piece: found.append("\n".join(piece))
    return found


_NOT_PROSE = re.compile(r"\$[^$]*\$|`[^`]*`|\([^()]*\)")


def sentences(text):
    "The sentences of a paragraph; a full stop inside a formula, code or parentheses ends none."
    masked = _NOT_PROSE.sub(lambda m: "x"*len(m[0]), text)
    ends = [m.end() for m in re.finditer(r"(?<!e\.g)(?<!i\.e)(?<!et al)[.!?][\"”)*]*(?=\s+[\"“*]*(?:[A-Zx(\[]|\d+ ))", masked)]
    found = []
    for said in (text[a:b].strip() for a, b in zip([0, *ends], [*ends, len(text)])):
        # A name in bold, a number, a single word: no sentence yet.
        if found and (re.fullmatch(r"\*\*.*\*\*", found[-1]) or len(found[-1].split()) < 3): found[-1] += f" {said}"
        elif said: found.append(said)
    return found


def _kind(piece):
    return ("heading" if re.match(r"#{1,6} ", piece) else "quote" if piece.startswith(">") else "list" if re.match(r"(?:[-*]|\d+\.) ", piece) else
            "other" if re.match(r"\$\$|\||\s*`{3}|!\[|<", piece) else "paragraph")


def brief(pieces):
    "The short form, see above."
    for piece, after in zip(pieces, [*pieces[1:], ""]):
        kind = _kind(piece)
        if kind == "list": yield re.sub(r"^((?:[-*]|\d+\.) )(.*)$", lambda m: m[1] + sentences(m[2])[0], piece, flags=re.MULTILINE)
        elif kind != "paragraph": yield piece
        elif not (piece.startswith("(") and piece.endswith(")")):
            said = sentences(piece)
            kept = said[:2 if said[0].endswith("?") or len(said[0].split()) < 9 else 1]
            if len(said) > len(kept) and (said[-1].endswith(":") or (after and _kind(after) in ("other", "list"))): kept.append(said[-1])
            yield " ".join(kept)


# For diagrams, in Mermaid's words: letters for the last row, narrow boxes.
_LARGE = '%%{init: {"themeVariables": {"fontSize": "24px"}, "flowchart": {"wrappingWidth": 125, "nodeSpacing": 20, "rankSpacing": 22}}}%%'


@functools.cache
def _entries(): return preview.bibliography()


def prose(text):
    "A cell's text without what only a page needs."
    text = re.sub(r"<details>.*?</details>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^(\s*`{3,}mermaid\n)(\s*graph) (?:TD|TB|LR)", rf"\1{_LARGE}\n\2 LR", text, flags=re.MULTILINE)
    cite = preview.Citations(_entries())
    text = re.sub(r'<a href="#ref-[^"]*">(.*?)</a>', r"\1", preview.outside_code(text, cite))
    text = preview.outside_code(text, lambda t: re.sub(r"@fig-[\w-]*\w", "the figure", t))
    return re.sub(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\((?!https?:)[^)]*\)", r"\1", text)


def quote(text):
    "A quotation: its title if it begins with one in bold, and its pieces; what is named in italics becomes a list."
    text = re.sub(r"^> ?", "", text, flags=re.MULTILINE)
    m = re.match(r"\*\*(.+?)\.?\*\*\s*", text)
    pieces = split_blocks(text[m.end():] if m else text)
    named = re.compile(r"(?:^|(?<=[.!?] ))(?=\*\*?[A-Z][^*]*\*\*?)")
    return m and m[1], [("- " + "\n- ".join(s.strip() for s in named.split(p) if s.strip())) if len(named.findall(p)) > 1 else p for p in pieces]


def text_blocks(text):
    "One piece of Markdown as blocks, a paragraph that is too long for a slide as several."
    text = stacked(text)
    block = Block("text", text, height(text))
    if block.words <= WORDS or _kind(text) != "paragraph": return [block]
    said = sentences(text)
    half = next(i for i in range(1, len(said) + 1) if i == len(said) or len(" ".join(said[:i])) > len(text)/2)
    return [block] if half == len(said) else text_blocks(" ".join(said[:half])) + text_blocks(" ".join(said[half:]))


def code_blocks(cell, with_source):
    "What a code cell shows: its source if wanted, its outputs."
    said, source = preview.options(re.sub(r"^#\|(?!\s*[\w-]+:).*\n?", "", cell["source"], flags=re.MULTILINE))  # nbdev's directives have no colon
    if with_source: yield Block("code", source, 20 + 27*len(source.splitlines()))
    for out in cell["outputs"]:
        data = out.get("data", {}) if "data" in out else {"text/plain": out["text"]}
        if "image/png" in data:
            png = base64.b64decode(data["image/png"])
            shape = struct.unpack(">II", png[16:24])
            yield Block("image", "".join(data["image/png"].split()), 390 if shape[0] > 1.5*shape[1] else 470, prose(str(said.get("fig-cap", ""))), str(said.get("fig-alt", "")), shape)
        elif "text/html" in data:
            table = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
            yield Block("table", table, 30 + 36*table.count("<tr"))
        else:
            text = re.sub(r"\x1b\[[0-9;]*m", "", data["text/plain"]).rstrip()
            yield Block("output", text, 36 + 1.35*font(text)*len(text.splitlines()))


def font(text): return min(21, int(ACROSS/(.61*max(map(len, text.splitlines())))))


def slides(path):
    "The slides of a lesson."
    found, heading = [], ""
    for cell in notebooks.read(path)["cells"]:
        chosen = tags(cell)
        if cell["cell_type"] == "markdown":
            pieces = split_blocks(prose(cell["source"]))
            begins = BEGIN in chosen
            for piece in brief(pieces) if BRIEF in chosen else pieces:
                kind = _kind(piece)
                if kind == "heading":
                    heading, begins = piece.lstrip("# ").strip(), bool(chosen)
                    continue
                if not chosen: continue
                title, parts = quote(piece) if kind == "quote" else (None, [piece])
                if begins or title or not found: found.append(Slide(title or heading))
                begins = False
                for part in parts: found[-1].blocks += text_blocks(part)
        elif chosen:
            if BEGIN in chosen: found.append(Slide(heading))
            found[-1].blocks += code_blocks(cell, CODE in chosen)
    return [part for slide in found if not thin(slide) for part in fitted(slide)]


def thin(slide): return all(b.kind == "text" and b.words for b in slide.blocks) and sum(b.words for b in slide.blocks) < 25


# What fits on one

def _groups(blocks):
    "What must not be torn apart: a formula, list, table or output and the line that announces it."
    out = []
    for block in blocks:
        last = out[-1][-1] if out else None
        announced = last and last.kind == "text" and not last.is_formula and (last.text.endswith((":", ",")) or block.is_formula)
        if announced and sum(b.px for b in out[-1]) + block.px <= ROOM: out[-1].append(block)
        else: out.append([block])
    return out


def room(title): return ROOM - 48*(len(plain(title)) > 46)  # such a title takes two lines


def _announced(blocks):
    "The blocks without words that announce what does not follow."
    for block, after in zip(blocks, [*blocks[1:], None]):
        if block.kind == "text" and _kind(block.text) == "paragraph" and block.text.endswith(":") and (not after or after.kind == "text" and _kind(after.text) == "paragraph"):
            said = sentences(block.text)[:-1]
            if said: yield from text_blocks(" ".join(said))
        else: yield block


def fitted(slide):
    "The slide, or as few as hold it, filled evenly."
    groups = _groups(list(_announced(slide.blocks)))
    high = room(slide.title)
    size = [(sum(b.px for b in g), sum(b.words for b in g)) for g in groups]
    best = {len(groups): (0, 0, None)}  # from group i on: slides, unevenness, end of the first of them
    for i in range(len(groups) - 1, -1, -1):
        ways = []
        for j in range(i + 1, len(groups) + 1):
            px, words = (sum(s[k] for s in size[i:j]) for k in (0, 1))
            if j > i + 1 and (px > high or words > WORDS): break
            ways.append((best[j][0] + 1, best[j][1] + px**2, j))
        best[i] = min(ways)
    at, number = 0, 1
    while at < len(groups):
        end = best[at][2]
        yield Slide(slide.title + (f" ({number})" if number > 1 else ""), [b for g in groups[at:end] for b in g])
        at, number = end, number + 1


def image_size(slide, image):
    "Width and height of an image in what is left of the slide; twice its own size at most."
    caption = 30*-(-len(image.caption)//100) + 20
    left = room(slide.title) - caption - sum(b.px for b in slide.blocks if b is not image)
    scale = min(2, left/image.shape[1], ACROSS/image.shape[0])
    return int(image.shape[0]*scale), int(image.shape[1]*scale)


# Sources for Quarto

def table_columns(text):
    "A table with dashes under its heads as long as its columns are wide: by them Pandoc shares out the width."
    if not text.startswith("|"): return text
    lines = text.splitlines()
    rows = [[len(plain(cell)) for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in (lines[0], *lines[2:])]
    return "\n".join([lines[0], "|" + "|".join("-"*max(3, *column) for column in zip(*rows)) + "|", *lines[2:]])


def attribute(text): return " ".join(text.replace("\\", "").replace('"', "'").split())


def qmd(path, folder):
    "Write the source of a lesson's slides, and its images beside it; return its path."
    title, purpose = notebooks.head(path)
    lines = ["---", yaml.safe_dump(dict(title=title, subtitle=purpose, author=notebooks.settings()["author"], format="revealjs"),
                                   sort_keys=False, allow_unicode=True, width=1000).rstrip(), "---", ""]
    number = 0
    for slide in slides(path):
        lines += [f"## {slide.title}", ""]
        for block in slide.blocks:
            if block.kind == "text":
                cell = SimpleNamespace(cell_type="markdown", source=table_columns(block.text))
                Mermaid.cell(None, cell)
                lines += [cell.source] if shrunk(block) == 100 else [f'::: {{style="font-size: {shrunk(block)}%"}}', cell.source, ":::"]
            elif block.kind == "code": lines += ["```python", block.text, "```"]
            elif block.kind == "output": lines += [f'``` {{.output style="font-size: {font(block.text)}px"}}', block.text, "```"]
            elif block.kind == "table": lines += ["```{=html}", block.text, "```"]
            else:
                number += 1
                image = Path("images")/f"{path.stem}_{number:02}.png"
                (folder/image).parent.mkdir(exist_ok=True)
                (folder/image).write_bytes(base64.b64decode(block.text))
                w, h = image_size(slide, block)
                lines.append(f'![{block.caption}]({image.as_posix()}){{fig-alt="{attribute(block.alt)}" width="{w}px" height="{h}px"}}')
            lines.append("")
    out = folder/f"{path.stem}.qmd"
    out.write_text("\n".join(lines), encoding="utf-8", newline="\n")
    return out


def shrunk(block):
    "In per cent, the size at which a formula fits the slide's width, its number included."
    if not block.is_formula: return 100
    return max(60, min(100, int(90*ACROSS/formula_width(block.text))))


# KaTeX and not the site's MathJax: for slides Quarto loads MathJax by a plugin of reveal.js that knows only its version 2.
_PROJECT = f"""project:
  type: default
  render: ["*.qmd"]
  resources: [katex]

format:
  revealjs:
    theme: simple
    css: slides.css
    width: {WIDTH}
    height: {HEIGHT}
    margin: 0
    center: false
    auto-stretch: false
    slide-level: 2
    slide-number: true
    lang: en-GB
    html-math-method:
      method: katex
      url: katex/
    mermaid:
      theme: neutral
"""


def own_fonts(css):
    "A style sheet without the fonts that it would load from another host: slides.css names its own."
    return re.sub(r"@import\s*(?:url\(\s*)?[\"']?(?:https?:)?//[^;]*;", "", css)


def build(paths, out=SLIDES):
    "Write the sources; draw them where Quarto is. Returns one line that says what was done."
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out/"_quarto.yml").write_text(_PROJECT, encoding="utf-8", newline="\n")
    (out/"slides.css").write_text(style(), encoding="utf-8", newline="\n")
    for path in paths: qmd(path, out)
    if not shutil.which("quarto"): return f"{len(paths)} sources in {out}. Quarto, which draws them, is not installed (https://quarto.org); python -m tools.slides --preview shows them without."
    preview.draw_tools(out)
    shutil.copy(out/"katex"/"katex.css", out/"katex"/"katex.min.css")  # as Pandoc names it
    subprocess.run(["quarto", "render", "--no-cache"], cwd=out, env=notebooks.child_env(), check=True)
    for sheet in out.rglob("*.css"): sheet.write_text(own_fonts(sheet.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    if foreign := finish(out): raise SystemExit(f"these slides load from other hosts: {foreign}")
    return f"{len(paths)} lectures in {out}: open {out/paths[0].stem}.html"


# Without Quarto

def style():
    "The one style sheet, for reveal.js and for the preview."
    return _CSS + "\n".join(line for line in preview.HtmlFormatter(style="default").get_style_defs(".highlight").splitlines() if line.startswith(".highlight ."))


_CSS = f""":is(.slide, .reveal .slides > section) {{ box-sizing: border-box; width: {WIDTH}px; height: {HEIGHT}px; padding: 34px 72px 20px !important; text-align: left; overflow: hidden;
  background: #fff; color: #1d2026; font: 27px/1.4 "Source Sans Pro", "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; }}
:is(.slide, .reveal) :is(h1, h2) {{ font-family: inherit; font-weight: 600; font-size: 40px; line-height: 1.2; margin: 0 0 22px; color: #0a58a8; text-transform: none; letter-spacing: 0; }}
:is(.slide, .reveal) h1 {{ font-size: 60px; margin-top: 170px; }}
:is(.slide, .reveal) :is(p, ul, ol) {{ margin: 0 0 16px; }}
:is(.slide, .reveal) :is(ul, ol) {{ display: block; padding-left: 1.2em; }} :is(.slide, .reveal) li {{ margin-bottom: 6px; }}
:is(.slide, .reveal) .katex {{ font-size: 1.08em; }} :is(.slide, .reveal) .katex-display {{ margin: 0 0 16px; }}
:is(.slide, .reveal) table {{ border-collapse: collapse; font-size: 21px; line-height: 28px; margin: 0 0 16px; font-variant-numeric: tabular-nums; }}
:is(.slide, .reveal) :is(th, td) {{ padding: 4px 14px 4px 0; border: 0; border-bottom: 1px solid #d5d8de; text-align: left; vertical-align: top; }}
:is(.slide, .reveal) .dataframe :is(th, td) {{ text-align: right; white-space: nowrap; }}
:is(.slide, .reveal) :is(code, pre) {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }} :is(.slide, .reveal) code {{ font-size: .86em; background: none; }}
:is(.slide, .reveal) pre {{ width: auto; margin: 0 0 16px; padding: 8px 12px; font-size: 19px; line-height: 1.35; background: #f7f8fa; border-left: 3px solid #d5d8de; box-shadow: none; }}
:is(.slide, .reveal) pre code {{ font-size: 1em; padding: 0; max-height: none; }} .slide pre.mermaid {{ background: none; border: 0; padding: 0; text-align: center; }}
:is(.slide, .reveal) :is(.mermaid, .mermaid-js, .cell) svg {{ height: 370px; width: 100%; max-width: 100% !important; }}
:is(.slide, .reveal) figure {{ margin: 0 0 16px; text-align: center; }} :is(.slide, .reveal) img {{ display: block; margin: 0 auto; max-width: none; max-height: none; }}
:is(.slide, .reveal) figcaption {{ font-size: 21px; line-height: 30px; color: #565d69; text-align: left; margin-top: 8px; }}
.slide .subtitle, .reveal .subtitle {{ font-size: 30px; color: #565d69; }} .slide .number {{ position: absolute; right: 24px; bottom: 10px; font-size: 16px; color: #565d69; }}
.slide {{ position: relative; margin: 0 auto 20px; }} body.slides {{ margin: 0; background: #d5d8de; }}
body.one .slide {{ display: none; position: absolute; left: 0; top: 0; margin: 0; transform-origin: 0 0; }} body.one .slide.now {{ display: block; }} body.one {{ overflow: hidden; }}
@page {{ size: {WIDTH}px {HEIGHT}px; margin: 0; }}
@media print {{ body.slides .slide {{ display: block !important; position: relative !important; transform: none !important; margin: 0; break-after: page; }} body.slides {{ overflow: visible; }} }}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="stylesheet" href="slides.css">
{scripts}</head>
<body class="slides">
{sections}
<script>
// Without this script the slides stand one under another.
const all = [...document.querySelectorAll(".slide")], at = () => Math.max(0, Math.min(all.length, +location.hash.slice(1) || 1) - 1);
function show() {{
  const scale = Math.min(innerWidth/{width}, innerHeight/{height});
  all.forEach((s, i) => {{
    s.classList.toggle("now", i === at());
    s.style.transform = `translate(${{(innerWidth - scale*{width})/2}}px, ${{(innerHeight - scale*{height})/2}}px) scale(${{scale}})`;
  }});
}}
const step = {{ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1, Home: -1e6, End: 1e6}};
addEventListener("keydown", e => {{
  if (!step[e.key] || e.ctrlKey || e.metaKey || e.altKey) return;
  e.preventDefault();
  location.hash = Math.max(1, Math.min(all.length, at() + 1 + step[e.key]));
}});
addEventListener("hashchange", show);
addEventListener("resize", show);
addEventListener("load", async () => {{
  if (window.mermaid) await mermaid.run();  // a hidden diagram has no size
  document.body.classList.add("one");
  show();
}});
</script>
</body>
</html>
"""
_KATEX = preview._KATEX.replace('["output", "side"]', '["output"]')
_MERMAID = """<script src="mermaid.min.js"></script>
<script>mermaid.initialize({startOnLoad: false, theme: "neutral"});</script>
"""


def page(path, drawn=True):
    "A lesson's slides as one page of HTML."
    title, purpose = notebooks.head(path)
    markdown, code = MarkdownWithMath(renderer=preview.Renderer(lambda url: url)), Highlight2HTML()
    sections = [f'<h1>{html.escape(title)}</h1>\n<p class="subtitle">{html.escape(purpose)}</p>\n<p>{html.escape(notebooks.settings()["author"])}</p>']
    for slide in slides(path):
        parts = [f"<h2>{re.sub('^<p>|</p>$', '', markdown.render(slide.title).strip())}</h2>"]
        for b in slide.blocks:
            if b.kind == "text": parts.append(markdown.render(b.text) if shrunk(b) == 100 else f'<div style="font-size: {shrunk(b)}%">{markdown.render(b.text)}</div>')
            elif b.kind == "code": parts.append(code(b.text))
            elif b.kind == "output": parts.append(f'<pre class="output" style="font-size: {font(b.text)}px">{html.escape(b.text)}</pre>')
            elif b.kind == "table": parts.append(f'<div class="output">{b.text}</div>')
            else:
                (w, h), caption = image_size(slide, b), re.sub("^<p>|</p>$", "", markdown.render(b.caption).strip())
                parts.append(f'<figure><img src="data:image/png;base64,{b.text}" width="{w}" height="{h}" alt="{html.escape(b.alt)}"><figcaption>{caption}</figcaption></figure>')
        sections.append("\n".join(parts))
    body = "\n".join(f'<section class="slide">\n{s}\n<div class="number">{i}</div>\n</section>' for i, s in enumerate(sections, 1))
    scripts = (_KATEX*("$" in body) + _MERMAID*('class="mermaid"' in body)) if drawn else ""
    return _PAGE.format(title=html.escape(title), scripts=scripts, sections=body, width=WIDTH, height=HEIGHT)


def build_preview(paths, out=preview.PREVIEW):
    "Write the pages; return their paths and what could not be drawn."
    out.mkdir(parents=True, exist_ok=True)
    missing = ""
    try: preview.draw_tools(out)
    except OSError as err: missing = str(err)
    (out/"slides.css").write_text(style(), encoding="utf-8", newline="\n")
    written = [out/f"slides_{path.stem}.html" for path in paths]
    for path, to in zip(paths, written): to.write_text(page(path, not missing), encoding="utf-8", newline="\n")
    return written, missing


def main():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="lessons such as 05_fusion; all if none is named")
    parser.add_argument("--preview", action="store_true", help="pages of HTML in _preview/, without Quarto")
    parser.add_argument("--open", action="store_true", help="with --preview: show the first one in a browser")
    args = parser.parse_args()
    names = [Path(n).stem for n in args.names]
    if unknown := set(names) - {p.stem for p in lessons()}: sys.exit(f"no lesson is called {', '.join(sorted(unknown))}; there are {', '.join(p.stem for p in lessons())}")
    paths = [p for p in lessons() if not names or p.stem in names]
    if not args.preview: return print(build(paths))
    written, missing = build_preview(paths)
    if missing: print(f"Formulas and diagrams are shown as text: {missing}.")
    print(f"{len(written)} lectures in {preview.PREVIEW}: open {written[0]}")
    if args.open: webbrowser.open(written[0].as_uri())


if __name__ == "__main__":
    main()

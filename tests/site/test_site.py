"""The site's pages before Quarto gets them: formulas, diagrams, links, figures, headings, citations.

Pandoc, which Quarto runs too, reads the Markdown; KaTeX reads formulas and Mermaid diagrams, in Node.js.
Where Quarto is installed, it builds the site and a browser opens it.
"""
import functools
import http.server
import json
import posixpath
import re
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.parse import unquote

import pypandoc
import pytest
import yaml
from browsing import browser, sideways
from shared import made_once

from tools import badges, notebooks, preview, site

CFG = notebooks.settings()
HOME = f"{CFG['doc_host']}{CFG['doc_baseurl']}/"
# What Quarto understands; any other `#|` line would be shown to the reader.
QUARTO_KEYS = {"echo", "output", "include", "eval", "warning", "code-fold", "code-summary", "label",
               "fig-cap",
               "fig-alt"}


# Reading pages

FENCE = re.compile(r"^[ \t]*(`{3,})[ \t]*(\S*)[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)|<!--.*?-->", re.DOTALL)
# As Pandoc has it: no space inside the dollars, no digit behind them, no blank line between.
MATH = re.compile(r"(?<!\\)\$\$.+?\$\$|(?<![\\$])\$(?=[^\s$])(?:(?!\n\s*\n)[^$])+?(?<=[^\s\\])\$(?!\d)",
                  re.DOTALL)
HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
TAG = re.compile(r"<(?P<tag>a|img)\b(?P<rest>[^>]*)>")


def pandoc(text, *args):
    "What Pandoc makes of a text, as JSON."
    done = subprocess.run([pypandoc.get_pandoc_path(), *args], input=text, capture_output=True, text=True,
                          encoding="utf-8", check=True)
    return json.loads(done.stdout)


def walk(node, where):
    "(where, kind, contents) of all elements of Pandoc's tree, in the order of the text."
    if isinstance(node, dict):
        kind, inside = node.get("t"), node.get("c")
        if kind == "Div" and "cell" in inside[0][1]: where = dict(inside[0][2])["where"]
        if kind: yield where, kind, inside
        for value in node.values(): yield from walk(value, where)
    elif isinstance(node, list):
        for value in node: yield from walk(value, where)


def plain(inlines):
    "The text of Pandoc's inline elements."
    words = {"Str": lambda c: c, "Code": lambda c: c[1], "Math": lambda c: c[1]}
    return "".join(words[kind](inside) if kind in words else " "*(kind in ("Space", "SoftBreak"))
                   for _, kind, inside in walk(inlines, ""))


class Page:
    "A processed page, by its path from nbs/: its Markdown in pieces (where, text), cells, front matter."
    def __init__(self, name, cells, head):
        self.name, self.cells, self.head = name, cells, head
        self.html = head.get("output-file") or notebooks.html_name(name)
        self.pieces = []
        for i, cell in enumerate(cells):
            if cell["cell_type"] == "markdown": self.pieces.append((f"{name}, cell {i}", cell["source"]))
            for out in cell.get("outputs", ()):
                text = out.get("data", {}).get("text/markdown")
                if text: self.pieces.append((f"{name}, output of cell {i}", text))

    @functools.cached_property
    def elements(self):
        "Pandoc's elements, with the cells that they stand in; an escaped dollar sign is left out."
        text = "\n\n".join(f'::: {{.cell where="{where}"}}\n{text}\n:::' for where, text in self.pieces)
        text = text.replace("{mermaid}", "mermaid").replace(r"\$", "")
        return list(walk(pandoc(text, "-f", "markdown", "-t", "json")["blocks"], self.name))


def front_matter(text):
    "The YAML block at the beginning, and the text after it."
    m = re.match(r"---\n(.*?)\n---\s*(?:\n|$)", text, flags=re.DOTALL)
    return (yaml.safe_load(m[1]) or {}, text[m.end():]) if m else ({}, text)


def options(cell):
    "Quarto's `#| key: value` lines of a code cell."
    lines = re.findall(r"^#\|\s*(\S.*:.*)$", cell["source"], flags=re.MULTILINE)
    return (yaml.safe_load("\n".join(lines)) or {}) if lines else {}


def load(path, root):
    "The page of a file that nbdev has processed."
    name = path.relative_to(root).as_posix()
    if path.suffix == ".ipynb":
        cells = notebooks.read(path)["cells"]
        return Page(name, cells,
                    front_matter(cells[0]["source"])[0] if cells[0]["cell_type"] == "raw" else {})
    head, text = front_matter(path.read_text(encoding="utf-8"))
    return Page(name, [dict(cell_type="markdown", source=text)], head)


def planted(*sources, name="80_planted.ipynb", head=None):
    "A page of Markdown cells (and of cells given whole), as the checks get it."
    cells = [s if isinstance(s, dict) else dict(cell_type="markdown", source=s) for s in sources]
    return Page(name, cells, {"title": "T"} if head is None else head)


def without_code(text): return CODE.sub(" ", FENCE.sub("\n", text))


def prose(text): return MATH.sub(" ", without_code(text))


def formulas(page):
    "Where, TeX, whether on a line of its own."
    for where, kind, inside in page.elements:
        if kind == "Math": yield where, inside[1].strip(), inside[0]["t"] == "DisplayMath"


def diagrams(page):
    for where, text in page.pieces:
        for m in FENCE.finditer(text):
            if m[2] in ("{mermaid}", "mermaid"): yield where, m[3]


def attribute(rest, name):
    found = re.search(rf"""\b{name}=(["'])(.*?)\1""", rest)
    return found and found[2]


def tags(where, html):
    "Where, target, is it a picture, its text, of the <a> and <img> of a piece of HTML."
    for m in TAG.finditer(html):
        picture = m["tag"] == "img"
        to = attribute(m["rest"], "src" if picture else "href")
        if to: yield where, to, picture, attribute(m["rest"], "alt") if picture else "x"


def links(page):
    "Where, target, is it a picture, its text."
    for where, kind, inside in page.elements:
        if kind in ("Link", "Image"): yield where, inside[2][0], kind == "Image", plain(inside[1])
        if kind in ("RawInline", "RawBlock"): yield from tags(where, inside[1])


def headings(page):
    "Where, level, text, id."
    for where, kind, inside in page.elements:
        if kind == "Header": yield where, inside[0], plain(inside[2]), inside[1][0]


def symbols(page):
    "Ids of the functions and classes that the page documents."
    return {name for where, *_, name in headings(page) if "output of" in where}


def labels(page):
    "Labels of the page's figures."
    return [str(o["label"]) for c in page.cells if c["cell_type"] == "code" for o in [options(c)]
            if "label" in o]


def ask_node(script, given):
    "One run of a script of tools/js."
    try: folder = preview.js_folder()
    except (OSError, subprocess.TimeoutExpired) as err: pytest.skip(str(err))
    done = subprocess.run(["node", script], cwd=folder, input=json.dumps(given), capture_output=True,
                          text=True,
                          encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


# The checks: each yields what is wrong, one line each

def bad_formulas(pages):
    found = [f for page in pages for f in formulas(page)]
    for error in ask_node("formulas.mjs", [dict(tex=tex, display=display) for _, tex, display in found]):
        where, tex, _ = found[error["index"]]
        yield f"{where}: ${tex}$: {error['said']}"


def stray_dollars(pages):
    for page in pages:
        for where, kind, inside in page.elements:
            if kind == "Str" and "$" in inside: yield f"{where}: a $ that opens no formula, in {inside!r}"


def bad_diagrams(pages):
    found = [d for page in pages for d in diagrams(page)]
    for error in ask_node("diagrams.mjs", [text for _, text in found]):
        yield f"{found[error['index']][0]}: {error['said']}"


def broken_links(pages, folder):
    "Links to other pages, anchors, pictures, and lines of source; other hosts are not asked."
    ids = {page.html: {name for *_, name in headings(page)} | set(labels(page)) | {"refs"} for page in pages}
    sources = {page.name: page.html for page in pages}
    blobs = tuple(f"{CFG['git_url']}/blob/{at}/" for at in (CFG["branch"], badges.tag(CFG)))
    for page in pages:
        for where, kind, inside in page.elements:
            if kind == "Str" and "](" in inside: yield f"{where}: a link in the text of a link, {inside}"
        for where, to, is_picture, _ in links(page):
            if to.startswith(blobs):
                path, _, line = to.removeprefix(next(b for b in blobs if to.startswith(b))).partition("#L")
                file = notebooks.ROOT/path
                if not file.is_file(): yield f"{where}: no file {path}"
                elif line and int(line) > len(file.read_text(encoding="utf-8").splitlines()):
                    yield f"{where}: {path} has no line {line}"
                continue
            at = "" if to.startswith(HOME) else posixpath.dirname(page.name)
            to = to.removeprefix(HOME)
            if re.match(r"[a-z][a-z0-9+.-]*:|//", to): continue
            path, _, anchor = unquote(to).partition("#")
            path = path and posixpath.normpath(posixpath.join(at, path))
            target = page.html if not path else sources.get(path, path if path in ids else None)
            if is_picture or (target is None and Path(path).suffix not in {".ipynb", ".md", ".qmd", ".html"}):
                if not (folder/path).is_file(): yield f"{where}: no file {path}"
            elif target is None: yield f"{where}: no page {path}"
            elif anchor in symbols(page) and target != page.html and path == target:
                yield f"{where}: {anchor} leads to {target}, and this page documents its own"
            elif anchor and anchor not in ids[target]:
                yield f"{where}: {target} has no heading or figure #{anchor}"


def without_alt(pages):
    for page in pages:
        for where, to, is_picture, text in links(page):
            if is_picture and not (text or "").strip(): yield f"{where}: {to} has no alternative text"
        for i, cell in enumerate(page.cells):
            if cell["cell_type"] != "code": continue
            key = options(cell)
            if key.get("include") is False or key.get("output") is False: continue
            outputs = [out.get("data", {}) for out in cell.get("outputs", ())]
            drawn = any(kind.startswith("image/") for data in outputs for kind in data)
            if drawn and not str(key.get("fig-alt") or "").strip():
                yield f"{page.name}, cell {i}: a figure without fig-alt"
            for data in outputs:
                for _, _, is_picture, text in tags("", data.get("text/html", "")):
                    if not is_picture or text: continue
                    yield f"{page.name}, cell {i}: an <img> of its output has no alt"


def bad_headings(pages):
    for page in pages:
        if not page.head.get("title"): yield f"{page.name}: no title"
        before = 1
        for where, level, text, _ in headings(page):
            if level == 1: yield f"{where}: a second title, {text!r}"
            elif level > before + 1: yield f"{where}: {text!r} has level {level} under level {before}"
            before = level
        known = labels(page)
        for label in {x for x in known if known.count(x) > 1}: yield f"{page.name}: label {label} twice"


def empty_sections(pages):
    "Headings and colons with nothing behind them: what they announce is hidden on the site."
    listed = re.compile(r"\$\$|```|[-*|<] ?|!\[|\d+\.")
    for page in pages:
        shown = []  # (where, text or None for something that is not prose)
        for i, cell in enumerate(page.cells):
            where = f"{page.name}, cell {i}"
            if cell["cell_type"] == "markdown":
                text = re.sub(r"<!--.*?-->", "", cell["source"], flags=re.DOTALL).strip()
                if text: shown.append((where, text))
            elif cell["cell_type"] == "code" and options(cell).get("include") is not False:
                if options(cell).get("echo") is not False or cell.get("outputs"): shown.append((where, None))
        for (where, text), (_, after) in zip(shown, [*shown[1:], (None, "# the end")], strict=True):
            if text is None: continue
            parts = [p.strip() for p in re.split(r"\n\s*\n", FENCE.sub("x", text)) if p.strip()]
            for k, (part, behind) in enumerate(zip(parts, [*parts[1:], after], strict=True)):
                this, that = HEADING.match(part), behind is not None and HEADING.match(behind.strip())
                if this and that and len(that[1]) <= len(this[1]): yield f"{where}: nothing under {part!r}"
                last = k == len(parts) - 1 and part.endswith(":") and behind is not None
                if last and not listed.match(behind.strip()):
                    yield f"{where}: {part[-60:]!r} announces what the page does not show"


LEFT = re.compile(r"^\s*#\|.*|^\s*:{3,}.*|\{\{<.*|\{#[\w-]+\}|^show_doc\(.*", re.MULTILINE)


def directives(pages):
    "What nbdev or Quarto should have turned into something else."
    for page in pages:
        for i, cell in enumerate(page.cells):
            where = f"{page.name}, cell {i}"
            if cell["cell_type"] == "code":
                for m in re.finditer(r"^#\|[ \t]*([^\s:]*)(:?)", cell["source"], flags=re.MULTILINE):
                    if m[1] not in QUARTO_KEYS or not m[2]: yield f"{where}: #| {m[1]} is left"
                if "%%" in cell["source"][:2]: yield f"{where}: a magic is left"
                shows = re.search(r"^show_doc\(.*\)\s*\Z", cell["source"], flags=re.MULTILINE)
                if shows and not cell["outputs"]: yield f"{where}: {shows[0]} shows nothing"
            if any(out["output_type"] == "error"
                   for out in cell.get("outputs", ())): yield f"{where}: an error is shown"
        for where, text in page.pieces:
            for m in LEFT.finditer(prose(text)): yield f"{where}: {m[0].strip()!r} is left in the text"
            if re.search(r"^\s*`{3,}mermaid", text,
                         flags=re.MULTILINE): yield f"{where}: a diagram is not turned"


STARTS = re.compile(r"\s*(?:[-*+]|\d+[.)])\s")


def pandoc_traps(pages):
    "What JupyterLab shows one way and Pandoc another."
    for page in pages:
        for where, kind, inside in page.elements:
            if kind in ("RawInline",
                        "RawBlock") and inside[0] == "tex": yield f"{where}: {inside[1]} is dropped"
        for where, text in page.pieces:
            for m in re.finditer(r"(?<![\w\\<!|-])--(?=[a-z])\S*", prose(text)):
                yield f"{where}: {m[0]} becomes a dash; put it in backticks"
            lines = MATH.sub("x", CODE.sub("x", FENCE.sub(lambda f: "\n"*f[0].count("\n"),
                                                          text))).splitlines()
            yield from (f"{where}: {trap}" for trap in traps_of_lines(lines))
            # CODE and MATH are out: what is left of a row are its cells.
            yield from (f"{where}: {trap}" for trap in traps_of_rows(lines))
            for row in re.findall(r"^\|.*$", FENCE.sub("", text), flags=re.MULTILINE):
                for m in MATH.finditer(row):
                    if re.search(r"(?<!\\)\|", m[0]):
                        yield f"{where}: a | inside a formula of a table: {m[0]}; write \\vert"


def traps_of_lines(lines):
    "What lacks an empty line before it, and what looks like a list."
    for before, line in zip(["", *lines], lines, strict=False):
        begins = {"list": STARTS.match(line) and not STARTS.match(before) and before[0:1].strip()
                  and line[0:1].strip(),
                  "heading": re.match(r"#{1,6} ", line), "quotation": line[0:1] == ">" != before[0:1]}
        for what, found in begins.items():
            if found and before.strip(): yield f"no blank line before the {what} {line[:40]!r}"
        if re.match(r"\((?:\d+|[a-z])\)\s",
                    line) and not before.strip(): yield f"{line[:30]!r} becomes a list"


def traps_of_rows(lines):
    "Rows of a table that have more or fewer cells than its first."
    width = None
    for line in lines:
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1 if line.startswith("|") else None
        if width and cells and cells != width:
            yield f"a row of {cells} cells in a table of {width}: {line[:50]!r}"
        width = cells and (width or cells)


def citations(page):
    "Where and key of everything that Pandoc takes for a citation."
    for where, kind, inside in page.elements:
        if kind == "Cite":
            for citation in inside[0]: yield where, citation["citationId"]


def bibliography():
    "Key -> entry of references.bib, as Pandoc reads it."
    text = (notebooks.NBS/"references.bib").read_text(encoding="utf-8")
    return {entry["id"]: entry for entry in pandoc(text, "-f", "biblatex", "-t", "csljson")}


def bad_citations(pages, entries):
    figure = lambda key: key.startswith(("fig-", "tbl-", "eq-", "sec-"))
    for page in pages:
        for where, key in citations(page):
            if figure(key) and key not in labels(page): yield f"{where}: no figure is labelled {key}"
            if not figure(key) and key not in entries: yield f"{where}: @{key} is not in references.bib"
    for key, entry in entries.items():
        for field in ("title", "author", "issued"):
            if not entry.get(field): yield f"references.bib: {key} has no {field}"
    for key in entries.keys() - {key for page in pages for _, key in citations(page)}:
        yield f"references.bib: {key} is cited nowhere"


def bad_settings(settings, sources, folder):
    "What _quarto.yml names and what is there."
    text = json.dumps(settings["website"])
    named = re.findall(r"\"([\w./-]+\.(?:ipynb|md|qmd))\"", text)
    for name in sorted({n for n in named if named.count(n) > 1}): yield f"{name} twice in the sidebar"
    for name in sorted(set(named) - set(sources)): yield f"no page {name}"
    for name in sorted(set(sources) - set(named) - {"404.md"}): yield f"{name} is not in the sidebar"
    html = settings["format"]["html"]
    files = [settings["bibliography"], html["css"],
             *(f for theme in html["theme"].values() for f in theme if "." in f)]
    files += [settings["website"][key] for key in ("favicon",) if key in settings["website"]]
    for name in files:
        if not (folder/name).is_file(): yield f"no file {name}"


# The pages

@pytest.fixture(scope="module")
def proc(tmp_path_factory):
    _, place = made_once(tmp_path_factory, "site", lambda folder: str(preview.process(folder/"project")))
    return Path(place)


@pytest.fixture(scope="module")
def pages(proc):
    sources = {notebooks.NBS/name for _,
               names in site.pages_in_order() for name in names} | {notebooks.NBS/"404.md"}
    found = [load(p, proc) for p in sorted(proc.rglob("*")) if p.suffix in {".ipynb", ".md", ".qmd"}]
    assert {proc/path.relative_to(notebooks.NBS) for path in sources} == {proc/page.name for page in found}
    return found


def none(found):
    found = list(found)
    assert not found, "\n" + "\n".join(found)


def test_every_formula_is_read_by_katex(pages):
    none(bad_formulas(pages))
    none(stray_dollars(pages))
    print(sum(1 for page in pages for _ in formulas(page)), "formulas")


def test_every_diagram_is_read_by_mermaid(pages):
    none(bad_diagrams(pages))
    print(sum(1 for page in pages for _ in diagrams(page)), "diagrams")


def test_every_link_anchor_and_picture_is_there(pages, proc):
    none(broken_links(pages, proc))
    print(sum(1 for page in pages for _ in links(page)), "links")


def test_every_picture_has_alternative_text(pages): none(without_alt(pages))


def test_headings_descend(pages): none(bad_headings(pages))


def test_nothing_is_announced_that_is_not_shown(pages): none(empty_sections(pages))


def test_no_directive_is_left(pages): none(directives(pages))


def test_pandoc_reads_what_jupyter_shows(pages): none(pandoc_traps(pages))


def test_every_citation_is_in_the_bibliography_and_every_entry_is_cited(pages):
    none(bad_citations(pages, bibliography()))


def test_the_margin_of_a_notebook_leads_to_colab_binder_source_and_issues(pages):
    "The links are in the front matter, from where Quarto takes them, and no longer in the text."
    for page in (page for page in pages if page.name.endswith(".ipynb")):
        margin = {link["text"]: link["href"] for link in page.head["other-links"]}
        assert margin == badges.links(Path(page.name).stem, CFG) and page.head["repo-actions"] is False
        assert not any("colab.research" in to for _, to, *_ in links(page))


def test_what_a_lesson_exports_is_shown_once(pages):
    "A heading and a link to the source, then the source itself: no signature above it, nothing folded."
    page = next(page for page in pages if page.name == "05_fusion.ipynb")
    shown = [cell for cell in page.cells if re.search(r"^class MeanFusion\b", cell["source"], flags=re.M)]
    documented = [out["data"]["text/markdown"] for cell in page.cells for out in cell.get("outputs", ())
                  if "### MeanFusion\n" in out.get("data", {}).get("text/markdown", "")]
    assert len(shown) == len(documented) == 1 and "code-fold" not in shown[0]["source"]
    assert "[source](" in documented[0] and "def MeanFusion" not in documented[0]


def test_the_sidebar_names_every_page(pages, proc):
    none(bad_settings(yaml.safe_load(site.QUARTO.read_text(encoding="utf-8")), [page.name for page in pages],
                      proc))


def test_llms_txt_names_every_page_by_its_address(pages, proc):
    text = (proc/"llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# \S.*\n\n> \S.*\n\n", text)
    named = re.findall(r"^- \[[^]]+\]\((\S+)\): \S", text, flags=re.M)
    assert sorted(named) == sorted(HOME + page.html for page in pages if page.name != "404.md")


def test_a_lost_reader_is_led_back(pages):
    lost, = [page for page in pages if page.name == "404.md"]
    assert {"index.ipynb", "made/library.md"} <= {to for _, to, *_ in links(lost)}


# Each check bites

def says(found, *needles):
    found = list(found)
    assert len(found) == len(needles), found
    for needle, line in zip(needles, found, strict=True): assert needle in line, found


def test_planted_formulas_are_found():
    says(bad_formulas([planted("$x^2$ and `$\\frac{1$` and\n\n$$\\alpha_s = 1 \\tag{5.1}$$")]))
    says(bad_formulas([planted("$\\frac{1}{2$")]), "80_planted.ipynb, cell 0")
    says(bad_formulas([planted("a $\\tag{1} x$ b")]), "tag")
    says(bad_formulas([planted("$$a \\tag{1} b \\tag{2}$$", "$\\nothing$", "$x 那$")]), "tag", "nothing",
         "Unicode")
    says(stray_dollars([planted("it costs $5 and \\$6"), planted("$ x $")]), "in '$5'", "in '$'", "in '$'")


def test_planted_diagrams_are_found():
    says(bad_diagrams([planted("```{mermaid}\ngraph LR\n  A[one] --> B{two}\n```"),
                       planted("x\n\n```{mermaid}\ngraph LR\n  A[one --> B\n```")]),
         "80_planted.ipynb, cell 0")


def test_planted_links_are_found(tmp_path):
    (tmp_path/"images").mkdir()
    (tmp_path/"images"/"a.png").touch()
    figure = dict(cell_type="code", source="#| label: fig-one\nplot()", outputs=[])
    source = f"{CFG['git_url']}/blob/{CFG['branch']}/setup.py"
    good = planted("## The $x_s$ of `code`: 2 *by* two",
                   "[a](#the-x_s-of-code-2-by-two) [`f`](80_planted.ipynb#fig-one) ![p](images/a.png) "
                   f"[x](https://example.org/#y) [b]({HOME}planted.html#fig-one) [s]({source}#L3) "
                   "`[c](gone.ipynb)`", figure)
    says(broken_links([good], tmp_path))
    bad = planted("## One", "## One", "[ok](#one-1) [a](gone.ipynb)", "[b](#two)", "![c](images/b.png)",
                  f"[d]({HOME}planted.html#mall.dirty)", f"[e]({source}#L3000)",
                  '<a href="planted.html#three">f</a>', "[`g`](81_gone.html)", "[h](made/i.md)")
    documented = dict(cell_type="code", source="show_doc(fit)",
                      outputs=[dict(output_type="execute_result", data={"text/markdown": "### fit"})])
    twins = [planted(documented, f"[`fit`]({HOME}other.html#fit)"),
             planted(documented, name="81_other.ipynb")]
    says(broken_links(twins, tmp_path), "fit leads to other.html, and this page")
    says(broken_links([planted("[the [`a`](80_planted.html) of it](80_planted.ipynb)")], tmp_path),
         "a link in the text of a link")
    says(broken_links([bad], tmp_path), "no page gone.ipynb", "#two", "images/b.png", "#mall.dirty",
         "no line 3000", "#three", "no page 81_gone.html", "no page made/i.md")


def test_planted_pictures_without_text_are_found():
    picture = lambda source: dict(cell_type="code", source=source,
                                  outputs=[dict(output_type="display_data", data={"image/png": "x"})])
    says(without_alt([planted("![words](a.png)", picture('#| fig-alt: "A line."\nplot()'),
                              picture("#| include: false\nplot()"))]))
    says(without_alt([planted("![](a.png)", picture("plot()"), '<img src="b.png">')]), "a.png", "b.png",
         "fig-alt")


def test_planted_headings_are_found():
    says(bad_headings([planted("## A\n\n### B\n\n## C\n\n```sh\n# no heading\n```")]))
    says(bad_headings([planted("### A"), planted("## A\n\n#### B"), planted("# A"), planted("x", head={})]),
         "'A' has level 3", "'B' has level 4", "second title", "no title")
    twice = dict(cell_type="code", source="#| label: fig-a\nx", outputs=[])
    says(bad_headings([planted(twice, twice)]), "fig-a twice")


def test_planted_gaps_are_found():
    code = dict(cell_type="code", source="x = 1", outputs=[])
    says(empty_sections([planted("## A\n\ntext", "### B\n\nso:", code, "## C\n\nfirst:\n\n- one")]))
    says(empty_sections([planted("## A", "## B\n\ntext", "So it is:", "Next thing.")]),
         "nothing under '## A'", "So it is:")


def test_planted_directives_are_found():
    code = lambda source: dict(cell_type="code", source=source, outputs=[])
    says(directives([planted(code('#| echo: false\n#| fig-cap: "x"\ny'), "text `#| export`")]))
    says(directives([planted(code("#| export\nx"), code("#|hide\nx"), "::: {.callout}\nx\n:::",
                             "x {#eq-a}")]), "export", "hide", ":::", ":::", "{#eq-a}")


def test_planted_traps_are_found():
    good = "text\n\n- a\n- b\n\n`--x` $a--b$ 1–2\n\n| a | b |\n|---|---|\n| `x|y` | $\\vert$ |"
    says(pandoc_traps([planted(good)]))
    bad = planted("say --x", "text\n- a", "text\n## A", "text\n> q", "(1) a", "| a | b |\n|---|---|\n| a |",
                  "| a |\n|---|\n| $|x|$ |", "so \\alpha is")
    says(pandoc_traps([bad]), "is dropped", "--x", "before the list", "before the heading",
         "before the quotation",
         "becomes a list", "a row of 1 cells", "inside a formula")


def test_planted_citations_are_found():
    entries = dict(a2020=dict(title="T", author=["A"], issued="2020"))
    says(bad_citations([planted("[see @a2020, p. 3] ndcg@10 `@b`",
                                dict(cell_type="code", source="#| label: fig-x\n1", outputs=[]), "@fig-x")],
                       entries))
    entries["c2021"] = dict(title="T", issued="2021")
    says(bad_citations([planted("@a2020 @b2020 @fig-y")], entries), "@b2020", "fig-y", "c2021 has no author",
         "c2021 is cited nowhere")


def test_planted_settings_are_found(tmp_path):
    (tmp_path/"styles.css").touch()
    settings = dict(website=dict(sidebar=dict(contents=["a.md", "a.md", "gone.ipynb"])),
                    bibliography="refs.bib",
                    format=dict(html=dict(css="styles.css", theme=dict(light=["cosmo"]))))
    says(bad_settings(settings, ["a.md", "b.ipynb"], tmp_path), "a.md twice", "no page gone.ipynb",
         "b.ipynb is not in", "refs.bib")


# The site itself

def test_without_quarto_the_builder_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(site.shutil, "which", lambda *args, **kw: None)
    with pytest.raises(SystemExit, match="-m pip install quarto-cli") as told: site.build()
    assert "https://quarto.org/docs/get-started" in str(told.value)


def test_pages_that_would_load_from_another_host_are_found():
    bad = ('<script src="https://cdn.example.org/x.js"></script><img src="http://pix.example.net/1.png">'
           '<link rel="stylesheet" href="//fonts.example.com/a.css">')
    assert site.foreign_loads(bad) == ["cdn.example.org", "fonts.example.com", "pix.example.net"]
    good = ('<a href="https://example.org">x</a><script src="mathjax/tex.js"></script>'
            '<link rel="canonical" href="https://example.org/"><img src="images/a.png">')
    assert site.foreign_loads(good) == []
    polyfill = '<script src="https://cdnjs.cloudflare.com/polyfill/v3/polyfill.min.js?features=es6"></script><p>x</p>'
    widgets = """<script src="https://cdn.jsdelivr.net/npm/requirejs@2.3.6/require.js" integrity="s"></script>
        <script src="https://cdn.jsdelivr.net/npm/jquery@3.5.1/jquery.js" crossorigin="anonymous"></script>
        <script src="own.js"></script><script>define('jquery', [],function() {return window.jQuery;})</script>
        <br>"""
    assert site.drop_needless(polyfill) == "<p>x</p>"
    assert site.drop_needless(widgets).split() == ["<script", 'src="own.js"></script><br>']


@pytest.fixture(scope="module")
def served(proc, tmp_path_factory):
    "The site, rendered by Quarto and served from this machine."
    if shutil.which("quarto") is None: pytest.skip("needs Quarto: https://quarto.org/docs/get-started")
    if shutil.which("npm") is None: pytest.skip("needs npm for MathJax")
    folder = tmp_path_factory.mktemp("render")/"proc"
    shutil.copytree(proc, folder)
    site.add_mathjax(folder)
    subprocess.run(["quarto", "render", "--no-cache"], cwd=folder, env=notebooks.child_env(), check=True,
                   timeout=1500)
    assert site.finish(folder/"_docs") == {}
    # Under the path that the site has on its host: the page for a missing address names its style sheets so.
    shutil.move(folder/"_docs", folder/"root"/CFG["doc_baseurl"].strip("/"))
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *args: None))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0),
                                             functools.partial(handler, directory=folder/"root"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{CFG['doc_baseurl']}/"
    server.shutdown()
    server.server_close()


# Text against what lies behind it, by WCAG's formula; the lowest on the page and where.
CONTRAST = """() => {
  const rgb = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
  const part = v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4;
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map(part); return .2126*r + .7152*g + .0722*b; };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c[3] > .5) return c;
    }
    return [255, 255, 255, 1];
  };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("main :is(p, li, td, th, h2, h3, summary, figcaption, p a)")) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const a = light(rgb(getComputedStyle(e).color)), b = light(behind(e));
    const ratio = (Math.max(a, b) + .05)/(Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, e.textContent.trim().slice(0, 60)];
  }
  return worst;
}"""


# How many diagrams are drawn, after at most 20 s: Mermaid begins when all else is loaded.
DIAGRAMS = """(wanted) => new Promise(done => {
  const look = (left) => {
    const n = document.querySelectorAll("main :is(svg.mermaid-js, svg.flowchart)").length;
    n >= wanted || !left ? done(n) : setTimeout(look, 100, left - 1);
  };
  look(200);
})"""


def faults_of(tab, page):
    "What a browser sees wrong on a rendered page, at any width."
    if any(True for _ in formulas(page)): tab.wait_for_selector("mjx-container", timeout=60_000,
                                                                state="attached")
    drawn, wanted = tab.locator("mjx-container").count(), sum(1 for _ in formulas(page))
    if drawn < wanted: yield f"{drawn} of {wanted} formulas are drawn"
    if tab.locator("mjx-merror, [data-mjx-error]").count(): yield "MathJax reports an error"
    wanted = sum(1 for _ in diagrams(page))
    drawn = tab.evaluate(DIAGRAMS, wanted)
    if drawn < wanted: yield f"{drawn} of {wanted} diagrams are drawn"
    if (over := sideways(tab)) > 0: yield f"{over} px too wide"


def faults_of_a_wide(tab, page, order):
    "What is wrong with colours and with the ways on from a page, in a wide window."
    for _ in range(2):  # light and dark
        ratio, text = tab.evaluate(CONTRAST)
        if ratio < 4.5: yield f"contrast {ratio:.2f} of {text!r}"
        dark = "quarto-dark" in tab.locator("body").get_attribute("class")
        tab.locator(".quarto-color-scheme-toggle").first.click()
        other = "quarto-light" if dark else "quarto-dark"
        tab.wait_for_function(f"document.body.classList.contains('{other}')")
    if page.name not in order: return
    for side, at in (("previous", order.index(page.name) - 1), ("next", order.index(page.name) + 1)):
        there = 0 <= at < len(order)
        if there and not tab.locator(f".nav-page-{side} a").count(): yield f"no link to the {side} page"
    if not tab.locator(":is(.toc-actions, .quarto-other-links) a[href*='/blob/']").count():
        yield "no link to its source"


@pytest.mark.slow
def test_the_rendered_site_in_a_browser(served, pages):
    order = [name for _, names in site.pages_in_order() for name in names]
    wrong = []

    def opened(chrome, width):
        tab = chrome.new_context(viewport=dict(width=width, height=900)).new_page()
        tab.on("console", lambda m: wrong.append(f"{tab.url}: {m.text}") if m.type == "error" else None)
        tab.on("pageerror", lambda err: wrong.append(f"{tab.url}: {err}"))
        ours = (served, "data:", "blob:")
        tab.on("request",
               lambda r: None if r.url.startswith(ours) else wrong.append(f"{tab.url} asks for {r.url}"))
        return tab

    with browser() as chrome:
        for width in (1200, 768, 375):
            tab = opened(chrome, width)
            for page in pages:
                tab.goto(served + page.html, wait_until="networkidle")
                faults = [*faults_of(tab, page),
                          *(faults_of_a_wide(tab, page, order) if width == 1200 else ())]
                wrong += [f"{page.html}, {width} px: {fault}" for fault in faults]
            tab.context.close()
        tab = chrome.new_page()
        tab.goto(served + "index.html", wait_until="networkidle")
        icon = tab.locator("link[rel=icon]").get_attribute("href")
        if not tab.request.get(served + icon).ok: wrong.append(f"no favicon {icon}")
        tab.keyboard.press("/")
        tab.keyboard.type("softmax Jacobian")
        tab.locator(".aa-Item a[href*='fusion.html']").first.wait_for(timeout=20_000)
        tab.goto(served + "fusion.html", wait_until="networkidle")
        tab.locator(".code-copy-button").first.click()
        tab.locator(".code-copy-button-checked").wait_for(timeout=5_000)
    assert not wrong, "\n" + "\n".join(wrong)

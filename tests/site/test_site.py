"""The site's pages before Quarto gets them: formulas, diagrams, links, figures, headings, citations.

Formulas are read by KaTeX and diagrams by Mermaid, in Node.js. Where Pandoc is installed it reads the pages too and must
see the same headings, formulas and links as the checks here; where Quarto is, it builds the site and a browser opens it.
"""
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from browsing import browser, sideways

from tools import badges, notebooks, preview, site

CFG = notebooks.settings()
HOME = f"{CFG['doc_host']}{CFG['doc_baseurl']}/"
# What Quarto understands; any other `#|` line would be shown to the reader.
QUARTO_KEYS = {"echo", "output", "include", "eval", "warning", "code-fold", "code-summary", "label", "fig-cap", "fig-alt"}


# Reading pages

class Page:
    "A processed page: its Markdown in pieces (where, text), its cells, its front matter."
    def __init__(self, name, cells, head):
        self.name, self.cells, self.head = name, cells, head
        self.html = head.get("output-file") or notebooks.html_name(name)
        self.pieces = []
        for i, cell in enumerate(cells):
            if cell["cell_type"] == "markdown": self.pieces.append((f"{name}, cell {i}", cell["source"]))
            for out in cell.get("outputs", ()):
                if "text/markdown" in out.get("data", {}): self.pieces.append((f"{name}, output of cell {i}", out["data"]["text/markdown"]))


def load(path):
    "The page of a file that nbdev has processed."
    if path.suffix == ".ipynb":
        cells = notebooks.read(path)["cells"]
        return Page(path.name, cells, preview.front_matter(cells[0]["source"])[0] if cells[0]["cell_type"] == "raw" else {})
    head, text = preview.front_matter(path.read_text(encoding="utf-8"))
    return Page(path.name, [dict(cell_type="markdown", source=text)], head)


def planted(*sources, name="80_planted.ipynb", head=None):
    "A page of Markdown cells (and of cells given whole), as the checks get it."
    return Page(name, [s if isinstance(s, dict) else dict(cell_type="markdown", source=s) for s in sources], {"title": "T"} if head is None else head)


FENCE = re.compile(r"^[ \t]*(`{3,})[ \t]*(\S*)[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)|<!--.*?-->", re.DOTALL)
# As Pandoc has it: no space inside the dollars, no digit behind them, no blank line between.
MATH = re.compile(r"(?<!\\)\$\$(?P<display>.+?)\$\$|(?<![\\$])\$(?=[^\s$])(?P<inline>(?:(?!\n\s*\n)[^$])+?)(?<=[^\s\\])\$(?!\d)", re.DOTALL)
LINK = re.compile(r"(?P<mark>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<to>[^)\s]+)(?:\s+\"[^\"]*\")?\)")
TAG = re.compile(r"<(?P<tag>a|img)\b(?P<rest>[^>]*)>")
HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)


def without_code(text): return CODE.sub(" ", FENCE.sub("\n", text))


def prose(text): return MATH.sub(" ", without_code(text))


def formulas(page):
    "Where, TeX, whether on a line of its own."
    for where, text in page.pieces:
        for m in MATH.finditer(without_code(text)): yield where, m["display"] or m["inline"], m["display"] is not None


def diagrams(page):
    for where, text in page.pieces:
        for m in FENCE.finditer(text):
            if m[2] in ("{mermaid}", "mermaid"): yield where, m[3]


def attribute(rest, name):
    found = re.search(rf"""\b{name}=(["'])(.*?)\1""", rest)
    return found and found[2]


def links(page):
    "Where, target, is it a picture, its text."
    for where, text in page.pieces:
        text = MATH.sub("x", CODE.sub("x", FENCE.sub("\n", text)))
        for m in LINK.finditer(text): yield where, m["to"], bool(m["mark"]), m["text"]
        for m in TAG.finditer(text):
            to = attribute(m["rest"], "href" if m["tag"] == "a" else "src")
            if to: yield where, to, m["tag"] == "img", attribute(m["rest"], "alt") if m["tag"] == "img" else "x"


def headings(page):
    "Where, level, plain text, id."
    taken = set()
    for where, text in page.pieces:
        for m in HEADING.finditer(CODE.sub(lambda c: c[0] if c[0][0] == "`" else " ", FENCE.sub("\n", text))):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", m[2])
            plain = re.sub(r"(?<!\w)[*_]+|[*_]+(?!\w)", "", re.sub(r"[`$]", "", plain))
            name = preview.heading_id(plain, taken)
            taken.add(name)
            yield where, len(m[1]), m[2], name


def symbols(page):
    "Ids of the functions and classes that the page documents."
    return {preview.heading_id(m[2]) for where, text in page.pieces if "output of" in where for m in HEADING.finditer(text)}


def labels(page):
    "Labels of the page's figures."
    return [str(said["label"]) for c in page.cells if c["cell_type"] == "code" for said in [preview.options(c["source"])[0]] if "label" in said]


def ask_node(script, given):
    "One run of a script of tools/js."
    try: folder = preview.js_folder()
    except (OSError, subprocess.TimeoutExpired) as err: pytest.skip(str(err))
    done = subprocess.run(["node", script], cwd=folder, input=json.dumps(given), capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


# The checks: each yields what is wrong, one line each

def bad_formulas(pages):
    found = [f for page in pages for f in formulas(page)]
    for said in ask_node("formulas.mjs", [dict(tex=tex, display=display) for _, tex, display in found]):
        where, tex, _ = found[said["index"]]
        yield f"{where}: ${tex}$: {said['said']}"


def stray_dollars(pages):
    for page in pages:
        for where, text in page.pieces:
            for m in re.finditer(r"(?<!\\)\$", prose(text)): yield f"{where}: a $ that opens no formula, near {prose(text)[max(0, m.start() - 30):m.end() + 20]!r}"


def bad_diagrams(pages):
    found = [d for page in pages for d in diagrams(page)]
    for said in ask_node("diagrams.mjs", [text for _, text in found]): yield f"{found[said['index']][0]}: {said['said']}"


def broken_links(pages, folder):
    "Links to other pages, anchors, pictures, and lines of source; other hosts are not asked."
    ids = {page.html: {name for *_, name in headings(page)} | set(labels(page)) | {"refs"} for page in pages}
    sources = {page.name: page.html for page in pages}
    blobs = tuple(f"{CFG['git_url']}/blob/{at}/" for at in (CFG["branch"], badges.tag(CFG)))
    for page in pages:
        for where, to, is_picture, said in links(page):
            if said and "](" in said: yield f"{where}: a link in the text of the link to {to}"
            if to.startswith(blobs):
                path, _, line = to.removeprefix(next(b for b in blobs if to.startswith(b))).partition("#L")
                if not (notebooks.ROOT/path).is_file(): yield f"{where}: no file {path}"
                elif line and int(line) > len((notebooks.ROOT/path).read_text(encoding="utf-8").splitlines()): yield f"{where}: {path} has no line {line}"
                continue
            to = to.removeprefix(HOME)
            if re.match(r"[a-z][a-z0-9+.-]*:|//", to): continue
            path, _, anchor = unquote(to).partition("#")
            path = path.removeprefix("./")
            target = page.html if not path else sources.get(path, path if path in ids else None)
            if is_picture or (target is None and Path(path).suffix not in {".ipynb", ".md", ".qmd", ".html"}):
                if not (folder/path).is_file(): yield f"{where}: no file {path}"
            elif target is None: yield f"{where}: no page {path}"
            elif anchor and target != page.html and to.endswith(f"{target}#{anchor}") and anchor in ids[page.html] and anchor in symbols(page):
                yield f"{where}: {anchor} leads to {target}, and this page documents its own"
            elif anchor and anchor not in ids[target]: yield f"{where}: {target} has no heading or figure #{anchor}"


def without_alt(pages):
    for page in pages:
        for where, to, is_picture, text in links(page):
            if is_picture and not (text or "").strip(): yield f"{where}: {to} has no alternative text"
        for i, cell in enumerate(page.cells):
            if cell["cell_type"] != "code": continue
            said = preview.options(cell["source"])[0]
            if said.get("include") is False or said.get("output") is False: continue
            if any(kind.startswith("image/") for out in cell.get("outputs", ()) for kind in out.get("data", {})) and not str(said.get("fig-alt") or "").strip():
                yield f"{page.name}, cell {i}: a figure without fig-alt"
            for out in cell.get("outputs", ()):
                for m in TAG.finditer(out.get("data", {}).get("text/html", "")):
                    if m["tag"] == "img" and not attribute(m["rest"], "alt"): yield f"{page.name}, cell {i}: an <img> of its output has no alt"


def bad_headings(pages):
    for page in pages:
        if not page.head.get("title"): yield f"{page.name}: no title"
        before = 1
        for where, level, text, _ in headings(page):
            if level == 1: yield f"{where}: a second title, {text!r}"
            elif level > before + 1: yield f"{where}: {text!r} has level {level} under level {before}"
            before = level
        said = labels(page)
        for label in {x for x in said if said.count(x) > 1}: yield f"{page.name}: label {label} twice"


def empty_sections(pages):
    "Headings and colons with nothing behind them: what they announce is hidden on the site."
    for page in pages:
        shown = []  # (where, text or None for something that is not prose)
        for i, cell in enumerate(page.cells):
            where = f"{page.name}, cell {i}"
            if cell["cell_type"] == "markdown":
                text = re.sub(r"<!--.*?-->", "", cell["source"], flags=re.DOTALL).strip()
                if text: shown.append((where, text))
            elif cell["cell_type"] == "code" and preview.options(cell["source"])[0].get("include") is not False:
                if preview.options(cell["source"])[0].get("echo") is not False or cell.get("outputs"): shown.append((where, None))
        for (where, text), (_, after) in zip(shown, [*shown[1:], (None, "# the end")]):
            if text is None: continue
            parts = [p for p in re.split(r"\n\s*\n", FENCE.sub("x", text)) if p.strip()]
            for part, behind in zip(parts, [*parts[1:], after]):
                this, that = HEADING.match(part.strip()), behind is not None and HEADING.match(behind.strip())
                if this and that and len(that[1]) <= len(this[1]): yield f"{where}: nothing under {part.strip()!r}"
                if part is parts[-1] and part.strip().endswith(":") and behind is not None and not re.match(r"\$\$|```|[-*|<] ?|!\[|\d+\.", behind.strip()):
                    yield f"{where}: {part.strip()[-60:]!r} announces what the page does not show"


def directives(pages):
    for page in pages:
        for i, cell in enumerate(page.cells):
            if cell["cell_type"] == "code":
                for m in re.finditer(r"^#\|[ \t]*([^\s:]*)(:?)", cell["source"], flags=re.MULTILINE):
                    if m[1] not in QUARTO_KEYS or not m[2]: yield f"{page.name}, cell {i}: #| {m[1]} is left"
                if "%%" in cell["source"][:2]: yield f"{page.name}, cell {i}: a magic is left"
            for out in cell.get("outputs", ()):
                if out["output_type"] == "error": yield f"{page.name}, cell {i}: an error is shown"
        for where, text in page.pieces:
            for m in re.finditer(r"^\s*#\|.*|^\s*:{3,}.*|\{\{<.*|\{#[\w-]+\}|^show_doc\(.*", prose(text), flags=re.MULTILINE): yield f"{where}: {m[0].strip()!r} is left in the text"


def pandoc_traps(pages):
    "What JupyterLab shows one way and Pandoc another."
    for page in pages:
        for where, text in page.pieces:
            plain = prose(text)
            for m in re.finditer(r"(?<![\w\\<!|-])--(?=[a-z])\S*", plain): yield f"{where}: {m[0]} becomes a dash; put it in backticks"
            lines = MATH.sub("x", CODE.sub("x", FENCE.sub(lambda f: "\n" * f[0].count("\n"), text))).splitlines()
            for before, line in zip(["", *lines], lines):
                starts = lambda s: re.match(r"\s*(?:[-*+]|\d+[.)])\s", s)
                if starts(line) and not line.startswith(" ") and before.strip() and not starts(before) and not before.startswith((" ", "\t")):
                    yield f"{where}: no blank line before the list {line[:40]!r}"
                if re.match(r"#{1,6} ", line) and before.strip(): yield f"{where}: no blank line before the heading {line[:40]!r}"
                if line.startswith(">") and before.strip() and not before.startswith(">"): yield f"{where}: no blank line before the quotation {line[:40]!r}"
                if re.match(r"\((?:\d+|[a-z])\)\s", line) and not before.strip(): yield f"{where}: {line[:30]!r} becomes a list"
            # CODE and MATH are out: what is left of a row are its cells.
            width = None
            for line in lines:
                if not line.startswith("|"): width = None; continue
                cells = len(re.findall(r"(?<!\\)\|", line)) - 1
                if width is not None and cells != width: yield f"{where}: a row of {cells} cells in a table of {width}: {line[:50]!r}"
                width = width or cells
            for row in re.findall(r"^\|.*$", FENCE.sub("", text), flags=re.MULTILINE):
                for m in MATH.finditer(row):
                    if re.search(r"(?<!\\)\|", m[0]): yield f"{where}: a | inside a formula of a table: {m[0]}; write \\vert"


def citations(page):
    "Where and key of everything that Pandoc takes for a citation; figures are not among them."
    for where, text in page.pieces:
        plain = re.sub(r"\]\([^)]*\)|<[^>]*>", " ", prose(text))
        for m in re.finditer(r"(?<![\w@.])-?@\{?([A-Za-z0-9_](?:[\w:.#$%&+?<>~/-]*\w)?)", plain):
            if not m[1].startswith(("fig-", "tbl-", "eq-", "sec-")): yield where, m[1]


def bad_citations(pages, entries):
    for page in pages:
        figures = labels(page)
        for where, key in citations(page):
            if key not in entries: yield f"{where}: @{key} is not in references.bib"
        for where, text in page.pieces:
            for key in re.findall(r"(?<!\w)@((?:fig|tbl|eq|sec)-[\w-]*\w)", prose(text)):
                if key not in figures: yield f"{where}: no figure is labelled {key}"
    for key, entry in entries.items():
        for field in ("title", "author", "year"):
            if not entry.get(field): yield f"references.bib: {key} has no {field}"
    for key in entries.keys() - {key for page in pages for _, key in citations(page)}: yield f"references.bib: {key} is cited nowhere"


def bad_settings(settings, sources, folder):
    "What _quarto.yml names and what is there."
    text = json.dumps(settings["website"])
    named = re.findall(r"\"([\w./-]+\.(?:ipynb|md|qmd))\"", text)
    for name in sorted({n for n in named if named.count(n) > 1}): yield f"{name} twice in the sidebar"
    for name in sorted(set(named) - set(sources)): yield f"no page {name}"
    for name in sorted(set(sources) - set(named) - {"404.md"}): yield f"{name} is not in the sidebar"
    html = settings["format"]["html"]
    files = [settings["bibliography"], html["css"], *(f for theme in html["theme"].values() for f in theme if "." in f)]
    files += [settings["website"][key] for key in ("favicon",) if key in settings["website"]]
    for name in files:
        if not (folder/name).is_file(): yield f"no file {name}"


# The pages

@pytest.fixture(scope="module")
def proc(tmp_path_factory):
    return preview.process(tmp_path_factory.mktemp("site")/"project")


@pytest.fixture(scope="module")
def pages(proc):
    found = [load(p) for p in sorted(proc.iterdir()) if p.suffix in {".ipynb", ".md", ".qmd"}]
    assert len(found) > 3
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


def test_every_citation_is_in_the_bibliography_and_every_entry_is_cited(pages): none(bad_citations(pages, preview.bibliography()))


def test_the_sidebar_names_every_page(pages, proc):
    none(bad_settings(yaml.safe_load(site.QUARTO.read_text(encoding="utf-8")), [page.name for page in pages], proc))


def test_llms_txt_names_every_page_by_its_address(pages, proc):
    text = (proc/"llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# \S.*\n\n> \S.*\n\n", text)
    named = re.findall(r"^- \[[^]]+\]\((\S+)\): \S", text, flags=re.M)
    assert sorted(named) == sorted(HOME + page.html for page in pages if page.name != "404.md")


def test_a_lost_reader_is_led_back(pages):
    lost, = [page for page in pages if page.name == "404.md"]
    assert {"index.ipynb", "library.md"} <= {to for _, to, *_ in links(lost)}


def walk(node, kind):
    "All elements of a kind in Pandoc's tree."
    if isinstance(node, dict):
        if node.get("t") == kind: yield node["c"]
        for value in node.values(): yield from walk(value, kind)
    elif isinstance(node, list):
        for value in node: yield from walk(value, kind)


@pytest.mark.skipif(shutil.which("pandoc") is None, reason="needs Pandoc, which comes with Quarto: https://pandoc.org")
def test_pandoc_sees_the_same_headings_formulas_and_links(pages):
    for page in pages:
        text = "\n\n".join(text for _, text in page.pieces)
        done = subprocess.run(["pandoc", "-f", "markdown", "-t", "json"], input=text, capture_output=True, text=True, encoding="utf-8", check=True)
        tree = json.loads(done.stdout)["blocks"]
        assert [name for *_, name in headings(page)] == [h[1][0] for h in walk(tree, "Header")], page.name
        assert [(tex.strip(), display) for _, tex, display in formulas(page)] == [(m[1].strip(), m[0]["t"] == "DisplayMath") for m in walk(tree, "Math")], page.name
        assert sorted(unquote(to) for _, to, is_picture, _ in links(page) if not is_picture) == sorted(unquote(a[2][0]) for a in walk(tree, "Link")), page.name
        cited = [c["citationId"] for group in walk(tree, "Cite") for c in group[0]]
        assert sorted(key for _, key in citations(page)) == sorted(key for key in cited if not key.startswith("fig-")), page.name


# Each check bites

def says(found, *needles):
    found = list(found)
    assert len(found) == len(needles) and all(needle in line for needle, line in zip(needles, found)), found


def test_planted_formulas_are_found():
    says(bad_formulas([planted("$x^2$ and `$\\frac{1$` and\n\n$$\\alpha_s = 1 \\tag{5.1}$$")]))
    says(bad_formulas([planted("$\\frac{1}{2$")]), "80_planted.ipynb, cell 0")
    says(bad_formulas([planted("a $\\tag{1} x$ b")]), "tag")
    says(bad_formulas([planted("$$a \\tag{1} b \\tag{2}$$", "$\\nothing$", "$x 那$")]), "tag", "nothing", "Unicode")
    says(stray_dollars([planted("it costs $5 and \\$6"), planted("$ x $")]), "costs $5", "opens no", "opens no")


def test_planted_diagrams_are_found():
    says(bad_diagrams([planted("```{mermaid}\ngraph LR\n  A[one] --> B{two}\n```"), planted("x\n\n```{mermaid}\ngraph LR\n  A[one --> B\n```")]), "80_planted.ipynb, cell 0")


def test_planted_links_are_found(tmp_path):
    (tmp_path/"images").mkdir()
    (tmp_path/"images"/"a.png").touch()
    figure = dict(cell_type="code", source="#| label: fig-one\nplot()", outputs=[])
    good = planted("## The $x_s$ of `code`: 2 *by* two", "[a](#the-x_s-of-code-2-by-two) [`f`](80_planted.ipynb#fig-one) ![p](images/a.png) [x](https://example.org/#y)",
                   f"[b]({HOME}planted.html#fig-one) [s]({CFG['git_url']}/blob/{CFG['branch']}/setup.py#L3) `[c](gone.ipynb)`", figure)
    says(broken_links([good], tmp_path))
    bad = planted("## One", "## One", "[ok](#one-1) [a](gone.ipynb)", "[b](#two)", "![c](images/b.png)", f"[d]({HOME}planted.html#mall.dirty)",
                  f"[e]({CFG['git_url']}/blob/{CFG['branch']}/setup.py#L3000)", '<a href="planted.html#three">f</a>', "[`g`](81_gone.html)")
    documented = dict(cell_type="code", source="show_doc(fit)", outputs=[dict(output_type="execute_result", data={"text/markdown": "### fit"})])
    twins = [planted(documented, f"[`fit`]({HOME}other.html#fit)"), planted(documented, name="81_other.ipynb")]
    says(broken_links(twins, tmp_path), "fit leads to other.html, and this page")
    says(broken_links([planted("[the [`a`](80_planted.html) of it](80_planted.ipynb)")], tmp_path), "a link in the text of the link to 80_planted.ipynb")
    says(broken_links([bad], tmp_path), "no page gone.ipynb", "#two", "images/b.png", "#mall.dirty", "no line 3000", "#three", "no page 81_gone.html")


def test_planted_pictures_without_text_are_found():
    picture = lambda source: dict(cell_type="code", source=source, outputs=[dict(output_type="display_data", data={"image/png": "x"})])
    says(without_alt([planted("![words](a.png)", picture('#| fig-alt: "A line."\nplot()'), picture("#| include: false\nplot()"))]))
    says(without_alt([planted("![](a.png)", picture("plot()"), '<img src="b.png">')]), "a.png", "b.png", "fig-alt")


def test_planted_headings_are_found():
    says(bad_headings([planted("## A\n\n### B\n\n## C\n\n```sh\n# no heading\n```")]))
    says(bad_headings([planted("### A"), planted("## A\n\n#### B"), planted("# A"), planted("x", head={})]), "'A' has level 3", "'B' has level 4", "second title", "no title")
    twice = dict(cell_type="code", source="#| label: fig-a\nx", outputs=[])
    says(bad_headings([planted(twice, twice)]), "fig-a twice")


def test_planted_gaps_are_found():
    code = dict(cell_type="code", source="x = 1", outputs=[])
    says(empty_sections([planted("## A\n\ntext", "### B\n\nso:", code, "## C\n\nfirst:\n\n- one")]))
    says(empty_sections([planted("## A", "## B\n\ntext", "So it is:", "Next thing.")]), "nothing under '## A'", "So it is:")


def test_planted_directives_are_found():
    code = lambda source: dict(cell_type="code", source=source, outputs=[])
    says(directives([planted(code('#| echo: false\n#| fig-cap: "x"\ny'), "text `#| export`")]))
    says(directives([planted(code("#| export\nx"), code("#|hide\nx"), "::: {.callout}\nx\n:::", "x {#eq-a}")]), "export", "hide", ":::", ":::", "{#eq-a}")


def test_planted_traps_are_found():
    says(pandoc_traps([planted("text\n\n- a\n- b\n\n`--x` $a--b$ 1–2\n\n| a | b |\n|---|---|\n| `x|y` | $\\vert$ |")]))
    bad = planted("say --x", "text\n- a", "text\n## A", "text\n> q", "(1) a", "| a | b |\n|---|---|\n| a |", "| a |\n|---|\n| $|x|$ |")
    says(pandoc_traps([bad]), "--x", "before the list", "before the heading", "before the quotation", "becomes a list", "a row of 1 cells", "inside a formula")


def test_planted_citations_are_found():
    entries = dict(a2020=dict(title="T", author=[["A", "B"]], year="2020"))
    says(bad_citations([planted("[see @a2020, p. 3] ndcg@10 `@b`", dict(cell_type="code", source="#| label: fig-x\n1", outputs=[]), "@fig-x")], entries))
    entries["c2021"] = dict(title="T", year="2021")
    says(bad_citations([planted("@a2020 @b2020 @fig-y")], entries), "@b2020", "fig-y", "c2021 has no author", "c2021 is cited nowhere")


def test_planted_settings_are_found(tmp_path):
    (tmp_path/"styles.css").touch()
    settings = dict(website=dict(sidebar=dict(contents=["a.md", "a.md", "gone.ipynb"])), bibliography="refs.bib", format=dict(html=dict(css="styles.css", theme=dict(light=["cosmo"]))))
    says(bad_settings(settings, ["a.md", "b.ipynb"], tmp_path), "a.md twice", "no page gone.ipynb", "b.ipynb is not in", "refs.bib")


@pytest.mark.parametrize("text, name", [("Heading identifiers in HTML", "heading-identifiers-in-html"), ("Maître d'hôtel", "maître-dhôtel"), ("3. Applications", "applications"),
                                        ("Dogs?--in my house?", "dogs--in-my-house"), ("33", "section"), ("Mall.dirty", "mall.dirty"), ("What is α?", "what-is-α")])
def test_ids_are_those_of_pandocs_manual(text, name):
    assert preview.heading_id(text) == name
    assert preview.heading_id(text, {name}) == f"{name}-1"


# The site itself

@pytest.fixture(scope="module")
def served(proc, tmp_path_factory):
    "The site, rendered by Quarto and served from this machine."
    if shutil.which("quarto") is None: pytest.skip("needs Quarto: https://quarto.org/docs/get-started")
    if shutil.which("npm") is None: pytest.skip("needs npm for MathJax")
    folder = tmp_path_factory.mktemp("render")/"proc"
    shutil.copytree(proc, folder)
    site.add_mathjax(folder)
    subprocess.run(["quarto", "render", "--no-cache"], cwd=folder, env=notebooks.child_env(), check=True, timeout=1500)
    assert site.finish(folder/"_docs") == {}
    # Under the path that the site has on its host: the page for a missing address names its style sheets by it.
    shutil.move(folder/"_docs", folder/"root"/CFG["doc_baseurl"].strip("/"))
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *args: None))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder/"root"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{CFG['doc_baseurl']}/"
    server.shutdown()
    server.server_close()


# Text against what lies behind it, by WCAG's formula; the lowest on the page and where.
CONTRAST = """() => {
  const rgb = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
  const light = (c) => { const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= .03928 ? v/12.92 : ((v + .055)/1.055)**2.4); return .2126*r + .7152*g + .0722*b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] > .5) return c; } return [255, 255, 255, 1]; };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("main p, main li, main td, main th, main h2, main h3, main summary, main figcaption, main p a")) {
    if (!e.textContent.trim() || !e.getClientRects().length) continue;
    const a = light(rgb(getComputedStyle(e).color)), b = light(behind(e)), ratio = (Math.max(a, b) + .05)/(Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, e.textContent.trim().slice(0, 60)];
  }
  return worst;
}"""


# How many diagrams are drawn, after at most 20 s: Mermaid begins when all else is loaded.
DIAGRAMS = """(wanted) => new Promise(done => {
  const look = (left) => { const n = document.querySelectorAll("main :is(svg.mermaid-js, svg.flowchart)").length; n >= wanted || !left ? done(n) : setTimeout(look, 100, left - 1); };
  look(200);
})"""


@pytest.mark.slow
def test_the_rendered_site_in_a_browser(served, proc, pages):
    def flat(contents): return [name for entry in contents for name in (flat(entry["contents"]) if isinstance(entry, dict) else [entry])]
    order = flat(yaml.safe_load((proc/"_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"])
    with browser() as chrome:
        wrong = []
        for width in (1200, 768, 375):
            context = chrome.new_context(viewport=dict(width=width, height=900))
            tab = context.new_page()
            tab.on("console", lambda m: wrong.append(f"{tab.url}: {m.text}") if m.type == "error" else None)
            tab.on("pageerror", lambda err: wrong.append(f"{tab.url}: {err}"))
            tab.on("request", lambda r: wrong.append(f"{tab.url} asks for {r.url}") if not r.url.startswith((served, "data:", "blob:")) else None)
            for page in pages:
                tab.goto(served + page.html, wait_until="networkidle")
                if any(True for _ in formulas(page)): tab.wait_for_selector("mjx-container", timeout=60_000, state="attached")
                drawn = tab.locator("mjx-container").count()
                if drawn < sum(1 for _ in formulas(page)): wrong.append(f"{page.html}: {drawn} formulas are drawn")
                if tab.locator("mjx-merror, [data-mjx-error]").count(): wrong.append(f"{page.html}: MathJax reports an error")
                wanted = sum(1 for _ in diagrams(page))
                if (drawn := tab.evaluate(DIAGRAMS, wanted)) < wanted: wrong.append(f"{page.html}: {drawn} diagrams are drawn")
                if (over := sideways(tab)) > 0: wrong.append(f"{page.html}: {over} px too wide for a window of {width}")
                if width == 1200:
                    for _ in range(2):  # light and dark
                        ratio, said = tab.evaluate(CONTRAST)
                        if ratio < 4.5: wrong.append(f"{page.html}: contrast {ratio:.2f} of {said!r}")
                        dark = "quarto-dark" in tab.locator("body").get_attribute("class")
                        tab.locator(".quarto-color-scheme-toggle").first.click()
                        tab.wait_for_function(f"document.body.classList.contains('quarto-{'light' if dark else 'dark'}')")
                    if page.name in order:
                        for side, at in (("previous", order.index(page.name) - 1), ("next", order.index(page.name) + 1)):
                            if 0 <= at < len(order) and not tab.locator(f".nav-page-{side} a").count(): wrong.append(f"{page.html}: no link to the {side} page")
                        if not tab.locator(".toc-actions a[href*='/blob/'], .toc-actions a[href*='/edit/']").count(): wrong.append(f"{page.html}: no link to its source")
            context.close()
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

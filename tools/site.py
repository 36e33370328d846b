"""The site: what nbdev and Quarto do not do by themselves.

    python -m tools.site     build the site into _docs/ (make docs; needs Quarto, and npm for MathJax)
"""
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from itertools import pairwise
from pathlib import Path

import yaml
from nbdev.process import Processor

from tools import badges, notebooks
from tools.pages import PAGES

PARTS = (  # first and last number of a notebook, heading in the sidebar
    (0, 11, "I The article, made to work"),
    (12, 16, "II Models that know scenarios"),
    (17, 19, "III Large models"),
    (20, 23, "IV In production"),
    (24, 27, "V Trust"),
    (90, 99, "The command"),
)
WRITTEN = ("teaching.md",)  # pages written by hand, in the sidebar with those of nbs/made
QUARTO = notebooks.NBS/"_quarto.yml"      # nbdev reads this one
QUARTO_COPY = notebooks.ROOT/"_quarto.yml"
_BEGIN, _END = "    # sidebar: begin (written by tools/site.py)\n", "    # sidebar: end\n"
MATHJAX = "mathjax@3.2.2"
NO_QUARTO = """The site is built by Quarto, which is not installed here. Either
  {python} -m pip install quarto-cli
brings it, or an installer from https://quarto.org/docs/get-started. Then run make docs again.
Everything else (notebooks, tests, make preview, README.md) works without it."""


# What nbdev runs on every notebook (procs in settings.ini)

class Mermaid(Processor):
    "Turn ```mermaid fences, which JupyterLab and GitHub draw, into the ```{mermaid} that Quarto draws."
    def cell(self, cell):
        "Rewrite the opening fences of a Markdown cell."
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"^(\s*`{3,})mermaid\s*$", r"\1{mermaid}", cell.source, flags=re.MULTILINE)


class OneLink(Processor):
    """Keep the author's link where nbdev links the name of a symbol inside its text.

    A link in a link would show its brackets.
    """
    def cell(self, cell):
        "Take the inner links out of a Markdown cell."
        if cell.cell_type == "markdown":
            inner = r"\[([^\[\]]*)\[(`[^`]+`)\]\([^()\s]*\)([^\[\]]*)\]\("
            cell.source = re.sub(inner, r"[\1\2\3](", cell.source)


class ShowOnce(Processor):
    """Show what a lesson exports once, as it is written: nbdev would repeat signature and docstring above it.

    The heading stays, which the page of the library links to, and the link to the source.
    """
    def end(self):
        "Shorten the documentation above each shown source, and open the source."
        for above, cell in pairwise(self.nb.cells):
            shown = re.search(r"^show_doc\((\w+)\)$", above.source, flags=re.MULTILINE)
            defined = shown and re.search(rf"^(class|def) {shown[1]}\b", cell.source, flags=re.MULTILINE)
            if not defined: continue
            cell.source = re.sub(r"^#\| code-(fold|summary):.*\n", "", cell.source, flags=re.MULTILINE)
            for out in above.outputs:
                if text := "".join(out.get("data", {}).get("text/markdown", "")):
                    out["data"]["text/markdown"] = text.partition("\n```python")[0] + "\n"


class Links(Processor):
    "Put a notebook's links (Colab, Binder, source, mistakes) into the page's margin, in place of its line."
    def cell(self, cell):
        "Take the line out of the second cell."
        if cell.cell_type == "markdown": cell.source = badges.LINE.sub("", cell.source)

    def end(self):
        "Add the links to nbdev's front matter; they replace Quarto's own links to the repository."
        front = getattr(self.nb, "frontmatter_", None)
        if not front: return
        links = badges.links(Path(self.nb.path_).stem, notebooks.settings())
        front |= {"other-links": [{"text": text, "href": url} for text, url in links.items()],
                  "repo-actions": False}
        self.nb.cells[0].source = f"---\n{yaml.safe_dump(front, allow_unicode=True)}---\n"


# The sidebar

def pages_in_order():
    "[(heading, paths from nbs/)]: the home page, the parts that have notebooks, the pages to look up."
    names = [p.name for p in notebooks.paths("[0-9][0-9]*_*.ipynb")]
    found = [("", [p.name for p in notebooks.paths("index.ipynb")])]
    found += [(heading, [n for n in names if first <= int(n[:2]) <= last]) for first, last, heading in PARTS]
    found += [("To look up", [*PAGES, *WRITTEN])]
    return [(heading, names) for heading, names in found if names]


def sidebar():
    "The sidebar's contents as YAML."
    lines = ["    contents:\n"]
    for heading, names in pages_in_order():
        if heading: lines += [f'      - section: "{heading}"\n', "        contents:\n"]
        lines += [f"{' '*(10 if heading else 6)}- {name}\n" for name in names]
    return "".join(lines)


def with_sidebar(text):
    "The text of _quarto.yml with the sidebar of today."
    before, rest = text.split(_BEGIN)
    return before + _BEGIN + sidebar() + _END + rest.split(_END)[1]


# Building

def add_mathjax(folder):
    "Put a copy of MathJax into the folder, so that pages load it from the site itself."
    npm = shutil.which("npm")
    if not npm: sys.exit("npm is needed to fetch MathJax for the site: install Node.js (https://nodejs.org)")
    with tempfile.TemporaryDirectory() as temp:
        subprocess.run([npm, "pack", MATHJAX, "--silent", "--pack-destination", temp], check=True)
        with tarfile.open(next(Path(temp).glob("mathjax-*.tgz"))) as archive:
            archive.extractall(temp, filter="data")
        shutil.copytree(Path(temp)/"package"/"es5", Path(folder)/"mathjax", dirs_exist_ok=True)


_LOADS = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=["'](https?:)?//([^/"']+)[^>]*>""")
_NO_LOAD = re.compile(r"""\brel=["'](?:canonical|alternate|author|license)["']""")


def foreign_loads(html):
    "The hosts that a page would load scripts, pictures or styles from; links that a reader clicks are none."
    return sorted({m[2] for m in _LOADS.finditer(html) if not _NO_LOAD.search(m[0])})


# What Quarto takes from other hosts without need: a script for browsers of before 2015 ahead of MathJax, and
# where a cell's output is HTML, as each table is, require.js and jQuery, in case the output is a widget.
_NEEDLESS = re.compile(r"""<script src="https://[^"]*(?:polyfill|/requirejs@|/jquery@)[^>]*></script>\s*"""
                       r"""|<script[^>]*>define\('jquery'.*?</script>\s*""")


def drop_needless(html):
    "Without the scripts of other hosts that no page of ours uses."
    return _NEEDLESS.sub("", html)


def finish(docs):
    "Drop the needless scripts from all rendered pages; return page -> hosts that it would still load from."
    foreign = {}
    for page in docs.rglob("*.html"):
        html = drop_needless(page.read_text(encoding="utf-8"))
        page.write_text(html, encoding="utf-8", newline="\n")
        if hosts := foreign_loads(html): foreign[page.name] = hosts
    return foreign


def llms(cfg=None):
    """The text of llms.txt: the site in one page for programs that read, after https://llmstxt.org.

    It is made when the site is built, since it holds the site's address.
    """
    cfg = cfg or notebooks.settings()
    home = f"{cfg['doc_host']}{cfg['doc_baseurl']}"
    lines = [f"# {cfg['title']}", "", f"> {cfg['description']}.", "",
             "Each notebook derives numbered formulas, codes them beside the derivation, and exports a "
             f"module of the same name. Source, with all notebooks and tests: {cfg['git_url']}"]
    for heading, names in pages_in_order():
        lines += ["", f"## {heading or 'Start'}", ""]
        for name in names:
            title, purpose = notebooks.head(notebooks.NBS/name)
            lines.append(f"- [{title}]({home}/{notebooks.html_name(name)}): {purpose}")
    return "\n".join(lines) + "\n"


def complete(proc):
    "Put what nbdev leaves out into the folder of processed pages: with recursive = False, all folders."
    for name in ("images", "made"): shutil.copytree(notebooks.NBS/name, proc/name, dirs_exist_ok=True)
    (proc/"llms.txt").write_text(llms(), encoding="utf-8", newline="\n")


def build():
    "Process the notebooks, render them with Quarto, and check that no page needs another host."
    env = notebooks.child_env(PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    quarto = shutil.which("quarto", path=env["PATH"])
    if not quarto: sys.exit(NO_QUARTO.format(python=sys.executable))
    proc, docs = notebooks.ROOT/"_proc", notebooks.ROOT/"_docs"
    subprocess.run(["nbdev_proc_nbs", "--force"], cwd=notebooks.ROOT, env=env, check=True)
    complete(proc)
    add_mathjax(proc)
    subprocess.run([quarto, "render", "--no-cache"], cwd=proc, env=env, check=True)
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(proc/"_docs", docs)
    if foreign := finish(docs):
        sys.exit("these pages load from other hosts:\n"
                 + "\n".join(f"  {k}: {v}" for k, v in foreign.items()))
    print(f"{sum(1 for _ in docs.rglob('*.html'))} pages in {docs}")



if __name__ == "__main__":
    build()

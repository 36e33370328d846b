"""The site: what nbdev and Quarto do not do by themselves.

    python -m tools.site sidebar          bring the sidebar in both _quarto.yml in step with nbs/
    python -m tools.site sidebar --check  only say whether it is
    python -m tools.site build            build the site into _docs/ (needs Quarto, and npm for MathJax)
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import yaml
from nbdev.process import Processor

from tools import notebooks
from tools.pages import BY_HAND, PAGES

PARTS = (  # first and last number of a notebook, heading in the sidebar
    (0, 11, "I The article, made to work"),
    (12, 16, "II Models that know scenarios"),
    (17, 19, "III Large models"),
    (20, 23, "IV In production"),
    (24, 27, "V Trust"),
    (90, 99, "The command"),
)
QUARTO = notebooks.NBS/"_quarto.yml"      # nbdev reads this one
QUARTO_COPY = notebooks.ROOT/"_quarto.yml"
_BEGIN, _END = "    # sidebar: begin (written by tools/site.py)\n", "    # sidebar: end\n"
MATHJAX = "mathjax@3.2.2"


class Mermaid(Processor):
    "Turn ```mermaid fences, which JupyterLab and GitHub draw, into the ```{mermaid} that Quarto draws."
    def cell(self, cell):
        "Rewrite the opening fences of a Markdown cell."
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"^(\s*`{3,})mermaid\s*$", r"\1{mermaid}", cell.source, flags=re.MULTILINE)


class OneLink(Processor):
    "nbdev links the name of a symbol even inside the text of a link, and a link in a link shows its brackets: the author's link stays."
    def cell(self, cell):
        "Take the inner links out of a Markdown cell."
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\[([^\[\]]*)\[(`[^`]+`)\]\([^()\s]*\)([^\[\]]*)\]\(", r"[\1\2\3](", cell.source)


def sidebar():
    "The sidebar's contents as YAML: the home page, the parts in teaching order, the pages that are made; only what exists."
    lines = ["    contents:\n"]
    if (notebooks.NBS/"index.ipynb").exists(): lines.append("      - index.ipynb\n")
    for first, last, heading in PARTS:
        pages = [p.name for p in notebooks.paths("[0-9][0-9]_*.ipynb") if first <= int(p.name[:2]) <= last]
        if pages: lines += [f'      - section: "{heading}"\n', "        contents:\n"]
        lines += [f"          - {page}\n" for page in pages]
    made = [name for name in (*PAGES, *BY_HAND) if (notebooks.NBS/name).exists()]
    if made: lines += ['      - section: "To look up"\n', "        contents:\n", *(f"          - {name}\n" for name in made)]
    return "".join(lines)


def with_sidebar(text):
    "The text of _quarto.yml with the sidebar of today."
    before, rest = text.split(_BEGIN)
    return before + _BEGIN + sidebar() + _END + rest.split(_END)[1]


def write_sidebar(check=False):
    "Bring both _quarto.yml in step; with `check`, only return whether they are."
    text = with_sidebar(QUARTO.read_text(encoding="utf-8"))
    in_step = all(p.exists() and p.read_text(encoding="utf-8") == text for p in (QUARTO, QUARTO_COPY))
    if not check and not in_step:
        for path in (QUARTO, QUARTO_COPY): path.write_text(text, encoding="utf-8")
    return in_step


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
    "The hosts that a page would load scripts, pictures or styles from; links that a reader clicks do not count."
    return sorted({m[2] for m in _LOADS.finditer(html) if not _NO_LOAD.search(m[0])})


# What Quarto takes from other hosts without need: a script for browsers of before 2015 ahead of MathJax, and on a page where a
# cell's output is HTML, as each table is, require.js and jQuery, in case the output is a widget.
_NEEDLESS = re.compile(r"""<script src="https://[^"]*(?:polyfill|/requirejs@|/jquery@)[^"]*"[^>]*></script>\s*|<script[^>]*>define\('jquery'.*?</script>\s*""")


def drop_needless(html):
    "Without the scripts of other hosts that no page of ours uses."
    return _NEEDLESS.sub("", html)


def finish(docs):
    "Drop the needless scripts from all rendered pages; returns page: hosts of those that would still load something."
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
    contents = yaml.safe_load(with_sidebar(QUARTO.read_text(encoding="utf-8")))["website"]["sidebar"]["contents"]
    lines = [f"# {cfg['title']}", "", f"> {cfg['description']}.", "",
             "Each notebook derives numbered formulas, codes them beside the derivation, and exports a module of the same name. "
             f"Source, with all notebooks and tests: {cfg['git_url']}"]
    for part in contents:
        heading, names = ("Start", [part]) if isinstance(part, str) else (part["section"], part["contents"])
        lines += ["", f"## {heading}", ""]
        for name in names:
            title, purpose = notebooks.head(notebooks.NBS/name)
            lines.append(f"- [{title}]({home}/{notebooks.html_name(name)}): {purpose}")
    return "\n".join(lines) + "\n"


def complete(proc):
    "Put what nbdev's stage leaves out into the folder of processed pages: with recursive = False it copies no folder."
    shutil.copytree(notebooks.NBS/"images", proc/"images", dirs_exist_ok=True)
    (proc/"llms.txt").write_text(llms(), encoding="utf-8", newline="\n")


def build():
    "Process the notebooks, render them with Quarto, and check that no page needs another host."
    proc, docs = notebooks.ROOT/"_proc", notebooks.ROOT/"_docs"
    env = notebooks.child_env(PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    subprocess.run(["nbdev_proc_nbs", "--force"], cwd=notebooks.ROOT, env=env, check=True)
    complete(proc)
    add_mathjax(proc)
    subprocess.run(["quarto", "render", "--no-cache"], cwd=proc, env=env, check=True)
    shutil.rmtree(docs, ignore_errors=True)
    shutil.move(proc/"_docs", docs)
    foreign = finish(docs)
    if foreign: sys.exit("these pages load from other hosts:\n" + "\n".join(f"  {k}: {v}" for k, v in foreign.items()))
    print(f"{sum(1 for _ in docs.rglob('*.html'))} pages in {docs}")


def main():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sidebar", "build"])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.what == "build": return build()
    if not write_sidebar(args.check) and args.check: sys.exit("_quarto.yml is out of step with nbs/: run make export")


if __name__ == "__main__":
    main()

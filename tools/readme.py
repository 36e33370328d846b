"""README.md from nbs/index.ipynb, without Quarto.

nbdev's filters take out what the directives hide, nbconvert writes Markdown, and links and pictures, which
the notebook names from nbs/, are rewritten to work from the root. The line under the title comes from
settings.ini.
"""
import posixpath
import re

from execnb.nbio import nb2dict, read_nb
from nbconvert import MarkdownExporter
from nbdev.process import NBProcessor
from nbdev.processors import (
    clean_magics,
    filter_stream_,
    hide_,
    hide_line,
    populate_language,
    rm_export,
    rm_header_dash,
    strip_ansi,
    strip_hidden_metadata,
)
from nbformat import from_dict
from traitlets.config import Config

from tools import notebooks
from tools.badges import links
from tools.pages import PAGES

README = notebooks.ROOT/"README.md"
INDEX = notebooks.NBS/"index.ipynb"
HEAD = "<!-- Made from nbs/index.ipynb by tools/readme.py: edit there, then make export. -->\n\n"
# Of nbdev's default filters those that run no code and look up no link: README.md needs only the notebook.
FILTERS = [populate_language, strip_ansi, hide_line, filter_stream_, rm_header_dash, rm_export, clean_magics,
           hide_, strip_hidden_metadata]
_FENCE = re.compile(r"(^\s*```.*?^\s*```[^\n]*$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"""(\]\(|\b(?:src|href)=["'])([^)\s"']+)""")


def _exists(path): return (notebooks.ROOT/path).exists() or path.removeprefix("nbs/") in PAGES


def from_root(markdown, base="nbs", exists=_exists):
    "Rewrite the relative links and pictures of Markdown that lies in `base` so that they work from the root."
    def rewrite(match):
        target, hash_, anchor = match[2].partition("#")
        if not target or re.match(r"[a-z][a-z0-9+.-]*:|/", target): return match[0]
        path = posixpath.normpath(posixpath.join(base, target))
        if not exists(path): raise SystemExit(f"index.ipynb links to {target}, which does not exist")
        return match[1] + path + hash_ + anchor
    parts = _FENCE.split(markdown)  # odd parts are code: left alone
    return "".join(part if i % 2 else _LINK.sub(rewrite, part) for i, part in enumerate(parts))


def badges(cfg):
    "One line of links under the title, from settings.ini."
    tests, binder = f"{cfg['git_url']}/actions/workflows/test.yml", links("index", cfg)["Open in Binder"]
    return (f"[![tests]({tests}/badge.svg)]({tests}) · [site]({cfg['doc_host']}{cfg['doc_baseurl']}) · "
            f"[source]({cfg['git_url']}) · [in Binder]({binder})")


def _options(source):
    "Quarto's `#| key: value` lines of a cell, and the source without them."
    found = dict(re.findall(r"^#\|\s*([\w-]+):\s*(.*?)\s*$", source, flags=re.MULTILINE))
    return found, re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE)


def render(path=INDEX):
    "The text of README.md."
    nb = read_nb(path)
    NBProcessor(nb=nb, procs=FILTERS, process=True)
    cells = []
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source = from_root(cell.source)
        elif cell.cell_type == "code":
            options, cell.source = _options(cell.source)
            if options.get("include") == "false": continue
            if options.get("output") == "false": cell.outputs = []
            if options.get("echo") == "false": cell.metadata["transient"] = {"remove_source": True}
            for out in cell.outputs:
                if any(kind.startswith("image/") for kind in out.get("data", {})):
                    raise SystemExit("index.ipynb shows a picture; put it into nbs/images and link to it")
        cells.append(cell)
    first = cells[0].source.rstrip()
    cells[0].source = f"{first}\n\n{badges(notebooks.settings())}"
    nb.cells = cells
    plain = nb2dict(nb)
    for cell in plain["cells"]:  # nbdev leaves lists of lines where nbconvert wants one string
        cell["source"] = "".join(cell["source"])
        for out in cell.get("outputs", ()):
            if "text" in out: out["text"] = "".join(out["text"])
            for kind, data in out.get("data", {}).items():
                if isinstance(data, list): out["data"][kind] = "".join(data)
    plain["metadata"] = {"language_info": {"name": "python"}}
    config = Config({"NbConvertBase": {"display_data_priority": ["text/markdown", "text/plain"]}})
    text, _ = MarkdownExporter(config=config).from_notebook_node(from_dict(plain))
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return HEAD + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

"""What leads from a notebook to the places where it runs, made from settings.ini.

A notebook keeps one line, "Open in Colab", and the hidden cell that Colab needs. The site shows more links in
the margin (`tools.site.Links`). All are pinned to the tag of the version in settings.ini: a reader of version
0.1.0 gets its notebooks, whatever main holds by then. They are words, not pictures: a picture would be loaded
from another host at each view.
"""
import re
from urllib.parse import quote

LINE = re.compile(r"\n*^\[Open in Colab\]\(\S+\)\s*\Z", re.MULTILINE)
_MARK = "# In Colab alone: "


def tag(cfg):
    "The release tag of the version in settings.ini."
    return f"v{cfg['version']}"


def links(name, cfg):
    "Words -> address of what a reader can do with a notebook, in the order in which the site shows them."
    page, repo = f"{cfg['nbs_path']}/{name}.ipynb", cfg["git_url"].removeprefix("https://github.com/")
    return {"Open in Colab": f"https://colab.research.google.com/github/{repo}/blob/{tag(cfg)}/{page}",
            "Open in Binder": f"https://mybinder.org/v2/gh/{repo}/{tag(cfg)}?labpath={quote(page, safe='')}",
            "View the source": f"{cfg['git_url']}/blob/{tag(cfg)}/{page}",
            "Report a mistake": f"{cfg['git_url']}/issues/new?title={quote(f'{name}, {tag(cfg)}: ')}"}


def line(name, cfg):
    "The last line of a notebook's second cell."
    return f"[Open in Colab]({links(name, cfg)['Open in Colab']})"


def colab(cfg):
    "The cell that installs the tagged source in Colab, beside its PyTorch, and does nothing elsewhere."
    return "\n".join(("#| hide", f"{_MARK}the course at its tag. Made from settings.ini by make export.",
                      'if "google.colab" in str(get_ipython()):',
                      f'    course = "{cfg["git_url"]}/archive/{tag(cfg)}.zip"',
                      f'    %pip install -q "{cfg["lib_name"]}[colab] @ {{course}}"'))


def mark(nb, name, cfg):
    "The notebook with its line and its cell for Colab, changed in place."
    cells = nb["cells"]
    text = LINE.sub("", "".join(cells[1]["source"])).rstrip() + "\n\n" + line(name, cfg)
    cells[1]["source"] = text.splitlines(keepends=True)
    cell = next((c for c in cells if c["cell_type"] == "code" and _MARK in "".join(c["source"])), None)
    if cell is None:
        cell = dict(cell_type="code", execution_count=None, id="c01ab000", metadata={}, outputs=[])
        cells.insert(2, cell)
    cell["source"] = colab(cfg).splitlines(keepends=True)
    return nb

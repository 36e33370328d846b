"""The line of links and the cell for Colab that stand in every notebook, made from settings.ini.

    python -m tools.badges          write them (a part of make export)
    python -m tools.badges --check  only say whether they are in step

Links are pinned to the tag of the version in settings.ini: a reader of version 0.1.0 gets its notebooks, whatever main
holds by then. They are words, not pictures: a picture would be loaded from another host at each view.
"""
import argparse
import re
import shlex
import sys
from urllib.parse import quote

from tools import notebooks

_LINE = re.compile(r"\n*^\*\*Open this page\*\*.*\Z", re.MULTILINE | re.DOTALL)
_MARK = "# In Colab alone: "
NOT_IN_COLAB = {"jupyterlab", "ipywidgets", "nbgrader", "scikit-learn"}  # there already, or of no use there


def tag(cfg):
    "The release tag of the version in settings.ini."
    return f"v{cfg['version']}"


def line(name, cfg):
    "The links of one notebook, as the last paragraph of its second cell."
    repo, page = cfg["git_url"].removeprefix("https://github.com/"), f"{cfg['nbs_path']}/{name}.ipynb"
    links = {"in Colab": f"https://colab.research.google.com/github/{repo}/blob/{tag(cfg)}/{page}",
             "in Binder": f"https://mybinder.org/v2/gh/{repo}/{tag(cfg)}?labpath={quote(page, safe='')}",
             "its source": f"{cfg['git_url']}/blob/{tag(cfg)}/{page}",
             "report a mistake": f"{cfg['git_url']}/issues/new?title={quote(f'{name}, {tag(cfg)}: ')}"}
    return "**Open this page** " + " · ".join(f"[{text}]({url})" for text, url in links.items())


def colab(cfg):
    "The cell that installs the tagged source in Colab, beside Colab's own PyTorch, and does nothing elsewhere."
    words = lambda key: [r for r in shlex.split(cfg[key]) if not r.startswith("torch")]
    more = [r for r in words("lab_requirements") if re.split(r"[<>=]", r)[0] not in NOT_IN_COLAB]
    few = [r for r in words("requirements") if re.split(r"[<>=]", r)[0] in ("safetensors", "filelock", "tqdm", "typer")]
    quoted = " ".join(f'"{r}"' for r in few + more)
    return "\n".join(("#| hide", f"{_MARK}the course at its tag, beside the PyTorch that is there. Made from settings.ini by tools/badges.py.",
                      'if "google.colab" in str(get_ipython()):',
                      f'    %pip install -q {quoted}',
                      f'    %pip install -q --no-deps "{cfg["lib_name"]} @ {cfg["git_url"]}/archive/refs/tags/{tag(cfg)}.zip"'))


def mark(nb, name, cfg):
    "The notebook with its links and its cell for Colab, changed in place."
    cells = nb["cells"]
    second = cells[1]
    text = _LINE.sub("", "".join(second["source"])).rstrip() + "\n\n" + line(name, cfg)
    second["source"] = text.splitlines(keepends=True)
    old = next((c for c in cells if c["cell_type"] == "code" and _MARK in "".join(c["source"])), None)
    if old is None:
        old = dict(cell_type="code", execution_count=None, id="c01ab000", metadata={}, outputs=[])
        cells.insert(2, old)
    old["source"] = colab(cfg).splitlines(keepends=True)
    return nb


def write(check=False, paths=None):
    "Bring all notebooks in step; return the names of those that were not."
    cfg = notebooks.settings()
    return [path.name for path in paths or notebooks.paths() if notebooks.rewrite(path, lambda nb: mark(nb, path.stem, cfg), check)]


def main():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a notebook is out of step")
    args = parser.parse_args()
    behind = write(args.check)
    if behind and args.check: sys.exit(f"links out of step with settings.ini: {', '.join(behind)}; run make export")


if __name__ == "__main__":
    main()

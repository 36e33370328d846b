"""All that is made from something else, in one table.

    python -m tools.export           bring it in step (make export)
    python -m tools.export --check   write nothing; name what is out of step, and exit 1 if anything is
"""
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from nbdev.clean import clean_nb

from tools import badges, notebooks, pages, readme, release, site, tidy

ROOT, NBS = notebooks.ROOT, notebooks.NBS
PACKAGE = ROOT/notebooks.settings()["lib_name"]
BY_HAND = ("__init__", "__main__", *pages.PLAIN)  # modules that come from no notebook
STALE = "has no source: delete it"


# What makes the texts: functions that return path -> text, with None for a file that should not be there

def clean(path, cfg):
    "The text of a notebook as it should be stored: with what Colab needs, without what changes by itself."
    nb = json.loads(path.read_text(encoding="utf-8"))
    if path.name[0] != "_": badges.mark(nb, path.stem, cfg)
    clean_nb(nb, False, cfg["allowed_metadata_keys"].split(), cfg["allowed_cell_metadata_keys"].split())
    return notebooks.text(tidy.tidy(nb))


def lessons():
    "The notebooks of the course, and the template."
    cfg = notebooks.settings()
    return {path: clean(path, cfg) for path in (*notebooks.paths(), NBS/"_template.ipynb")}


def sources():
    "The sources of the exercises."
    paths = sorted((ROOT/"exercises"/"source").glob("*/*.ipynb"))
    return {path: notebooks.text(tidy.bare(json.loads(path.read_text(encoding="utf-8")))) for path in paths}


def project(folder):
    "A copy of what nbdev reads, in an empty folder."
    shutil.copytree(NBS, folder/"nbs", ignore=shutil.ignore_patterns(".*", "images"))
    shutil.copy(ROOT/"settings.ini", folder)
    (folder/PACKAGE.name).mkdir()
    for module in BY_HAND: shutil.copy(PACKAGE/f"{module}.py", folder/PACKAGE.name)
    return folder


def modules():
    "The modules of the package, by nbdev_export in a copy."
    there = {path: None for path in PACKAGE.glob("*.py")}
    with tempfile.TemporaryDirectory() as temp:
        folder = project(Path(temp))
        command = "from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()"
        done = subprocess.run([sys.executable, "-c", command], cwd=folder, capture_output=True, text=True,
                              env=notebooks.child_env(PYTHONPATH=""), encoding="utf-8")
        if done.returncode: sys.exit(f"nbdev could not export the modules:\n{done.stdout}{done.stderr}")
        made = (folder/PACKAGE.name).glob("*.py")
        there |= {PACKAGE/path.name: path.read_text(encoding="utf-8") for path in made}
    return there


def made_pages():
    "The pages of nbs/made."
    return dict.fromkeys(pages.MADE.glob("*")) | {NBS/page: make() for page, make in pages.PAGES.items()}


def quarto():
    "Both _quarto.yml."
    text = site.with_sidebar(site.QUARTO.read_text(encoding="utf-8"))
    return {site.QUARTO: text, site.QUARTO_COPY: text}


@dataclass(frozen=True)
class Derived:
    "A row of the table."
    what: str        # what it makes
    made_from: str   # from what
    texts: Callable  # the function that gives path -> text


DERIVED = (  # in this order: a row may read what the rows above have written
    Derived("clean notebooks", "nbdev's rules for clean ones, links and version of settings.ini", lessons),
    Derived("sources of exercises", "the rule that they hold no outputs", sources),
    Derived("modules", "nbs/*.ipynb, the version in settings.ini", modules),
    Derived("made pages", "course data, tests, exercises, docstrings, benchmarks", made_pages),
    Derived("_quarto.yml", "nbs/_quarto.yml and the pages that exist", quarto),
    Derived("README.md", "nbs/index.ipynb and settings.ini", lambda: {readme.README: readme.render()}),
    Derived("CITATION.cff", "settings.ini and CHANGELOG.md", lambda: {release.CITATION: release.citation()}),
)


def name(path):
    "What to call a file."
    return path.relative_to(ROOT).as_posix()


def behind(row):
    "path -> text, or None, of what is out of step in one row."
    stored = lambda path: path.read_text(encoding="utf-8") if path.exists() else None
    return {path: text for path, text in sorted(row.texts().items()) if stored(path) != text}


def check():
    "What is out of step, one line per file."
    for row in DERIVED:
        for path, text in behind(row).items():
            step = f"is out of step with {row.made_from}: run make export"
            yield f"{name(path)} {STALE if text is None else step}"


def export():
    "Bring everything in step; return what has no source, one line per file; it is left alone."
    stale = []
    for row in DERIVED:
        for path, text in behind(row).items():
            if text is None: stale.append(f"{name(path)} {STALE}")
            else:
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8", newline="\n")
    return stale


def main(*args):
    "The command line."
    if args == ("--check",):
        if found := list(check()): sys.exit("\n".join(found))
    elif args: sys.exit(__doc__)
    elif stale := export(): sys.exit("\n".join(stale))


if __name__ == "__main__":
    main(*sys.argv[1:])

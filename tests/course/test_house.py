"What holds the house up: everything that is made from something else is in step with it."
import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from tools import badges, bounds, export, notebooks, pages, readme
from tools.pages import PLAIN

ROOT, NBS, PACKAGE = notebooks.ROOT, notebooks.NBS, export.PACKAGE
CFG = notebooks.settings()


# What is made from something else: tools/export.py has the table

@pytest.mark.parametrize("row", export.DERIVED, ids=lambda row: row.what)
def test_in_step(row):
    found = export.behind(row)
    names = ", ".join(path.name for path in found)
    assert not found, f"run make export: {names} out of step with {row.made_from}"


def tracked():
    "The text files of the repository."
    list_them = ["git", "ls-files", "-co", "--exclude-standard"]
    done = subprocess.run(list_them, cwd=ROOT, capture_output=True, text=True)
    paths = [ROOT/name for name in done.stdout.splitlines()] if done.returncode == 0 else ROOT.rglob("*")
    binary = {".png", ".gz", ".ico", ".lock"}
    return [p for p in paths if p.is_file() and ".venv" not in p.parts and p.suffix not in binary]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of the repository that may be broken."
    folder = tmp_path_factory.mktemp("copy")/"house"
    for path in [*tracked(), *(NBS/"images").iterdir()]:
        (folder/path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder/path.relative_to(ROOT))
    return folder


def run_export(folder, *args):
    "Run tools.export in a copy; its exit status and what it said."
    command, env = [sys.executable, "-m", "tools.export", *args], notebooks.child_env(PYTHONPATH=str(folder))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env, encoding="utf-8",
                          timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, (done.stdout + done.stderr).splitlines()


def break_all(folder):
    "Change each thing that is made by hand; return the paths, and those of new files that nothing makes."
    exercise = next((folder/"exercises"/"source").rglob("*.ipynb")).relative_to(folder).as_posix()
    edits = {"nbs/01_core.ipynb": ("the course at its tag", "the cause"),
             "nbs/_template.ipynb": ("[]", "[ ]"),
             exercise: ('"execution_count": null', '"execution_count": 3'),
             "multiscene_rec/core.py": ("def set_seed", "def  set_seed"),
             "nbs/made/models.md": ("AUC", "auc"),
             "nbs/_quarto.yml": ("          - made/notation.md\n", ""), "_quarto.yml": ("page", "pages"),
             "README.md": ("course", "curse"), "CITATION.cff": ("version", "Version")}
    for name, (old, new) in edits.items():
        text = (folder/name).read_text(encoding="utf-8")
        assert old in text, name
        (folder/name).write_text(text.replace(old, new, 1), encoding="utf-8")
    missing = {"multiscene_rec/article.py", "nbs/made/glossary.md"}
    for name in missing: (folder/name).unlink()
    stale = {"multiscene_rec/stale.py", "nbs/made/stale.md"}
    for name in stale: (folder/name).write_text(f"{pages.GENERATED} Of a notebook that is gone.\n",
                                                encoding="utf-8")
    return {*edits, *missing, "nbs/made/library.md"}, stale  # the page of the library lacks a module


@pytest.mark.slow
def test_what_is_out_of_step_is_named_and_a_fork_is_a_fork_after_one_export(copy):
    "The check names each thing that was changed by hand, no other; a new owner leaves the old one nowhere."
    broken, stale = break_all(copy)
    code, lines = run_export(copy, "--check")
    assert code == 1 and {line.split()[0] for line in lines} == broken | stale, lines
    assert {line.split()[0] for line in lines if export.STALE in line} == stale
    ini = copy/"settings.ini"
    text = ini.read_text(encoding="utf-8").replace(f"owner = {CFG['owner']}\n", "owner = someone\n")
    ini.write_text(text, encoding="utf-8")
    code, lines = run_export(copy)
    assert code == 1 and {line.split()[0] for line in lines} == stale, lines  # named and left alone
    for name in stale: (copy/name).unlink()
    assert run_export(copy, "--check") == (0, [])
    old = [f"{CFG['owner']}/{CFG['repo']}", f"{CFG['owner']}.github.io"]
    found = [f"{p.relative_to(copy)}: {address}" for p in copy.rglob("*")
             if p.is_file() and p.suffix in {".py", ".ipynb", ".md", ".ini", ".cff", ".yml", ".toml"}
             for address in old if address in p.read_text(encoding="utf-8", errors="replace")]
    assert found == []
    assert "someone/multiscene_rec/blob/v" in (copy/"nbs"/"01_core.ipynb").read_text(encoding="utf-8")


def test_cleaning_keeps_outputs_and_what_slides_and_grading_need(tmp_path):
    out = dict(output_type="stream", name="stdout", text=["1"])
    kept = dict(slideshow=dict(slide_type="slide"), nbgrader=dict(grade_id="x"))
    metadata = dict(collapsed=True, **kept)
    cell = dict(cell_type="code", id="a", source=["1"], execution_count=3, metadata=metadata, outputs=[out])
    path = tmp_path/"_planted.ipynb"
    nb = dict(metadata={}, nbformat=4, nbformat_minor=5, cells=[cell])
    path.write_text(notebooks.text(nb), encoding="utf-8")
    cleaned, = json.loads(export.clean(path, CFG))["cells"]
    assert cleaned["metadata"] == kept and cleaned["execution_count"] is None and cleaned["outputs"] == [out]


# Who may import whom

def order():
    "Module -> number of its notebook; a plain module has the number of the latest notebook that it needs."
    out = {path.stem.partition("_")[2]: int(path.stem[:2]) for path in notebooks.paths("[0-9][0-9]*_*.ipynb")}
    needs = {name: imported((PACKAGE/f"{name}.py").read_text(encoding="utf-8")) for name in PLAIN}

    def number(name):
        if name in out: return out[name]
        return max((number(other) for other in needs.get(name, ()) if other != name), default=0)

    return out | {name: number(name) for name in PLAIN}


def imported(source, package="multiscene_rec"):
    "The modules of the package that a piece of code imports, at any depth."
    try: tree = ast.parse(source)
    except SyntaxError: return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith(f"{package}.")}
        if isinstance(node, ast.ImportFrom):
            name = f"{package}."*bool(node.level) + (node.module or "")
            if name.rstrip(".") == package: found |= {a.name for a in node.names}
            elif name.startswith(f"{package}."): found.add(name.split(".")[1])
    return found


def looks_ahead(number, sources, known, home):
    "Modules of the same or a later notebook that cells import; a name of the package counts as its module."
    for source in sources:
        for name in imported(source):
            module = name if name in known else home.get(name)
            if module is None: yield f"{name}: no module or name of multiscene_rec"
            elif known.get(module, 999) >= number + (module in PLAIN):
                yield f"{module} ({known.get(module, 'no notebook yet')}) comes later"


@pytest.mark.parametrize("path", notebooks.paths("[0-9][0-9]_*.ipynb"), ids=lambda p: p.stem)
def test_imports_look_back_only(path):
    import multiscene_rec
    sources = [c["source"] for c in notebooks.read(path)["cells"] if c["cell_type"] == "code"]
    found = list(looks_ahead(int(path.stem[:2]), sources, order(), multiscene_rec._HOME))
    assert not found, f"{path.name}: {found}"


def test_a_look_ahead_is_found():
    known, home = {"core": 1, "data": 2, "rank": 10, "logs": 2, "runs": 10}, {"mmr": "rank"}
    look = lambda source: list(looks_ahead(2, [source], known, home))
    for source in ("from multiscene_rec.core import set_seed", "import torch",
                   "from multiscene_rec.logs import read_log"):
        assert not look(source), source
    for source in ("from multiscene_rec.runs import train_log", "from multiscene_rec.rank import mmr",
                   "import multiscene_rec.rank", "from multiscene_rec import rank",
                   "from multiscene_rec import mmr",
                   "def f():\n    from multiscene_rec.data import x", "from .rank import mmr",
                   "from multiscene_rec import nothing"):
        assert look(source), source


# The names of the package

def test_every_name_is_where_the_table_says():
    import multiscene_rec
    for module, names in multiscene_rec._MODULES.items():
        if not (PACKAGE/f"{module}.py").exists(): continue
        loaded = importlib.import_module(f"multiscene_rec.{module}")
        assert getattr(multiscene_rec, module) is loaded
        for name in names:
            assert name in loaded.__all__, f"{module}.{name} is not exported"
            assert getattr(multiscene_rec, name) is getattr(loaded, name)
    assert set(multiscene_rec.__all__) <= set(dir(multiscene_rec))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"): _ = multiscene_rec.nothing


def test_every_module_is_in_the_table():
    import multiscene_rec
    there = {p.stem for p in PACKAGE.glob("*.py") if p.stem[0] != "_"}
    assert there <= multiscene_rec._MODULES.keys(), "add it to the table in multiscene_rec/__init__.py"
    names = [n for names in multiscene_rec._MODULES.values() for n in names]
    assert len(names) == len(set(names)), "a name appears twice"


def test_the_table_and_the_block_for_type_checkers_agree():
    import multiscene_rec
    tree = ast.parse((PACKAGE/"__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    found = {n.module: {a.name for a in n.names} for n in block.body}
    assert found.pop(None) == set(multiscene_rec._MODULES)
    listed = {module: set(names) for module, names in multiscene_rec._MODULES.items() if names}
    assert found == listed, "__init__.py: _MODULES and the block under TYPE_CHECKING name the same"


@pytest.mark.parametrize("path", notebooks.paths("[0-9][0-9]_*.ipynb"), ids=lambda p: p.stem)
def test_the_map_on_the_home_page_leads_to_every_notebook(path):
    text = "".join(c["source"] for c in notebooks.read(NBS/"index.ipynb")["cells"])
    row = f"| [{path.stem[:2]} " in text and f"]({path.name}) |" in text
    assert row, f"add a row for {path.name} to the map in nbs/index.ipynb"


# README.md

def test_readme_links_work_from_the_root():
    yes = lambda path: True
    text = ("[a](01_core.ipynb#x) ![b](images/b.png) [c](https://x.org/a) [d](#here) [e](../LICENSE) "
            "`[f](g.png)`\n```\n[h](i.png)\n```\n<img src=\"images/j.png\">")
    assert readme.from_root(text, exists=yes) == (
        "[a](nbs/01_core.ipynb#x) ![b](nbs/images/b.png) [c](https://x.org/a) [d](#here) [e](LICENSE) "
        "`[f](g.png)`\n```\n[h](i.png)\n```\n<img src=\"nbs/images/j.png\">")
    with pytest.raises(SystemExit, match="gone.png"): readme.from_root("![x](gone.png)")


def test_readme_obeys_the_directives(tmp_path):
    def cell(source, text):
        out = dict(output_type="stream", name="stdout", text=text)
        return dict(cell_type="code", id=text.replace(" ", ""), source=source, outputs=[out], metadata={},
                    execution_count=None)

    cells = [dict(cell_type="markdown", id="m", metadata={}, source="# T\n\n> P."),
             cell("#| hide\nsecret = 1", "hidden"), cell("#| echo: false\nprint(2)", "shown alone"),
             cell("#| output: false\nprint(3)", "not shown"), cell("print(4)", "both")]
    kernel = dict(name="python3", language="python", display_name="p")
    path = tmp_path/"index.ipynb"
    nb = dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=kernel), cells=cells)
    path.write_text(notebooks.text(nb), encoding="utf-8")
    text = readme.render(path)
    assert text.startswith("<!--") and f"[site]({CFG['doc_host']}{CFG['doc_baseurl']})" in text
    assert "secret" not in text and "hidden" not in text and "#|" not in text
    assert "print(2)" not in text and "shown alone" in text
    assert "```python\nprint(3)\n```" in text and "not shown" not in text
    assert "```python\nprint(4)\n```" in text and "both" in text


# Settings and workflows

def test_owner_and_addresses_stand_in_settings_alone():
    "README.md, _modidx.py and the line and cell for Colab in notebooks are made from settings.ini."
    made = {ROOT/"README.md", ROOT/"CITATION.cff", PACKAGE/"_modidx.py", ROOT/"settings.ini"}
    addresses = [CFG[key].removeprefix("https://") for key in ("git_url", "doc_host")]
    addresses += [f"{CFG['owner']}/{CFG['repo']}"]
    found = []
    for path in tracked():
        if path in made: continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".ipynb":
            text = "\n".join(cell["source"] for cell in notebooks.read(path)["cells"])
            for ours in (badges.line(path.stem, CFG), badges.colab(CFG)): text = text.replace(ours, "")
        found += [f"{path.relative_to(ROOT)}: {address}" for address in addresses if address in text]
    assert not found, found


def test_nothing_of_a_machine_is_named():
    kinds, found = {".py", ".ipynb", ".md", ".toml", ".yml", ".ini", ".txt", ""}, []
    for path in tracked():
        if path.suffix not in kinds or "tests" in path.parts: continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {m[0]}"
                  for m in re.finditer(r"/(?:work|root|home/\w+)/[\w./-]+", text)]
    assert not found, found


def test_constraints_lie_within_settings():
    required = " ".join(value for key, value in CFG.items() if key.endswith("requirements"))
    ranges = {r.name: r for r in map(Requirement, required.split())}
    for line in (ROOT/"constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"): continue
        pin = Requirement(line)
        assert pin.name in ranges, f"{pin.name} is pinned and not required"
        for spec in pin.specifier:
            if spec.operator == "==": assert ranges[pin.name].specifier.contains(spec.version)


def test_each_dependency_is_argued_for():
    text = (ROOT/"CONTRIBUTING.md").read_text(encoding="utf-8")
    required = " ".join(value for key, value in CFG.items() if key.endswith("requirements"))
    for r in map(Requirement, required.split()):
        assert r.name in text, f"say in CONTRIBUTING.md what {r.name} is for"


def test_workflows_are_read_as_they_are_meant():
    "YAML reads a bare 3.10 as 3.1; and the oldest Python is tested with the oldest PyTorch."
    read = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
            for path in (ROOT/".github/workflows").glob("*.yml")}
    rows = [row for job in read["test"] for row in job["strategy"]["matrix"]["include"]]
    steps = [step for jobs in read.values() for job in jobs for step in job["steps"]]
    versions = [step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")]
    versions += [row["python"] for row in rows]
    assert all(isinstance(version, str) for version in versions)
    assert (CFG["min_python"], "oldest") in {(row["python"], row["torch"]) for row in rows}


def test_the_oldest_row_asks_for_the_lower_bounds():
    found = bounds.oldest(dict(requirements="torch>=2.6 numpy>=1.26 typer>=0.16,<1"))
    assert found == ["torch==2.6.*", "numpy==1.26.*", "typer==0.16.*"]


@pytest.mark.skipif(shutil.which("make") is None or sys.platform == "win32",
                    reason="needs make and a Unix shell")
def test_make_lists_its_targets_and_says_what_is_wrong(tmp_path):
    def make(*args):
        return subprocess.run(["make", *args], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                              env=notebooks.child_env())

    for name in ("Makefile", "settings.ini", "setup.py", "constraints.txt"): shutil.copy(ROOT/name, tmp_path)
    listed = make("help").stdout
    for target in (".venv", "demo", "test", "test-all", "lab", "export", "docs", "clean"):
        assert f"make {target} " in listed
    old = tmp_path/"python"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo "Python 3.9.1";; *) exit 1;; esac\n')
    old.chmod(0o755)
    answer = make("demo", f"PYTHON={old}")
    assert answer.returncode != 0 and f"needs Python {CFG['min_python']} or newer" in answer.stdout
    assert "Python 3.9.1" in answer.stdout
    old.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *) exit 0;; esac\n')
    answer = make("test", f"PYTHON={old}")
    assert answer.returncode != 0 and "apt install python3-venv" in answer.stdout


# Style

def test_ruff_finds_nothing():
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_leaves_out_what_the_notebooks_make_and_nothing_else():
    "Its settings name those modules: the notebooks that they are made from are checked."
    settings = tomllib.loads((ROOT/"ruff.toml").read_text(encoding="utf-8"))
    made = [path.relative_to(ROOT).as_posix() for path in sorted(PACKAGE.glob("*.py"))
            if re.search("AUTOGENERATED|Autogenerated", path.read_text(encoding="utf-8")[:1000])]
    assert settings["extend-exclude"] == made
    assert len(settings["lint"]["ignore"]) <= 5 and len(settings["lint"]["per-file-ignores"]) <= 5

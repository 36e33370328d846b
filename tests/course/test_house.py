"What holds the house up: everything that is made from something else is in step with it."
import ast
import configparser
import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import badges, notebooks

ROOT, NBS = notebooks.ROOT, notebooks.NBS
PACKAGE = ROOT/"multiscene_rec"
CFG = notebooks.settings()
PLAIN = ("storage", "checks", "logs", "contract", "runs") # written by hand: they teach nothing


# Modules and notebooks

def project(folder):
    "A copy of what nbdev reads, in an empty folder."
    folder.mkdir(exist_ok=True)
    shutil.copy(ROOT/"settings.ini", folder)
    shutil.copytree(NBS, folder/"nbs", ignore=shutil.ignore_patterns(".*", "images"))
    (folder/CFG["lib_name"]).mkdir()
    for name in ("__init__", "__main__", *PLAIN): shutil.copy(PACKAGE/f"{name}.py", folder/CFG["lib_name"])
    return folder


def export(folder):
    "Run nbdev_export there; return the modules it wrote, name -> text."
    done = subprocess.run([sys.executable, "-c", "from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()"],
                          cwd=folder, env=notebooks.child_env(PYTHONPATH=""), capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return modules(folder/CFG["lib_name"])


def modules(folder):
    "Name -> text of the modules in a folder."
    return {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.py")}


def out_of_step(made, there):
    "What differs between the modules that export makes and those that are there."
    for name in sorted(made.keys() | there.keys()):
        if name not in there: yield f"{name} is missing: run make export"
        elif name not in made: yield f"{name} comes from no notebook: delete it, put it in one, or name it among PLAIN if it teaches nothing"
        elif made[name] != there[name]: yield f"{name} is out of step with its notebook: edit the notebook, then make export"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(project(tmp_path_factory.mktemp("export")/"project"))


def test_modules_are_in_step(exported):
    found = list(out_of_step(exported, modules(PACKAGE)))
    assert not found, "\n" + "\n".join(found)


def test_a_hand_edit_a_stale_and_a_missing_module_are_found(exported):
    there = {**modules(PACKAGE), "stale.py": "x = 1"}
    there["core.py"] = there["core.py"].replace("def set_seed", "def  set_seed")
    first = sorted(exported)[0]
    gone = {k: v for k, v in there.items() if k != "core.py"}
    assert any("core.py is out of step" in said for said in out_of_step(exported, there))
    assert any("stale.py comes from no notebook" in said for said in out_of_step(exported, there))
    assert any("core.py is missing" in said for said in out_of_step(exported, gone)), first


def test_export_leaves_the_hand_written_files_alone(exported):
    "nbdev keeps __version__ in __init__ up to date and must change nothing else."
    for name in ("__init__", "__main__", *PLAIN): assert exported[f"{name}.py"] == (PACKAGE/f"{name}.py").read_text(encoding="utf-8")
    assert f'__version__ = "{CFG["version"]}"' in exported["__init__.py"]


@pytest.mark.parametrize("path", notebooks.paths(), ids=lambda p: p.stem)
def test_notebook_is_clean(path):
    from execnb.nbio import nb2str
    from nbdev.clean import clean_nb
    text = path.read_text(encoding="utf-8")
    nb = json.loads(text)
    clean_nb(nb, allowed_metadata_keys=CFG["allowed_metadata_keys"].split(), allowed_cell_metadata_keys=CFG["allowed_cell_metadata_keys"].split())
    assert nb2str(nb) == text, f"{path.name} is not clean: run make export (nbdev_clean)"


def test_cleaning_keeps_what_grading_needs():
    from nbdev.clean import clean_nb
    nb = dict(metadata={}, nbformat=4, nbformat_minor=5, cells=[dict(cell_type="code", id="a", source=["1"], execution_count=3, metadata=dict(
        tags=["hide"], nbgrader=dict(grade_id="x"), collapsed=True), outputs=[dict(output_type="stream", name="stdout", text=["1"])])])
    clean_nb(nb, allowed_cell_metadata_keys=CFG["allowed_cell_metadata_keys"].split())
    assert nb["cells"][0]["metadata"] == dict(tags=["hide"], nbgrader=dict(grade_id="x"))
    assert nb["cells"][0]["execution_count"] is None and nb["cells"][0]["outputs"]


# Who may import whom

def order():
    "Module -> number of its notebook; a plain module has the number of the latest notebook that it needs."
    out = {path.stem.partition("_")[2]: int(path.stem[:2]) for path in notebooks.paths("[0-9][0-9]*_*.ipynb")}
    needs = {name: imported((PACKAGE/f"{name}.py").read_text(encoding="utf-8")) for name in PLAIN}
    def number(name): return out[name] if name in out else max((number(other) for other in needs.get(name, ()) if other != name), default=0)
    return out | {name: number(name) for name in PLAIN}


def imported(source, package="multiscene_rec"):
    "The modules of the package that a piece of code imports, at any depth."
    try: tree = ast.parse(source)
    except SyntaxError: return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import): found |= {a.name.split(".")[1] for a in node.names if a.name.startswith(f"{package}.")}
        if isinstance(node, ast.ImportFrom):
            name = f"{package}." * bool(node.level) + (node.module or "") if node.level else node.module or ""
            if name.rstrip(".") == package: found |= {a.name for a in node.names}
            elif name.startswith(f"{package}."): found.add(name.split(".")[1])
    return found


def looks_ahead(number, sources, known, home):
    "Modules of the same or a later notebook among what the cells import; names of the package count as their module."
    for source in sources:
        for name in imported(source):
            module = name if name in known else home.get(name)
            if module is None: yield f"{name}: no module or name of multiscene_rec"
            elif known.get(module, 999) >= number + (module in PLAIN): yield f"{module} ({known.get(module, 'no notebook yet')}) comes later"


@pytest.mark.parametrize("path", notebooks.paths("[0-9][0-9]_*.ipynb"), ids=lambda p: p.stem)
def test_imports_look_back_only(path):
    import multiscene_rec
    sources = [c["source"] for c in notebooks.read(path)["cells"] if c["cell_type"] == "code"]
    found = list(looks_ahead(int(path.stem[:2]), sources, order(), multiscene_rec._HOME))
    assert not found, f"{path.name}: {found}"


def test_a_look_ahead_is_found():
    known, home = {"core": 1, "data": 2, "rank": 10, "logs": 2, "runs": 10}, {"mmr": "rank"}
    look = lambda source: list(looks_ahead(2, [source], known, home))
    assert not look("from multiscene_rec.core import set_seed") and not look("import torch") and not look("from multiscene_rec.logs import read_log")
    for source in ("from multiscene_rec.runs import train_log", "from multiscene_rec.rank import mmr", "import multiscene_rec.rank", "from multiscene_rec import rank", "from multiscene_rec import mmr",
                   "def f():\n    from multiscene_rec.data import x", "from .rank import mmr", "from multiscene_rec import nothing"):
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
    with pytest.raises(AttributeError, match="no attribute 'nothing'"): multiscene_rec.nothing


def test_every_module_is_in_the_table():
    import multiscene_rec
    there = {p.stem for p in PACKAGE.glob("*.py") if p.stem[0] != "_"}
    assert there <= multiscene_rec._MODULES.keys(), "add it to the table in multiscene_rec/__init__.py"
    names = [n for names in multiscene_rec._MODULES.values() for n in names]
    assert len(names) == len(set(names)), "a name stands twice"


def test_the_table_and_the_block_for_type_checkers_agree():
    import multiscene_rec
    tree = ast.parse((PACKAGE/"__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    found = {n.module: {a.name for a in n.names} for n in block.body}
    assert found.pop(None) == set(multiscene_rec._MODULES)
    assert found == {m: set(names) for m, names in multiscene_rec._MODULES.items() if names}, "multiscene_rec/__init__.py: _MODULES and the block under TYPE_CHECKING name the same"


@pytest.mark.parametrize("path", notebooks.paths("[0-9][0-9]_*.ipynb"), ids=lambda p: p.stem)
def test_the_map_on_the_home_page_leads_to_every_notebook(path):
    text = "".join(c["source"] for c in notebooks.read(NBS/"index.ipynb")["cells"])
    assert f"| [{path.stem[:2]} " in text and f"]({path.name}) |" in text, f"add a row for {path.name} to the map in nbs/index.ipynb"


# Pages made from others

def test_readme_is_in_step():
    if not (NBS/"index.ipynb").exists(): pytest.skip("nbs/index.ipynb is not there yet")
    from tools import readme
    assert readme.README.read_text(encoding="utf-8") == readme.render(), "README.md is out of step with nbs/index.ipynb: run make export"


def test_readme_links_work_from_the_root():
    from tools import readme
    yes = lambda path: True
    text = "[a](01_core.ipynb#x) ![b](images/b.png) [c](https://x.org/a) [d](#here) [e](../LICENSE) `[f](g.png)`\n```\n[h](i.png)\n```\n<img src=\"images/j.png\">"
    assert readme.from_root(text, exists=yes) == (
        "[a](nbs/01_core.ipynb#x) ![b](nbs/images/b.png) [c](https://x.org/a) [d](#here) [e](LICENSE) `[f](g.png)`\n"
        "```\n[h](i.png)\n```\n<img src=\"nbs/images/j.png\">")
    with pytest.raises(SystemExit, match="gone.png"): readme.from_root("![x](gone.png)")


def test_readme_obeys_the_directives(tmp_path):
    from tools import readme
    cell = lambda source, *outs: dict(cell_type="code", id=str(abs(hash(source)))[:8], metadata={}, execution_count=None, source=source, outputs=list(outs))
    out = lambda text: dict(output_type="stream", name="stdout", text=text)
    path = tmp_path/"index.ipynb"
    path.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=dict(name="python3", language="python", display_name="p")), cells=[
        dict(cell_type="markdown", id="m", metadata={}, source="# T\n\n> P."), cell("#| hide\nsecret = 1", out("hidden")),
        cell("#| echo: false\nprint(2)", out("shown alone")), cell("#| output: false\nprint(3)", out("not shown")), cell("print(4)", out("both"))])), encoding="utf-8")
    text = readme.render(path)
    assert text.startswith("<!--") and f"[site]({CFG['doc_host']}{CFG['doc_baseurl']})" in text
    assert "secret" not in text and "hidden" not in text and "#|" not in text
    assert "print(2)" not in text and "shown alone" in text
    assert "```python\nprint(3)\n```" in text and "not shown" not in text
    assert "```python\nprint(4)\n```" in text and "both" in text


def test_quarto_settings_are_equal_and_name_the_pages_that_exist():
    from tools import site
    assert site.QUARTO.read_bytes() == site.QUARTO_COPY.read_bytes()
    assert site.write_sidebar(check=True), "the sidebar is out of step with nbs/: run make export"
    import yaml
    settings = yaml.safe_load(site.QUARTO.read_text(encoding="utf-8"))
    assert list(settings["format"]) == ["html"]
    pages = re.findall(r"[\w-]+\.ipynb", json.dumps(settings["website"]["sidebar"]))
    assert sorted(pages) == sorted(p.name for p in notebooks.paths()) and len(pages) == len(set(pages))
    for name in ("theme.scss", "styles.css", "references.bib"): assert (NBS/name).exists()


def test_diagrams_are_turned_for_quarto_by_nbdev_itself(tmp_path):
    "settings.ini names the processor; nbdev's own list of processors must find and use it."
    folder = project(tmp_path/"project")
    fence = "text\n\n```mermaid\ngraph LR\n  A --> B\n```\n\n```python\nmermaid = 1\n```"
    cells = [dict(cell_type="markdown", id="a", metadata={}, source="# T\n\n> P."), dict(cell_type="markdown", id="b", metadata={}, source=fence)]
    path = folder/"nbs/80_planted.ipynb"
    path.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=dict(name="python3", language="python", display_name="p")), cells=cells)))
    code = "from nbdev.serve_drv import exec_nb; from nbdev.processors import FilterDefaults; from pathlib import Path; exec_nb(Path('nbs/80_planted.ipynb'), Path('out.ipynb'), FilterDefaults)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=notebooks.child_env(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    text = "\n".join(c["source"] for c in notebooks.read(folder/"out.ipynb")["cells"])
    assert "```{mermaid}\ngraph LR" in text and "```python\nmermaid = 1" in text and "```mermaid" not in text


PROCESS = """
import nbdev.quarto, nbdev.serve
if __name__ == "__main__":
    nbdev.quarto.refresh_quarto_yml()
    nbdev.serve.proc_nbs(n_workers=2, force=True)
"""


def test_every_page_goes_through_the_stage_before_quarto(tmp_path):
    "All of the site's making but Quarto's own part."
    folder = project(tmp_path/"project")
    shutil.copytree(PACKAGE, folder/CFG["lib_name"], dirs_exist_ok=True)
    (folder/"process.py").write_text(PROCESS)
    done = subprocess.run([sys.executable, "process.py"], cwd=folder, env=notebooks.child_env(), capture_output=True, text=True, encoding="utf-8", timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Found cells containing imports and other code" not in done.stdout + done.stderr
    assert {p.name for p in (folder/"_proc").glob("*.ipynb")} == {p.name for p in notebooks.paths()}
    for path in sorted((folder/"_proc").glob("*.ipynb")):
        cells = notebooks.read(path)["cells"]
        assert cells[0]["cell_type"] == "raw" and "title:" in cells[0]["source"], f"{path.name} has lost its title"
        text = "\n".join(c["source"] for c in cells)
        assert not re.search(r"^#\|\s*(export|exports|hide|default_exp|slow|gpu|coupons)\b", text, flags=re.M), f"{path.name}: a directive is left"
        assert "```mermaid" not in text, f"{path.name}: a diagram is not turned"
        for cell in cells:
            if cell["source"].endswith(")") and re.search(r"^show_doc\(", cell["source"], flags=re.M):
                assert cell["outputs"], f"{path.name}: {cell['source'].splitlines()[-1]} shows nothing"


def test_pages_that_would_load_from_another_host_are_found():
    from tools import site
    bad = '<script src="https://cdn.example.org/x.js"></script><link rel="stylesheet" href="//fonts.example.com/a.css"><img src="http://pix.example.net/1.png">'
    assert site.foreign_loads(bad) == ["cdn.example.org", "fonts.example.com", "pix.example.net"]
    good = '<a href="https://example.org">x</a><script src="mathjax/tex.js"></script><link rel="canonical" href="https://example.org/"><img src="images/a.png">'
    assert site.foreign_loads(good) == []
    polyfill = '<script src="https://cdnjs.cloudflare.com/polyfill/v3/polyfill.min.js?features=es6"></script>\n<p>x</p>'
    widgets = """<script src="https://cdn.jsdelivr.net/npm/requirejs@2.3.6/require.min.js" integrity="s" crossorigin="anonymous"></script>
        <script src="https://cdn.jsdelivr.net/npm/jquery@3.5.1/dist/jquery.min.js" crossorigin="anonymous"></script><script src="own.js"></script>
        <script type="application/javascript">define('jquery', [],function() {return window.jQuery;})</script>\n<p>x</p>"""
    assert site.drop_needless(polyfill) == "<p>x</p>"
    assert site.drop_needless(widgets).split() == ["<script", 'src="own.js"></script>', "<p>x</p>"]


# Settings

def tracked():
    "The text files of the repository."
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.splitlines() if done.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if ".venv" not in p.parts]
    return [ROOT/n for n in names if (ROOT/n).is_file() and (ROOT/n).suffix not in {".png", ".gz", ".ico", ".lock"}]


def test_owner_and_addresses_stand_in_settings_alone():
    "README.md, _modidx.py and the links in notebooks are made from settings.ini; nbdev's source links in stored outputs too."
    made = {ROOT/"README.md", ROOT/"CITATION.cff", PACKAGE/"_modidx.py", ROOT/"settings.ini"}
    addresses = [CFG["git_url"].removeprefix("https://"), CFG["doc_host"].removeprefix("https://"), f"{CFG['owner']}/{CFG['repo']}"]
    found = []
    for path in tracked():
        if path in made: continue
        if path.suffix == ".ipynb":  # but for what tools/badges.py writes
            made_of = badges.line(path.stem, CFG), badges.colab(CFG)
            text = "\n".join(c["source"].replace(made_of[0], "").replace(made_of[1], "") for c in notebooks.read(path)["cells"])
        else: text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {a}" for a in addresses if a in text]
    assert not found, found


def test_nothing_of_a_machine_is_named():
    found = [f"{p.relative_to(ROOT)}: {m[0]}" for p in tracked() if p.suffix in {".py", ".ipynb", ".md", ".toml", ".yml", ".ini", ".txt", ""} and "tests" not in p.parts
             for m in re.finditer(r"/(?:work|root|home/\w+)/[\w./-]+", p.read_text(encoding="utf-8", errors="replace"))]
    assert not found, found


def test_settings_keep_nbdev_from_harm():
    want = dict(nbs_path="nbs", update_pyproject="False", recursive="False", custom_sidebar="True", jupyter_hooks="True", clear_all="False",
                allowed_cell_metadata_keys="tags nbgrader", tst_flags="slow gpu coupons", min_python="3.11")
    assert {key: CFG[key] for key in want} == want
    assert not (ROOT/"pyproject.toml").exists(), "nbdev's pyproject.toml breaks the install"


def test_constraints_lie_within_settings():
    from packaging.requirements import Requirement
    ranges = {r.name: r for key, value in CFG.items() if key.endswith("requirements") for r in map(Requirement, value.split())}
    for line in (ROOT/"constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"): continue
        pin = Requirement(line)
        assert pin.name in ranges, f"{pin.name} is pinned and not required"
        for spec in pin.specifier:
            if spec.operator == "==": assert ranges[pin.name].specifier.contains(spec.version)


def test_runtime_needs_no_notebook_tools():
    runtime = {re.split(r"[<>=]", r)[0] for r in CFG["requirements"].split()}
    assert runtime == {"torch", "numpy", "pandas", "matplotlib", "safetensors", "filelock", "tqdm", "typer"}, "argue for a new one in CONTRIBUTING.md, then here"
    for name in runtime: assert name in (ROOT/"CONTRIBUTING.md").read_text(encoding="utf-8")


def test_setup_reads_settings():
    text = (ROOT/"setup.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    used = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names} | {
        n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert used == {"configparser", "shlex", "pathlib", "setuptools"}
    assert CFG["version"] not in text and CFG["owner"] + "/" not in text


def test_a_fork_edits_one_line(tmp_path):
    "owner in settings.ini moves every address."
    config = configparser.ConfigParser(delimiters=["="])
    config.read_string((ROOT/"settings.ini").read_text(encoding="utf-8").replace(f"owner = {CFG['owner']}", "owner = someone"))
    fork = dict(config["DEFAULT"])
    assert fork["git_url"] == f"https://github.com/someone/{CFG['repo']}" and fork["doc_host"] == "https://someone.github.io"
    from tools import readme
    assert CFG["owner"] + "/" not in readme.badges(fork)


# Workflows and Makefile

def test_a_fork_is_a_fork_after_one_edit_and_one_export(tmp_path):
    "With another owner in settings.ini, `make export` leaves the old one nowhere but in the history."
    folder = tmp_path/"fork"
    for path in tracked():
        (folder/path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder/path.relative_to(ROOT))
    for path in (NBS/"images").iterdir(): shutil.copy(path, folder/"nbs"/"images")
    ini = folder/"settings.ini"
    ini.write_text(ini.read_text(encoding="utf-8").replace(f"owner = {CFG['owner']}\n", "owner = someone\n"), encoding="utf-8")
    recipe = re.search(r"^export:.*\n((?:\t.*\n)+)", (ROOT/"Makefile").read_text(encoding="utf-8"), flags=re.M)[1]
    for line in recipe.splitlines():
        command = line.replace("$(BIN)/python", sys.executable).replace('PATH="$(BIN):$$PATH" ', "").split()
        if not Path(command[0]).is_absolute(): command[0] = str(Path(sys.executable).parent/command[0])
        done = subprocess.run(command, cwd=folder, env=notebooks.child_env(PYTHONPATH=str(folder)), capture_output=True, text=True, encoding="utf-8", timeout=300)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    old = [f"{CFG['owner']}/{CFG['repo']}", f"{CFG['owner']}.github.io"]
    found = [f"{p.relative_to(folder)}: {a}" for p in folder.rglob("*") if p.is_file() and p.suffix in {".py", ".ipynb", ".md", ".ini", ".cff", ".yml", ".toml"}
             for a in old if a in p.read_text(encoding="utf-8", errors="replace")]
    assert found == []
    assert "someone/multiscene_rec/blob/v" in (folder/"nbs"/"01_core.ipynb").read_text(encoding="utf-8")


def test_workflows_quote_their_versions():
    import yaml
    for path in sorted((ROOT/".github/workflows").glob("*.yml")):
        text = path.read_text(encoding="utf-8")
        yaml.safe_load(text)
        assert not re.search(r"python(?:-version)?:\s*3\.", text), f"{path.name}: quote the version, YAML reads 3.10 as 3.1"
    matrix = yaml.safe_load((ROOT/".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]["test"]["strategy"]["matrix"]["include"]
    rows = {(r["os"].split("-")[0], r["python"], r["torch"]) for r in matrix}
    assert rows >= {("ubuntu", "3.11", "newest"), ("ubuntu", "3.12", "newest"), ("ubuntu", "3.13", "newest"), ("ubuntu", "3.11", "oldest")}
    assert {r["os"].split("-")[0] for r in matrix} == {"ubuntu", "macos", "windows"}


def test_the_oldest_row_asks_for_the_lower_bounds():
    from tools import bounds
    assert bounds.oldest(dict(requirements="torch>=2.6 numpy>=1.26 typer>=0.16,<1")) == ["torch==2.6.*", "numpy==1.26.*", "typer==0.16.*"]


@pytest.mark.skipif(shutil.which("make") is None or sys.platform == "win32", reason="needs make and a Unix shell")
def test_make_lists_its_targets_and_says_what_is_wrong(tmp_path):
    make = lambda *args: subprocess.run(["make", *args], cwd=tmp_path, capture_output=True, text=True, env=notebooks.child_env(), timeout=60)
    for name in ("Makefile", "settings.ini", "setup.py", "constraints.txt"): shutil.copy(ROOT/name, tmp_path)
    listed = make("help").stdout
    for target in (".venv", "demo", "test", "test-all", "lab", "export", "docs", "clean"): assert f"make {target} " in listed
    old = tmp_path/"python"
    old.write_text('#!/bin/sh\ncase "$1" in --version) echo "Python 3.9.1";; *) exit 1;; esac\n')
    old.chmod(0o755)
    said = make("demo", f"PYTHON={old}")
    assert said.returncode != 0 and "needs Python 3.11 or newer" in said.stdout and "Python 3.9.1" in said.stdout
    old.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; *) exit 0;; esac\n')
    said = make("test", f"PYTHON={old}")
    assert said.returncode != 0 and "apt install python3-venv" in said.stdout
    (tmp_path/".venv").mkdir()
    (tmp_path/".venv/.ready").touch()
    if shutil.which("quarto") is None:
        said = make("docs")
        assert said.returncode != 0 and "https://quarto.org" in said.stdout


def test_ci_entry_is_a_program():
    path = ROOT/".ci/run"
    text = path.read_text(encoding="utf-8")
    assert "set -euo pipefail" in text and "MULTISCENE_DATA" in text and re.search(r"^make test$", text, flags=re.M)
    if sys.platform != "win32": assert path.stat().st_mode & 0o111

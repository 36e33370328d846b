"The links and the Colab cell of every notebook: pinned to the release, made from settings.ini, harmless elsewhere."
import importlib.metadata
import json
import re
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from packaging.requirements import Requirement

import multiscene_rec
from tools import badges, notebooks

CFG = notebooks.settings()
PATHS = notebooks.paths()


def parts(path):
    "The links, word -> address, and the Colab cell of a notebook."
    cells = notebooks.read(path)["cells"]
    last = cells[1]["source"].splitlines()[-1]
    assert last.startswith("**Open this page**"), f"{path.name}: run make export"
    found = [c["source"] for c in cells if "google.colab" in c["source"]]
    assert len(found) == 1
    return dict(re.findall(r"\[([^]]+)\]\(([^)]+)\)", last)), found[0]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_links_cell_and_settings_name_the_same_version(path):
    links, cell = parts(path)
    repo, here = f"{CFG['owner']}/{CFG['repo']}", f"{CFG['nbs_path']}/{path.name}"
    version = CFG["version"]
    assert version == multiscene_rec.__version__
    colab, binder, source, issue = map(urlsplit, links.values())
    assert colab.netloc == "colab.research.google.com" and colab.path == f"/github/{repo}/blob/v{version}/{here}"
    assert binder.netloc == "mybinder.org" and binder.path == f"/v2/gh/{repo}/v{version}" and parse_qs(binder.query) == {"labpath": [here]}
    assert source.path == f"/{repo}/blob/v{version}/{here}" and (notebooks.ROOT/here).is_file()
    assert issue.path == f"/{repo}/issues/new" and unquote(issue.query) == f"title={path.stem}, v{version}: "
    assert re.findall(r"/tags/v([\d.]+)\.zip", cell) == [version] and f"{repo}/archive" in cell


def test_all_are_in_step(): assert badges.write(check=True) == [], "run make export"


def needs(name, seen):
    "All that a package brings along, by what is installed here."
    if name in seen: return seen
    seen.add(name)
    try: wanted = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError: return seen
    for r in map(Requirement, wanted):
        if not r.marker or r.marker.evaluate({"extra": ""}): needs(r.name.lower().replace("_", "-"), seen)
    return seen


def test_colab_keeps_its_own_torch():
    "The package comes without its dependencies, and nothing else that is installed brings PyTorch along."
    lines = [line for line in badges.colab(CFG).splitlines() if "%pip" in line]
    package, = [line for line in lines if "archive" in line]
    assert "--no-deps" in package
    others = [Requirement(r) for line in lines if line != package for r in re.findall(r'"([^"]+)"', line)]
    brought = set()
    for r in others: needs(r.name.lower(), brought)
    assert {"nbdev", "fastcore", "safetensors", "typer"} <= {r.name for r in others}
    assert not {"torch", "numpy", "pandas"} & {r.name for r in others} and "torch" not in brought
    wanted = {re.split(r"[<>=]", r)[0] for r in CFG["requirements"].split()}
    assert wanted - {r.name for r in others} == {"torch", "numpy", "pandas", "matplotlib"}, "Colab has these; install the others"


def test_the_cell_runs_nothing_outside_colab():
    from IPython.core.inputtransformer2 import TransformerManager
    code = TransformerManager().transform_cell(badges.colab(CFG))
    ran = []
    shell = type("Shell", (), dict(run_line_magic=lambda self, *args: ran.append(args), __str__=lambda self: "<ipykernel.zmqshell>"))()
    exec(code, dict(get_ipython=lambda: shell))
    assert ran == []
    shell = type("Shell", (), dict(run_line_magic=lambda self, *args: ran.append(args), __str__=lambda self: "<google.colab._shell.Shell>"))()
    exec(code, dict(get_ipython=lambda: shell))
    assert [name for name, _ in ran] == ["pip", "pip"]


def test_a_fork_and_a_release_move_all_links(tmp_path):
    cfg = {**CFG, "owner": "someone", "git_url": f"https://github.com/someone/{CFG['repo']}", "version": "2.0.1"}
    for path in PATHS[:2]:
        nb = badges.mark(json.loads(path.read_text(encoding="utf-8")), path.stem, cfg)
        text = "".join(nb["cells"][1]["source"]) + next("".join(c["source"]) for c in nb["cells"] if "google.colab" in "".join(c["source"]))
        assert text.count("v2.0.1") == 5 and f"{CFG['owner']}/" not in text and f"v{CFG['version']}" not in text
        assert len(nb["cells"]) == len(json.loads(path.read_text(encoding="utf-8"))["cells"])


def test_links_out_of_step_are_found_and_mended(tmp_path):
    path = tmp_path/"05_planted.ipynb"
    cell = lambda kind, source: dict(cell_type=kind, id="a", metadata={}, source=[source], **(dict(outputs=[], execution_count=None) if kind == "code" else {}))
    nb = dict(cells=[cell("markdown", "# T"), cell("markdown", "text\n\n**Open this page** [in Colab](https://old)"), cell("code", "x = 1")], metadata={}, nbformat=4, nbformat_minor=5)
    path.write_text(json.dumps(nb), encoding="utf-8")
    assert badges.write(check=True, paths=[path]) == [path.name] and "https://old" in path.read_text(encoding="utf-8")
    assert badges.write(paths=[path]) == [path.name] and badges.write(paths=[path]) == []
    cells = notebooks.read(path)["cells"]
    assert cells[1]["source"] == "text\n\n" + badges.line("05_planted", CFG) and cells[2]["source"] == badges.colab(CFG) and cells[3]["source"] == "x = 1"

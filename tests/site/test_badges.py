"What Colab needs in every notebook, and the site's links: pinned to the release, harmless elsewhere."
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


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_links_cell_and_settings_name_the_same_version(path):
    cells = notebooks.read(path)["cells"]
    cell, = [c["source"] for c in cells if "google.colab" in c["source"]]
    links = badges.links(path.stem, CFG)
    repo, page, version = f"{CFG['owner']}/{CFG['repo']}", f"{CFG['nbs_path']}/{path.name}", CFG["version"]
    assert cells[1]["source"].endswith(f"\n\n[Open in Colab]({links['Open in Colab']})"), "run make export"
    assert version == multiscene_rec.__version__
    colab, binder, source, issue = map(urlsplit, links.values())
    assert colab.netloc == "colab.research.google.com"
    assert colab.path == f"/github/{repo}/blob/v{version}/{page}"
    assert binder.netloc == "mybinder.org" and binder.path == f"/v2/gh/{repo}/v{version}"
    assert parse_qs(binder.query) == {"labpath": [page]}
    assert source.path == f"/{repo}/blob/v{version}/{page}" and (notebooks.ROOT/page).is_file()
    assert issue.path == f"/{repo}/issues/new" and unquote(issue.query) == f"title={path.stem}, v{version}: "
    assert re.findall(r"/v([\d.]+)\.zip", cell) == [version] and f"{repo}/archive" in cell


# What a notebook at Colab has found since spring 2025.
AT_COLAB = dict(torch="2.6.0", numpy="2.0.2", pandas="2.2.2", matplotlib="3.10.0")


def brought_by(name, seen):
    "All that a package brings along, as (package, requirement), by what is installed here."
    if name in seen: return
    seen.add(name)
    try: wanted = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError: return
    for r in map(Requirement, wanted):
        if r.marker and not r.marker.evaluate({"extra": ""}): continue
        yield name, r
        yield from brought_by(r.name.lower().replace("_", "-"), seen)


def test_colab_keeps_its_own_torch():
    "pip leaves what is there: nothing that the cell installs asks for a newer one."
    seen = set()
    ours = [Requirement(r) for r in (CFG["requirements"] + " " + CFG["colab_requirements"]).split()]
    asked = [("multiscene_rec", r) for r in ours]
    for r in ours:
        if r.name not in AT_COLAB: asked += brought_by(r.name.lower(), seen)
    assert {"nbdev", "fastcore", "safetensors", "typer"} <= {r.name for _, r in asked}
    wrong = [f"{name} asks for {r}" for name, r in asked
             if r.name in AT_COLAB and not r.specifier.contains(AT_COLAB[r.name])]
    assert not wrong, wrong


def test_the_cell_runs_nothing_outside_colab():
    from IPython.core.inputtransformer2 import TransformerManager
    code = TransformerManager().transform_cell(badges.colab(CFG))
    ran = []
    for name in ("ipykernel.zmqshell", "google.colab._shell.Shell"):
        methods = dict(run_line_magic=lambda self, *args: ran.append(args), __str__=lambda self,
                       name=name: f"<{name}>")
        shell = type("Shell", (), methods)()
        exec(code, dict(get_ipython=lambda shell=shell: shell))
        if "colab" not in name: assert ran == []
    assert [name for name, _ in ran] == ["pip"]


def test_a_fork_and_a_release_move_all_links():
    url = f"https://github.com/someone/{CFG['repo']}"
    cfg = {**CFG, "owner": "someone", "git_url": url, "version": "2.0.1"}
    for path in PATHS[:2]:
        stored = json.loads(path.read_text(encoding="utf-8"))
        nb = badges.mark(json.loads(path.read_text(encoding="utf-8")), path.stem, cfg)
        cells = ["".join(c["source"]) for c in nb["cells"]]
        text = "\n".join([cells[1], *(c for c in cells if "google.colab" in c),
                          *badges.links(path.stem, cfg).values()])
        assert text.count("v2.0.1") == 6
        assert f"{CFG['owner']}/" not in text and f"v{CFG['version']}" not in text
        assert len(cells) == len(stored["cells"])


def test_a_notebook_without_them_gets_the_line_and_the_cell_once():
    cell = lambda kind, source: dict(cell_type=kind, id="a", metadata={}, source=[source])
    texts = ["# T", "text\n\n[Open in Colab](https://old)", "x = 1"]
    nb = dict(cells=[cell(kind, text) for kind,
                     text in zip(("markdown", "markdown", "code"), texts, strict=True)])
    for _ in range(2):
        sources = ["".join(c["source"]) for c in badges.mark(nb, "05_planted", CFG)["cells"]]
        assert sources == ["# T", "text\n\n" + badges.line("05_planted", CFG), badges.colab(CFG), "x = 1"]

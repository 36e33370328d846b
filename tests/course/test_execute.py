"Every notebook runs from top to bottom, as nbdev runs it; and the runner itself notices what it should."
import json
import time

import pytest

from tools import notebooks, run_notebooks


@pytest.mark.notebook
@pytest.mark.parametrize("path", notebooks.paths(), ids=lambda p: p.stem)
def test_notebook_runs(path, request, record_property):
    flags = run_notebooks.default_flags(slow=request.config.getoption("--slow"))
    passed, seconds, said = run_notebooks.run(path, flags)
    record_property("notebook", (path.name, seconds))
    assert passed, said


def plant(folder, *cells):
    "A notebook of these code cells."
    path = folder/"planted.ipynb"
    path.write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata=dict(kernelspec=dict(
        name="python3", language="python", display_name="python3")), cells=[
        dict(cell_type="code", id=f"c{i}", metadata={}, outputs=[], execution_count=None, source=source)
        for i, source in enumerate(cells)])), encoding="utf-8")
    return path


def test_a_failing_cell_fails(tmp_path):
    passed, _, said = run_notebooks.run(plant(tmp_path, "x = 1", "assert x == 2, 'planted'"))
    assert not passed and "planted" in said


def test_flags_decide_which_cells_run(tmp_path):
    path = plant(tmp_path, "x = 1", "#| slow\nraise RuntimeError('the slow cell ran')")
    assert run_notebooks.run(path)[0]
    passed, _, said = run_notebooks.run(path, ["slow"])
    assert not passed and "the slow cell ran" in said


def test_a_notebook_that_hangs_is_stopped_with_its_children(tmp_path):
    source = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.monotonic()
    passed, _, said = run_notebooks.run(plant(tmp_path, source), timeout=8)
    assert not passed and "stopped after 8 s" in said
    assert time.monotonic() - start < 20

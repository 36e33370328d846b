"""Figures that move: right numbers, a picture that follows its slider, and nothing of a widget in a stored
notebook."""
import ast
import copy
import io
import math
from types import SimpleNamespace

import matplotlib
import pytest
import torch
from test_notebooks import directives, outputs, tree

from multiscene_rec.core import set_seed
from multiscene_rec.model import InterestModel
from multiscene_rec.train import attention_map
from tools import notebooks, tidy

matplotlib.use("agg")
import matplotlib.pyplot as plt

MAKERS = {"interactive", "interact", "interact_manual", "interactive_output"}
SLIDERS = {"FloatSlider", "IntSlider", "FloatLogSlider", "SelectionSlider"}


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def run(name, *starts, **names):
    """The names that these cells of a notebook make, each found by a line in it; imports and fastcore's
    checks first."""
    code = [c["source"] for c in notebooks.read(notebooks.NBS/f"{name}.ipynb")["cells"]
            if c["cell_type"] == "code"]
    space = dict(names, __name__="notebook")
    exec("from fastcore.test import test_close, test_eq, test_fail", space)
    imports = [s for s in code if tree(dict(source=s)) and all(isinstance(n, (ast.Import, ast.ImportFrom))
        for n in tree(dict(source=s)))]
    for source in [s for s in imports if "nbdev" not in s] + [next(s for s in code
        if f"\n{start}" in f"\n{s}") for start in starts]:
        exec(source, space)
    return space


def picture(widget):
    "What a widget shows now, as the bytes of a PNG."
    data = io.BytesIO()
    widget.result.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()


def texts(ax):
    "What is written into a plot, by where it stands."
    return {tuple(round(x) for x in t.get_position()): t.get_text() for t in ax.texts}


# The three figures

@pytest.fixture(scope="module")
def fusion():
    return run("05_fusion", "def masked_softmax(", "def softmax_jacobian(", "signs = ", "def score_slider(")


@pytest.mark.parametrize("home, search", [(1, 2), (0, 0), (-6, 6), (6, 6)])
def test_softmax_and_jacobian_by_plain_math(fusion, home, search):
    left, right = fusion["softmax_picture"](home, search).axes
    u = [math.exp(home), math.exp(search), 1]
    a = [x/sum(u) for x in u]
    assert [bar.get_height() for bar in left.patches] == pytest.approx(a, abs=1e-12)
    J = [[a[s]*((s == r) - a[r]) for r in range(3)] for s in range(3)]
    assert [float(texts(right)[r, s]) for s in range(3) for r in range(3)] == pytest.approx(sum(J, []),
        abs=6e-4)


def test_a_score_moves_the_weights(fusion):
    widget = fusion["softmax_widget"]
    home, search = widget.children[:2]
    assert (home.description, search.description) == ("score of home", "score of search")
    shown = [picture(widget)]
    for slider in (home, search):
        slider.value = -3
        shown.append(picture(widget))
    assert len(set(shown)) == 3
    assert [bar.get_height() for bar in widget.result.axes[0].patches][0] == pytest.approx(
        math.exp(-3)/(2*math.exp(-3) + 1))


@pytest.fixture(scope="module")
def metrics():
    return run("07_metrics", "def mid_ranks(", "def auc(", "def sigmoid(",
               "def confusion(", "def area(", "def roc_picture(", "roc_widget = ")


@pytest.mark.parametrize("threshold", [0, .03, .1, .5, 1])
def test_the_counts_and_the_point_by_a_loop(metrics, threshold):
    left, right = metrics["roc_picture"](threshold).axes
    count = dict.fromkeys(("TP", "FP", "FN", "TN"), 0)
    for y, p in zip(metrics["log"].label, metrics["log"].p):
        count["TP" if y and p >= threshold else "FN" if y else "FP" if p >= threshold else "TN"] += 1
    assert {k: int(n.replace(",", "")) for k, n in (t.split("\n") for t in texts(right).values())} == count
    found, wrong = count["TP"]/(count["TP"] + count["FN"]), count["FP"]/(count["FP"] + count["TN"])
    point = next(line for line in left.lines if line.get_marker() == "o")
    assert (*point.get_xdata(), *point.get_ydata()) == pytest.approx((wrong, found))
    curve = left.lines[0].get_xydata().tolist()
    assert [wrong, found] in curve
    title = right.get_title()
    assert f"= {found:.3f}\n" in title and title.endswith(f"= {wrong:.3f}")


def test_the_curve_by_scikit_learn(metrics):
    sklearn = pytest.importorskip("sklearn.metrics")
    for label, score in ((metrics["clicked"], metrics["p_true"]),
        (metrics["clicked"], metrics["p_true"].round(2)), (metrics["four"], metrics["scores"])):
        fpr, tpr, _ = sklearn.roc_curve(label, score, drop_intermediate=False)
        for ours, theirs in zip(metrics["roc_curve"](label, score), (fpr, tpr)):
            assert ours == pytest.approx(theirs)


def test_the_threshold_moves_the_point_and_not_the_curve(metrics):
    widget = metrics["roc_widget"]
    slider = widget.children[0]
    assert slider.description == "threshold"
    before, curve = picture(widget), widget.result.axes[0].lines[0].get_xydata()
    slider.value = .3
    assert picture(widget) != before
    assert (widget.result.axes[0].lines[0].get_xydata() == curve).all()


@pytest.fixture(scope="module")
def train():
    "The small mall, and an untrained model in the place of the trained one."
    space = run("09_train", "small = toy_mall(", attention_map=attention_map)
    set_seed(0)
    model = InterestModel(space["spec"])
    with torch.no_grad(): model.fuse.key.weight *= 8  # weights that differ
    blocks = ["home", "live", "search", "cart"]
    learned = attention_map(model, space["test"]).loc[blocks, blocks]
    return run("09_train", "complete = ", "def removal_picture(", "boxes = ",
               **{k: space[k] for k in ("spec", "test")}, attention_map=attention_map,
               quick=SimpleNamespace(models={"attention": model}), learned=learned, blocks=blocks)


def bars(fig, title):
    "The widths of the bars whose legend begins like this."
    box = next(c for c in fig.axes[0].containers if c.get_label().startswith(title))
    return [float(bar.get_width()) for bar in box]


@pytest.mark.parametrize("gone", [(), ("search",), ("home", "cart"), ("home", "live", "search", "cart")])
def test_weights_without_a_history_by_a_loop(train, gone):
    target, blocks, names = "live", train["blocks"], list(train["spec"].scenarios)
    fig = train["removal_picture"](target, *(name not in gone for name in blocks))
    with torch.no_grad(): alpha = train["quick"].models["attention"].explain(train["test"]).weights.tolist()
    sums, rows = dict.fromkeys(names, 0.), 0
    for a, t, present in zip(alpha, train["test"].scenario.tolist(), train["test"].present.tolist()):
        if names[t] != target or not all(present): continue
        rows += 1
        left = {name: x for name, x in zip(names, a) if name not in gone}
        for name, x in left.items(): sums[name] += x/sum(left.values())
    assert rows > 100
    assert bars(fig, "without" if gone else "none") == pytest.approx([sums[name]/rows for name in blocks],
        abs=1e-4)
    assert bars(fig, "all four") == pytest.approx(train["learned"].loc[target].tolist(), abs=1e-6)
    assert [t.get_text() == "removed" for t in fig.axes[0].texts[4:]] == [name in gone for name in blocks]


def test_a_box_and_the_menu_move_the_weights(train):
    widget = train["removal_widget"]
    menu, *boxes = widget.children[:5]
    assert [w.description for w in (menu, *boxes)] == ["target scenario",
                                                       *(f"history of {name}" for name in train["blocks"])]
    shown = [picture(widget)]
    for box in boxes:
        box.value = not box.value
        shown.append(picture(widget))
    menu.value = "home"
    shown.append(picture(widget))
    assert len(set(shown)) == 6
    assert widget.result.axes[0].get_title() == "target home"


# The rules

def called(node):
    "The name of what is called."
    return getattr(node.func, "id", getattr(node.func, "attr", ""))


def calls(cell):
    "Every call in a cell."
    return [n for statement in tree(cell) for n in ast.walk(statement) if isinstance(n, ast.Call)]


def complaints(nb):
    "What is wrong with a notebook's widgets."
    code = [c for c in nb["cells"] if c["cell_type"] == "code"]
    if "widgets" in nb["metadata"]: yield "the notebook's metadata hold a widget's state: run make export"
    for cell in code:
        made = [n for n in calls(cell) if called(n) in MAKERS]
        for n in made:
            if cell["outputs"]: yield f"stored outputs of a widget: {cell['source'][:60]!r}"
            draws = getattr(n.args[0], "id", "") if n.args else ""
            still = [c for c in code if draws in map(called, calls(c))
                     and {"label", "fig-cap", "fig-alt"} <= directives(c).keys()
                     and any(kind == "image/png" for kind, _ in outputs(c))]
            if not still:
                yield f"no stored still picture drawn by {draws or 'the function'} of {cell['source'][:60]!r}"
        for n in calls(cell):
            given = {k.arg: k.value for k in n.keywords}
            if called(n) in SLIDERS | {"Checkbox", "Dropdown"} and "description" not in given:
                yield f"{called(n)} without a description"
            if called(n) in SLIDERS and ast.unparse(given.get("continuous_update",
                ast.Constant(True))) != "False":
                yield f"{called(n)} draws at every step of a drag: continuous_update=False"


def has_widget(path):
    return any(called(n) in MAKERS for c in notebooks.read(path)["cells"] if c["cell_type"] == "code"
               for n in calls(c))


@pytest.mark.parametrize("path", notebooks.paths(), ids=lambda p: p.stem)
def test_widgets_are_not_stored_and_have_a_still_picture(path):
    assert list(complaints(notebooks.read(path))) == []


def test_three_notebooks_have_a_widget():
    assert {"05_fusion", "07_metrics", "09_train"} <= {path.stem for path in notebooks.paths()
                                                       if has_widget(path)}


def code(source, *outs): return dict(cell_type="code", metadata={}, source=source, outputs=list(outs))


PNG = dict(output_type="display_data", data={"image/png": "…"})
VIEW = dict(output_type="display_data",
            data={tidy.WIDGET: dict(model_id="a"), "text/plain": "interactive(…)"})
PRINT = dict(output_type="stream", name="stdout", text=["moved\n"])
GOOD = dict(metadata={}, cells=[
    code("def draw(x): return plt.plot(x)"),
    code('#| label: fig-a\n#| fig-cap: "A."\n#| fig-alt: "B."\ndraw(1);', PNG),
    code('w = interactive(draw, x=FloatSlider(description="x", continuous_update=False))\nw')])


def test_a_good_widget_passes(): assert list(complaints(GOOD)) == []


@pytest.mark.parametrize("at, old, new, complaint", [
    (1, "draw(1)", "other(1)", "no stored still picture"), (1, "fig-alt", "alt", "no stored still picture"),
    (2, ", continuous_update=False", "", "at every step"),
    (2, 'description="x", ', "", "without a description"), (2, "draw", "lambda x: x", "no stored still")])
def test_a_bad_widget_is_found(at, old, new, complaint):
    nb = copy.deepcopy(GOOD)
    assert old in nb["cells"][at]["source"]
    nb["cells"][at]["source"] = nb["cells"][at]["source"].replace(old, new)
    assert any(complaint in line for line in complaints(nb))


def test_what_a_widget_stores_is_found_and_tidied_away():
    nb = copy.deepcopy(GOOD)
    nb["cells"][2]["outputs"] = [PRINT, VIEW, PNG]
    nb["metadata"] = dict(kernelspec=dict(name="python3"),
                          widgets={"application/vnd.jupyter.widget-state+json": {}})
    found = list(complaints(nb))
    assert any("stored outputs" in line for line in found) and any("state" in line for line in found)
    assert tidy.tidy(nb) == dict(GOOD, metadata=dict(kernelspec=dict(name="python3")))


def test_tidy_keeps_the_outputs_of_other_cells():
    cells = [dict(md, cell_type="markdown") for md in ({"source": "x"},)] + [code("print(1)",
        copy.deepcopy(PRINT), copy.deepcopy(PNG))]
    assert tidy.tidy(dict(metadata={}, cells=copy.deepcopy(cells))) == dict(metadata={}, cells=cells)

"""The anatomy and style of a notebook, one function per rule.

A rule takes a `Notebook` and yields its complaints. Lessons (00 to 89) follow all rules; the home page and
the notebook of the command follow those that do not speak of a lesson's parts.
"""
import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

from tools import notebooks

# a class may be as long as a page, so that it need not be cut into base classes
MAX_LINES, MAX_CLASS_LINES = 30, 60
MAX_WIDTH = 110
MAX_RUN = 60 # lines of code without a sentence between them
MAX_PRIVATE = 1/4 # of the exported lines; what teaches nothing belongs in a plain module
MAX_BYTES = 500_000
# Okabe and Ito's palette, which colour-blind readers can tell apart.
PALETTE = {"#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#f0e442", "#000000", "#ffffff"}


class Notebook:
    "A notebook with what the rules ask of it."
    def __init__(self, name, cells):
        self.name, self.cells = name, cells
        self.number = int(name[:2]) if re.match(r"\d\d_", name) else None
        self.code = [c for c in cells if c["cell_type"] == "code"]
        self.md = [c["source"] for c in cells if c["cell_type"] == "markdown"]
        self.text = "\n\n".join(self.md)
        # Prose without code, without math: where a @key or a link is one.
        self.prose = re.sub(r"\$\$.*?\$\$", "",
            re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", self.text, flags=re.S)), flags=re.S)

    def section(self, heading):
        "The text under `## heading`, up to the next heading of that level."
        found = re.search(rf"^## {heading}\s*$(.*?)(?=^## |\Z)", self.text, flags=re.S | re.M)
        return found[1] if found else ""


def outputs(cell):
    "(kind, text) of each output of a code cell."
    for out in cell.get("outputs", ()):
        yield from out.get("data", {}).items()
        if "text" in out: yield out.get("name", "stream"), out["text"]
        if out["output_type"] == "error": yield "error", out.get("ename", "")


def directives(cell):
    "The `#|` lines at the top of a code cell, as name -> value."
    lines = [line[2:].strip() for line in cell["source"].splitlines() if line.startswith("#|")]
    return {re.split(r"[:\s]", line)[0]: line.partition(":")[2].strip() for line in lines}


def first_line(cell):
    "What to call a cell in a complaint."
    lines = [line for line in cell["source"].splitlines() if line.strip()]
    return repr((lines or [""])[0][:60])


def tree(cell):
    "The statements of a code cell; none where it holds magics."
    try: return ast.parse(cell["source"]).body
    except SyntaxError: return []


LESSON, ALL = [], []


def rule(which):
    "Register a rule."
    def add(function):
        which.append(function)
        return function
    return add


@rule(ALL)
def opens_with_title_and_purpose(nb):
    first = nb.cells[0]
    if first["cell_type"] != "markdown" or not re.fullmatch(r"# \S[^\n]*\n\n> \S[^\n]*\n?", first["source"]):
        yield "the first cell must be '# Title', an empty line, '> one-line purpose', and nothing more"
    if len(re.findall(r"^# ", re.sub(r"```.*?```", "", nb.text, flags=re.S), flags=re.M)) != 1:
        yield "a second '# ' heading"


@rule(LESSON)
def says_what_you_will_learn(nb):
    cell = nb.cells[1]["source"]
    for part in ("**What you will learn**", "**What you need first**", "**Time**"):
        if part not in cell: yield f"the second cell lacks {part}"
    learn = cell.partition("**What you will learn**")[2].partition("**What you need first**")[0]
    if len(re.findall(r"^- ", learn, flags=re.M)) != 3: yield "'What you will learn' must have three bullets"
    if "GPU" not in cell: yield "the second cell does not say whether a GPU helps"


@rule(LESSON)
def prerequisites_are_links_back(nb):
    text = nb.cells[1]["source"].partition("**What you need first**")[2].partition("**Time**")[0]
    linked = [int(n) for n in re.findall(r"\]\((\d\d)_\w+\.ipynb", text)]
    if nb.number > 1 and not linked: yield "'What you need first' links to no earlier notebook"
    if ahead := [n for n in linked if n >= nb.number]: yield f"'What you need first' looks ahead to {ahead}"
    if not re.search(r"\*\*Time\*\*: .*\b(minutes?|hours?)\b", nb.cells[1]["source"]):
        yield "**Time** says no minutes"


@rule(LESSON)
def has_a_figure_and_points_to_the_graded_exercises(nb):
    if not any(kind.startswith("image/") for c in nb.code for kind, _ in outputs(c)): yield "no figure"
    if "](made/exercises.md" not in nb.section("Exercises"):
        yield "'## Exercises' does not link to the graded ones: [...](made/exercises.md#...)"


@rule(LESSON)
def has_every_part_in_order(nb):
    if not re.search(r"^> \*\*What can go wrong\.\*\*", nb.text, flags=re.M):
        yield "no '> **What can go wrong.**'"
    at = [nb.text.find(f"\n## {h}\n") for h in ("Exercises", "Questions", "Summary")]
    if -1 in at or at != sorted(at):
        yield "'## Exercises', '## Questions', '## Summary' must stand in this order"
    if len(re.findall(r"^\d+\. ", nb.section("Exercises"), flags=re.M)) < 2:
        yield "fewer than two numbered exercises"
    summary = nb.section("Summary")
    if len(re.findall(r"^- ", summary.partition("**Where to read on**")[0], flags=re.M)) != 3:
        yield "the summary must have three bullets"
    if not re.search(r"\*\*Where to read on\*\*.*@\w", summary, flags=re.S):
        yield "no '**Where to read on**' with a @key"


@rule(LESSON)
def has_five_questions_with_folded_answers(nb):
    text = nb.section("Questions")
    numbers = re.findall(r"^\*\*(\d+)\.\*\* \S", text, flags=re.M)
    if numbers != list("12345"): yield f"questions must be **1.** to **5.**, found {numbers}"
    answers = re.findall(r"^<details><summary>Answer</summary>\n\n(?:(?!<details>).)+?\n\n</details>$", text,
                         flags=re.M | re.S)
    if len(answers) != 5:
        yield (f"{len(answers)} of 5 answers folded as <details><summary>Answer</summary>, empty lines "
               "around the text, </details>")


@rule(LESSON)
def exports_the_module_of_its_name(nb):
    named = [m[1] for c in nb.code
             if (m := re.search(r"^#\|\s*default_exp\s+(\S+)", c["source"], flags=re.M))]
    if named != [nb.name[3:]]: yield f"'#| default_exp {nb.name[3:]}' expected once, found {named}"


@rule(ALL)
def code_cells_are_short(nb):
    for cell in nb.code:
        n, body = len(cell["source"].splitlines()), tree(cell)
        most = MAX_CLASS_LINES if len(body) == 1 and isinstance(body[0], ast.ClassDef) else MAX_LINES
        if n > most: yield f"{n} lines in the cell {first_line(cell)}; {most} is the most"


def code_lines(source):
    "The lines of a code cell that hold code: neither empty nor a directive."
    return [line for line in source.splitlines() if line.strip() and not line.startswith("#|")]


@rule(ALL)
def lines_are_short(nb):
    for cell in nb.code:
        if wide := [line for line in cell["source"].splitlines()
                    if len(line) > MAX_WIDTH and not line.startswith("#|")]:
            yield f"a line of {len(wide[0])} characters; {MAX_WIDTH} is the most: {wide[0].strip()[:60]!r}"


@rule(ALL)
def code_stands_among_sentences(nb):
    run = longest = 0
    for cell in nb.cells:
        run = 0 if cell["cell_type"] == "markdown" else run + len(code_lines(cell["source"]))
        longest = max(longest, run)
    if longest > MAX_RUN: yield f"{longest} lines of code without a sentence; {MAX_RUN} is the most"


def is_private(name): return name.startswith("_") and not name.startswith("__")


def private_lines(body, source):
    "How many lines of these statements define what begins with an underscore."
    lines, count = source.splitlines(), 0
    for node in body:
        targets = [t for target in getattr(node, "targets", ()) for t in ast.walk(target)]
        names = [t.id for t in targets if isinstance(t, ast.Name)] or [getattr(node, "name", "")]
        if all(map(is_private, names)):
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            count += len(code_lines("\n".join(lines[first - 1:node.end_lineno])))
        elif isinstance(node, ast.ClassDef):
            count += private_lines([n for n in node.body if isinstance(n, ast.FunctionDef)], source)
    return count


@rule(ALL)
def most_of_what_is_exported_is_public(nb):
    cells = [cell["source"] for cell in nb.code if {"export", "exports"} & directives(cell).keys()]
    exported = sum(len(code_lines(source)) for source in cells)
    private = sum(private_lines(tree(dict(source=source)), source) for source in cells)
    if private > MAX_PRIVATE*exported:
        yield (f"{private} of {exported} exported lines are private: "
               "move what teaches nothing into a plain module")


@rule(ALL)
def imports_stand_alone(nb):
    """nbdev runs each cell with an import when it builds the site; in exported cells only top-level
    imports matter."""
    kinds = (ast.Import, ast.ImportFrom)
    for cell in nb.code:
        body = tree(cell)
        exported = {"export", "exports", "exporti"} & directives(cell).keys()
        found = any(isinstance(n, kinds)
                    for n in (body if exported else [n for b in body for n in ast.walk(b)]))
        if found and not all(isinstance(n, kinds) for n in body):
            yield f"imports and other code in one cell: {first_line(cell)}"


@rule(ALL)
def plots_are_described(nb):
    labels = []
    for cell in nb.code:
        if not any(kind.startswith("image/") for kind, _ in outputs(cell)): continue
        options, where = directives(cell), first_line(cell)
        label = options.get("label", "")
        labels.append(label)
        if not re.fullmatch(r"fig-[a-z0-9-]+", label): yield f"plot without '#| label: fig-...': {where}"
        for key in ("fig-cap", "fig-alt"):
            if not re.fullmatch(r'"[^"\n]{15,}"', options.get(key, "")):
                yield f'plot without \'#| {key}: "..."\' in double quotes on one line: {where}'
        if options.get("fig-cap") == options.get("fig-alt"):
            yield f"fig-alt repeats fig-cap; say what one sees: {where}"
        if ("subplots(" in cell["source"] or "plt.figure(" in cell["source"]) and not re.search(
            r'axis\("off"\)|set_axis_off', cell["source"]):
            for axis in ("xlabel", "ylabel"):
                if axis not in cell["source"]: yield f"plot without {axis}: {where}"
    if len(set(labels)) != len(labels): yield f"a figure label twice: {labels}"


@rule(ALL)
def colours_can_be_told_apart(nb):
    for cell in nb.code:
        for colour in re.findall(r"""["'](#[0-9a-fA-F]{6})["']""", cell["source"]):
            grey = len({colour[1:3].lower(), colour[3:5].lower(), colour[5:7].lower()}) == 1
            if colour.lower() not in PALETTE and not grey:
                yield f"{colour} is not in the Okabe-Ito palette: {first_line(cell)}"
        named = re.findall(r"""\bcolou?r=["'](red|green|blue|r|g|b|C\d|tab:\w+)["']""", cell["source"])
        if named: yield f"colour {named[0]!r} is not in the Okabe-Ito palette: {first_line(cell)}"


@rule(ALL)
def pictures_have_alternative_text(nb):
    for alt, path in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", nb.prose):
        if len(alt) < 15: yield f"picture {path} has no alternative text worth the name"


@rule(LESSON)
def outputs_are_stored(nb):
    if not any(cell.get("outputs") for cell in nb.code): yield "no stored output: run the notebook"
    for cell in nb.code:
        if "hide" in directives(cell) or "eval" in directives(cell): continue
        shows = re.search(r"^(print|show_doc)\(", cell["source"], flags=re.M)
        if shows and not cell.get("outputs"):
            yield f"a cell that prints has no stored output: {first_line(cell)}"
        if "subplots(" in cell["source"] and not re.search(r"^\s*(def|class) ", cell["source"],
            flags=re.M) and not any(k.startswith("image/") for k, _ in outputs(cell)):
            yield f"a plot has no stored picture: {first_line(cell)}"


@rule(ALL)
def outputs_are_clean(nb):
    for cell in nb.code:
        for kind, text in outputs(cell):
            where = first_line(cell)
            if kind in ("error", "stderr"): yield f"{kind} in the outputs of {where}"
            if "widget" in kind or "javascript" in kind: yield f"{kind} in the outputs of {where}"
            if kind.startswith("image/") or not isinstance(text, str): continue
            if "Traceback (most recent call last)" in text: yield f"a traceback in the outputs of {where}"
            if "[source](http" in text:
                yield f"a stored source link in the outputs of {where}: run make export"
            if "\x1b[" in text: yield f"terminal colours in the outputs of {where}"
            if path := re.search(r"(?<![\w.])/(work|home|root|tmp|Users)/\S*", text):
                yield f"a path of this machine ({path[0]}) in the outputs of {where}"
            if re.search(r"\bat 0x[0-9a-f]{6,}", text): yield f"a memory address in the outputs of {where}"


@rule(ALL)
def renders_everywhere(nb):
    for raw, why in ((":::", "a Quarto fence"), ("{#eq-", "a Quarto label"), ("{#fig-", "a Quarto label"),
                     ("\\begin{equation", "a bare equation"),
                     ("\\[", "math other than $ and $$"), ("\\label{", "a LaTeX label"),
                     ("[[", "a wiki link")):
        inside = nb.prose if raw in ("[[", "\\[") else nb.text
        if raw in inside: yield f"{raw!r} ({why}) shows as raw text in JupyterLab or on GitHub"
    for source in nb.md:
        bare = re.sub(r"```.*?```", "", source, flags=re.S)
        if source.count("```") % 2: yield f"a code fence is not closed: {source[:50]!r}"
        if bare.count("$$") % 2: yield f"$$ without its partner: {source[:50]!r}"
        for block in re.findall(r"\$\$.*?\$\$", bare, flags=re.S):
            if block.count("\\tag") > 1: yield f"two \\tag in one $$ block (KaTeX refuses): {block[:50]!r}"
            if "\n\n" in block: yield f"an empty line inside a $$ block: {block[:50]!r}"
        if "\\tag" in re.sub(r"\$\$.*?\$\$", "", bare, flags=re.S): yield f"\\tag outside $$: {source[:50]!r}"


@rule(ALL)
def tags_count_up(nb):
    tags = re.findall(r"\\tag\{([^}]*)\}", nb.text)
    if tags and nb.number is None: yield f"numbered formulas outside a lesson: {tags}"
    elif tags != [f"{nb.number}.{k + 1}" for k in range(len(tags))]:
        yield f"tags must count up from {nb.number}.1: {tags}"


@rule(ALL)
def formulas_are_referred_to(nb):
    "A (5.2) in prose or in a docstring names a formula that is there."
    if nb.number is None: return
    tags = set(re.findall(r"\\tag\{([^}]*)\}", nb.text))
    named = set(re.findall(rf"\(({nb.number}\.\d+)\)", nb.prose)) | {t for c in nb.code
        for m in re.findall(r"Formulas?: ([^\n]*)", c["source"])
                                                                      for t in re.findall(r"\((\d+\.\d+)\)",
                                                                          m) if t.split(".")[0] == str(
                                                                              nb.number)}
    if missing := named - tags: yield f"refers to formulas that carry no number: {sorted(missing)}"


@rule(LESSON)
def formulas_are_exported_with_their_source(nb):
    for cell in nb.code:
        if re.search(r"Formulas?: \(\d", cell["source"]) and "export" in directives(cell):
            yield f"a cell with a formula begins with #| exports, not #| export: {first_line(cell)}"


@rule(LESSON)
def forward_is_shown(nb):
    shown = set(re.findall(r"^show_doc\((\w+)\.forward", "\n".join(c["source"] for c in nb.code), flags=re.M))
    for cell in nb.code:
        if "export" not in directives(cell): continue # after exports the reader sees the source itself
        for node in tree(cell):
            if isinstance(node, ast.ClassDef) and not is_private(node.name) and node.name not in shown \
                    and any(getattr(n, "name", "") == "forward" for n in node.body):
                yield f"no cell show_doc({node.name}.forward): show_doc of a class shows __init__ alone"


@rule(ALL)
def no_signature_is_shown_twice(nb):
    for cell, below in pairwise(nb.cells):
        if cell["cell_type"] != "code" or "exports" not in directives(cell): continue
        names = [node.name for node in tree(cell) if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
        for name in re.findall(r"^show_doc\((\w+)", below["source"], flags=re.M):
            if name in names: yield f"show_doc({name}) repeats what the cell above it shows"


@rule(ALL)
def headings_descend_in_order(nb):
    level = 1
    for marks, text in re.findall(r"^(#+) (.*)$", re.sub(r"```.*?```", "", nb.text, flags=re.S), flags=re.M):
        if len(marks) > level + 1: yield f"heading '{text}' skips a level"
        level = len(marks)


@rule(ALL)
def is_finished(nb):
    everything = nb.text + "\n".join(c["source"] for c in nb.code)
    for word in re.findall(r"\b(?:TODO|FIXME|XXX)\b|simplified version|\bfor now\b", everything):
        yield f"unfinished: {word!r}"


@rule(ALL)
def refers_to_what_is_there(nb):
    keys = set(re.findall(r"^@\w+\{([^,\s]+),", (notebooks.NBS/"references.bib").read_text(encoding="utf-8"),
                          flags=re.M))
    figures = {directives(c).get("label") for c in nb.code}
    prose = re.sub(r"\]\([^)]*\)|<[^>]+>", "]", nb.prose)
    for key in set(re.findall(r"(?<![\w@.])@([A-Za-z][\w:-]*\w)", prose)):
        if key.startswith("fig-"):
            if key not in figures: yield f"@{key}: no figure of that label"
        elif key not in keys: yield f"@{key}: not in references.bib"
    for link in re.findall(r"\]\(([^)\s]+)", nb.prose):
        if re.match(r"[a-z][a-z+.-]*:|#", link): continue
        path = link.partition("#")[0]
        if path.startswith("/") or not (notebooks.NBS/path).exists(): yield f"link to {link}: not there"


def load(path):
    "The notebook of a path."
    return Notebook(path.stem, notebooks.read(path)["cells"])


def lesson(path):
    "Whether a path is that of a lesson."
    return bool(re.match(r"[0-8]\d_", path.name))


@pytest.mark.parametrize("path", notebooks.paths(), ids=lambda p: p.stem)
def test_style(path):
    nb = load(path)
    found = [f"{r.__name__}: {said}" for r in ALL + (LESSON if lesson(path) else []) for said in r(nb)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("path", notebooks.paths(), ids=lambda p: p.stem)
def test_small(path):
    size = path.stat().st_size
    assert size < MAX_BYTES, f"{path.name} has {size/1000:.0f} kB; shrink or drop outputs"


TEMPLATE = notebooks.NBS/"_template.ipynb"


def test_the_template_follows_every_rule():
    "Under the number that it would bear: who copies it begins with a notebook that passes."
    nb = Notebook("80_template", notebooks.read(TEMPLATE)["cells"])
    assert [f"{r.__name__}: {said}" for r in ALL + LESSON for said in r(nb)] == []


def test_the_template_runs_and_stays_outside_the_course():
    from tools import run_notebooks
    passed, _, said = run_notebooks.run(TEMPLATE)
    assert passed, said
    assert TEMPLATE not in notebooks.paths() and not (notebooks.ROOT/"multiscene_rec"/"template.py").exists()


def md(source): return dict(cell_type="markdown", source=source)


def code(source, *outs): return dict(cell_type="code", source=source, outputs=list(outs))


PNG = dict(output_type="display_data", data={"image/png": "…"})
FIG = '#| label: fig-a\n#| fig-cap: "A line that goes up."\n#| fig-alt: "One line from 0 to 1, going up."\n'
ANSWER = "<details><summary>Answer</summary>\n\nBecause.\n\n</details>"
GOOD = [
    md("# Title\n\n> Purpose."),
    md("**What you will learn**\n\n- a;\n- b;\n- c.\n\n**What you need first**: "
       "[article](00_article.ipynb).\n\n**Time**: 5 minutes. A GPU does not help."),
    code("#| default_exp planted"),
    code("#| export\nimport math"),
    md("## Story\n\n$$a = b \\tag{1.1}$$\n\nBy (1.1), see @fig-a."),
    code('#| exports\nclass F:\n    """Do.\n\n    Formula: (1.1)\n    """\n    def forward(self): return 1'),
    code("show_doc(G.forward)", dict(output_type="display_data", data={"text/markdown": "G"})),
    code(FIG + 'fig, ax = plt.subplots()\nax.plot(x, color="#0072B2")\nax.set(xlabel="x", ylabel="y");', PNG),
    md("> **What can go wrong.** Much."),
    md("## Exercises\n\n1. One.\n2. Two.\n\n[Graded](made/exercises.md#one).\n\n## Questions\n\n"
       + "\n\n".join(f"**{i}.** Why?\n\n{ANSWER}" for i in range(1, 6))),
    md("## Summary\n\n- a\n- b\n- c\n\n**Where to read on**: @planted."),
    code("#| export\nclass G:\n    def forward(self):\n        x = 1\n        return x"),
]


def complaints(cells, monkeypatch, tmp_path):
    "What the rules say of these cells, in a folder with the files that the good ones name."
    (tmp_path/"references.bib").write_text("@book{planted,\n title={T}}\n", encoding="utf-8")
    (tmp_path/"made").mkdir(exist_ok=True)
    for name in ("00_article.ipynb", "01_core.ipynb", "made/exercises.md"):
        (tmp_path/name).write_text("{}", encoding="utf-8")
    monkeypatch.setattr(notebooks, "NBS", Path(tmp_path))
    nb = Notebook("01_planted", cells)
    return [f"{r.__name__}: {said}" for r in ALL + LESSON for said in r(nb)]


def test_a_good_notebook_passes(monkeypatch, tmp_path):
    assert complaints(GOOD, monkeypatch, tmp_path) == []


BAD = [  # in which cell, what, by what, and the rule that must complain
    (0, "> Purpose.", "", "opens_with"), (4, "## Story", "# Story", "opens_with"),
    (1, "- c.", "", "says_what"), (1, "GPU", "TPU", "says_what"), (1, "**Time**", "Time", "says_what"),
    (8, "What can go wrong", "Beware", "has_every_part"), (9, "2. Two.", "", "has_every_part"),
    (10, "- c\n", "", "has_every_part"), (10, "@planted", "nothing", "has_every_part"),
    (9, "**5.**", "**6.**", "has_five"), (9, "Answer</summary>\n\nBecause", "Answer</summary>\nBecause",
                                          "has_five"),
    (2, "planted", "other", "exports_the_module"),
    (3, "import math", "import math\n" + "x = 1\n"*31, "code_cells_are_short"),
       (3, "import math", "import math\nx = 1", "imports_stand"),
    (7, "#| fig-alt", "#| fig-other", "plots_are"), (7, "label: fig-a", "label: a", "plots_are"),
       (7, 'ylabel="y"', "", "plots_are"),
    (7, "One line from 0 to 1, going up.", "A line that goes up.", "plots_are"),
    (7, "#0072B2", "#FF0000", "colours"), (7, '"#0072B2"', '"red"', "colours"),
    (4, "## Story", "## Story\n\n![](images/a.png)", "pictures"),
    (4, "## Story", "## Story\n\n::: note", "renders"), (4, "## Story", "## Story {#eq-a}", "renders"),
    (4, "\\tag{1.1}$$", "\\tag{1.1} \\tag{1.2}$$", "renders"), (4, "$$\n", "\n", "renders"),
       (4, "b \\tag", "b$$ \\tag", "renders"),
    (4, "\\tag{1.1}", "\\tag{1.2}", "tags_count"), (4, "By (1.1)", "By (1.7)", "formulas_are_referred"),
    (5, "#| exports", "#| export", "formulas_are_exported"), (6, "G.forward", "G", "forward_is_shown"),
    (6, "G.forward", "F.forward", "no_signature"),
    (5, '"""Do.', '"""Do' + " more"*30, "lines_are_short"),
    (3, "import math", "import math\n"*61, "code_stands"),
    (11, "class G", "class _G", "most_of_what_is_exported"),
    (4, "## Story", "## Story\n\n#### Deep", "headings"), (4, "## Story", "## Story\n\nTODO", "is_finished"),
    (4, "@fig-a", "@fig-b", "refers_to"), (10, "@planted", "@other", "refers_to"),
       (1, "00_article", "02_gone", "refers_to"), (1, "00_article", "01_core", "prerequisites_are"),
       (1, "5 minutes", "soon", "prerequisites_are"),
    (9, "](made/exercises.md#one)", "", "has_a_figure"),
]


@pytest.mark.parametrize("source, most", [
    ("x = 1\n"*40, 30), ("def f():\n" + "    x = 1\n"*40, 30), ("class A:\n" + "    x = 1\n"*80, 60),
    ("@dataclass\nclass A:\n" + "    x = 1\n"*80, 60), ("y = 1\nclass A:\n" + "    x = 1\n"*40, 30),
    ("class A:\n" + "    x = 1\n"*20 + "class B:\n" + "    x = 1\n"*20, 30)])
def test_a_class_alone_may_fill_a_page(source, most, monkeypatch, tmp_path):
    "Sixty lines where the cell holds one class and nothing else but its decorators, thirty elsewhere."
    for n, fine in ((most, True), (most + 1, False)):
        cell = code("\n".join(("#| export\n" + source).splitlines()[:n]))
        found = complaints([*GOOD, cell], monkeypatch, tmp_path)
        assert any(line.startswith("code_cells_are_short") for line in found) != fine, found


@pytest.mark.parametrize("at, old, new, name", BAD, ids=lambda x: None)
def test_a_bad_notebook_is_found(at, old, new, name, monkeypatch, tmp_path):
    assert old in GOOD[at]["source"]
    cells = [dict(c, source=c["source"].replace(old, new)) if i == at else c for i, c in enumerate(GOOD)]
    found = complaints(cells, monkeypatch, tmp_path)
    assert any(line.startswith(name) for line in found), found


@pytest.mark.parametrize("out, name", [
    (dict(output_type="error", ename="ValueError"), "outputs_are_clean"),
    (dict(output_type="stream", name="stderr", text="careful"), "outputs_are_clean"),
    (dict(output_type="stream", name="stdout", text="Traceback (most recent call last)"),
     "outputs_are_clean"),
    (dict(output_type="stream", name="stdout", text="saved /home/me/x"), "outputs_are_clean"),
    (dict(output_type="execute_result", data={"text/plain": "<f at 0x7f00aa11>"}), "outputs_are_clean"),
    (dict(output_type="display_data", data={"application/vnd.jupyter.widget-view+json": ""}),
     "outputs_are_clean")])
def test_a_bad_output_is_found(out, name, monkeypatch, tmp_path):
    assert any(line.startswith(name) for line in complaints([*GOOD, code("f()", out)], monkeypatch, tmp_path))


def test_a_lost_output_is_found(monkeypatch, tmp_path):
    cells = [*GOOD, code("print(1)")]
    assert any(line.startswith("outputs_are_stored") for line in complaints(cells, monkeypatch, tmp_path))

"The pages of nbs/made: `make export` makes them from the repository, so that they cannot go out of date."
import ast
import json
import re
import tomllib

from tools import notebooks

ROOT, NBS, MADE = notebooks.ROOT, notebooks.NBS, notebooks.NBS/"made"
COURSE, TESTS, PACKAGE = NBS/"course", notebooks.ROOT/"tests", notebooks.ROOT/"multiscene_rec"
AREAS = ("your log", "the command", "training", "files", "lists")
PARTS = {"II": "II Models that know scenarios", "III": "III Large models", "IV": "IV In production",
         "V": "V Trust"}


def _toml(path): return tomllib.loads(path.read_text(encoding="utf-8"))


def _cell(text):
    text = " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]*)", r"`\1`", text)  # two hyphens in plain text become a dash


def _page(title, description, made_from, *lines, prose=False):
    # prose: its tables hold sentences, so on a phone nbs/styles.css puts the cells of a row below each other.
    classes = ["body-classes: prose-tables"]*prose
    front = ["---", f'title: "{title}"', f'description: "{description}"', *classes, "---", ""]
    note = f"<!-- Made by tools/pages.py from {made_from}: make export writes it. -->"
    return "\n".join([*front, note, "", *lines]).rstrip() + "\n"


def _table(header, rows):
    line = lambda row: f"| {' | '.join(row)} |"
    return [line(header), f"|{'---|'*len(header)}", *map(line, rows), ""]


def _link(stem, text=None, anchor=""):
    "A link from a made page to a notebook."
    return f"[{text or stem.replace('_', ' ', 1)}](../{stem}.ipynb{anchor})"


def _functions(folder):
    "(file, function) of every test."
    for path in sorted(folder.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef): yield path, node


# ---------------------------------------------------------------- what went wrong

def wrong_marks(folder=TESTS):
    "Every @pytest.mark.wrong(message, cause=, remedy=, area=) of the tests, with the test that proves it."
    marks = {}  # several tests may read one message
    for path, node in _functions(folder):
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) in ("pytest.mark.wrong", "wrong"):
                parts = {k.arg: ast.literal_eval(k.value) for k in mark.keywords}
                message = ast.literal_eval(mark.args[0])
                marks.setdefault(message, dict(message=message, test=f"{path.name}::{node.name}", **parts))
    return list(marks.values())


def went_wrong():
    "The page of messages: one table per area."
    marks, lines, columns = wrong_marks(), [], ("message", "cause", "remedy")
    for area in AREAS:
        rows = sorted((m for m in marks if m["area"] == area),
                      key=lambda m: m["message"].lstrip("…. -").lower())
        if not rows: continue
        table = _table(columns, [[_cell(m[column]) for column in columns] for m in rows])
        lines += [f"## {area[0].upper()}{area[1:]}", "", *table]
    return _page("What went wrong?",
                 "Every message that a user can meet, where it comes from and what to do.",
                 "the marks of the tests",
                 "A message is one line: it names the file, the column, the row or the folder, and what to "
                 "do. Three dots stand for what varies. Each line belongs to a test that provokes the "
                 "message and reads it.", "",
                 "`--debug` after any command adds the traceback.", "", *lines, prose=True)


# ---------------------------------------------------------------- notation, ledger, API

def notation():
    "The page of letters."
    rows = [[f"${s['tex']}$" if s["tex"] else "–", ", ".join(f"`{c}`" for c in s["code"]), _cell(s["shape"]),
             _cell(s["meaning"]), _link(s["page"])] for s in _toml(COURSE/"notation.toml")["symbol"]]
    return _page("Notation", "The same letters in prose, formulas and code.", "nbs/course/notation.toml",
                 "The same letters stand in prose, in formulas and in code. B is always the first axis.", "",
                 *_table(("symbol", "in code", "shape, unit", "meaning", "introduced in"), rows), prose=True)


def ledger():
    "Every numbered formula: [dict(notebook, tag, name, symbol, tests)]."
    tests = {}
    for path, node in _functions(TESTS):
        if path.name == "test_ledger.py": continue
        calls = [c for mark in node.decorator_list for c in ast.walk(mark) if isinstance(c, ast.Call)]
        for call in calls:
            if ast.unparse(call.func).split(".")[-1] != "formula": continue
            for tag in call.args:
                if not isinstance(tag, ast.Constant): continue
                tests.setdefault(tag.value, set()).add(f"{path.name}::{node.name}")
    return [dict(notebook=book, **entry, tests=sorted(tests.get(entry["tag"], ())))
            for book, entries in _toml(COURSE/"formulas.toml").items() for entry in entries]


def formulas():
    "The page of formulas."
    lines, rows = [], ledger()
    for book in dict.fromkeys(r["notebook"] for r in rows):
        table = [[f"({r['tag']})", _cell(r["name"]), f"`{r['symbol']}`",
                  " ".join(f"`{t}`" for t in r["tests"][:2])]
                 for r in rows if r["notebook"] == book]
        lines += [f"## {book.replace('_', ' ', 1)}", "", f"Derived in {_link(book, book)}.", "",
                  *_table(("number", "formula", "symbol", "second opinion"), table)]
    return _page("Formulas",
                 "Every numbered formula, the symbol that computes it, and the test that computes it "
                 "another way.",
                 "nbs/course/formulas.toml and the marks of the tests",
                 f"{len(rows)} formulas. Each is derived in its notebook, computed by an exported symbol, "
                 "and computed again, another way, by a test. The tests are tested too: with the symbol "
                 "swapped for one that is 1 % wrong, each of them fails.", "", *lines, prose=True)


def _plain():
    "Modules written by hand -> the first lesson that imports them; '' for those that only other modules use."
    used = {path.stem: set(re.findall(r"from multiscene_rec\.(\w+) import", path.read_text(encoding="utf-8")))
            for path in notebooks.paths("[0-9]*.ipynb")}
    names = [path.stem for path in sorted(PACKAGE.glob("[!_]*.py"))
             if GENERATED not in path.read_text(encoding="utf-8")]
    return {name: next((book for book, modules in used.items() if name in modules), "") for name in names}


GENERATED = "# AUTOGENERATED! DO NOT EDIT!"  # nbdev writes it into the modules of notebooks
PLAIN = _plain()


def public():
    "Public symbols: [(notebook or module, name, kind, first line of the docstring)], by module."
    rows = []
    lessons = [(path.stem, path.stem.partition("_")[2]) for path in notebooks.paths("[0-9][0-9]*_*.ipynb")]
    for book, stem in [*lessons, *((name, name) for name in PLAIN)]:
        module = PACKAGE/f"{stem}.py"
        if not module.exists(): continue
        body = ast.parse(module.read_text(encoding="utf-8")).body
        nodes = {n.name: n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        lists = [n.value.elts for n in body if isinstance(n, ast.Assign)
                 and getattr(n.targets[0], "id", "") == "__all__"]
        for name in (e.value for elements in lists for e in elements):
            node = nodes.get(name)
            kind = "class" if isinstance(node, ast.ClassDef) else "function" if node else "constant"
            rows.append((book, name, kind, (ast.get_docstring(node) or "").split("\n\n")[0] if node else ""))
    return rows


def api():
    "The page of the library."
    lines, rows = [], public()
    top = {name for names in _top().values() for name in names}
    for book in dict.fromkeys(r[0] for r in rows):
        where = f"Explained in {_link(book, book)}."
        if book in PLAIN: where = "Hand-written; not part of a lesson."
        if PLAIN.get(book): where += f" Used in {_link(PLAIN[book])}."
        table = [[_symbol(b, name, kind) + " ●"*(name in top), kind,
                  _cell(re.sub(r"\s*Formulas?:.*", "", doc, flags=re.S))]
                 for b, name, kind, doc in rows if b == book]
        lines += [f"## multiscene_rec.{book if book in PLAIN else book.partition('_')[2]}", "", where, "",
                  *_table(("name", "kind", "what it does"), table)]
    return _page("Library", "Every public symbol of the package, by module.",
                 "the docstrings of multiscene_rec",
                 "● marks what `multiscene_rec` itself shows, as in `from multiscene_rec import auc`. All "
                 "else is imported from its module. Parameters, shapes and errors stand in each notebook "
                 "next to the formula, and in `help(...)`.", "", *lines, prose=True)


def _symbol(book, name, kind):
    "A name, as a link to where its notebook documents it; constants are not documented one by one."
    if kind == "constant" or book in PLAIN: return f"`{name}`"
    return _link(book, f"`{name}`", f"#{name.lower()}")


def _top():
    for node in ast.parse((PACKAGE/"__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_MODULES":
            return ast.literal_eval(node.value)


# ---------------------------------------------------------------- models and results

def _closing(key): return next(r for r in _toml(COURSE/"results.toml")["result"] if r["key"] == key)


def closing_table(key):
    "The rows of a closing table, as its notebook's slow cell wrote them."
    import pandas as pd
    path = NBS/_closing(key)["file"]
    if not path.exists():
        raise SystemExit(f"{path} is missing: run the slow cells of {_closing(key)['notebook']}")
    return pd.read_csv(path)


def _spread(mean, sd): return f"{mean:.3f}" + f"\u00a0±\u00a0{sd:.3f}"*(sd == sd)


def models():
    "The page of models."
    from multiscene_rec import toy_mall
    from multiscene_rec.model import build, count_parameters
    from multiscene_rec.preprocess import Preprocessor
    mall = toy_mall(n_users=1000, n_events=20_000)
    spec = Preprocessor().fit(mall.events, users=mall.users, items=mall.items).spec
    formulas_of = {}
    for r in ledger(): formulas_of.setdefault(r["symbol"], []).append(r)
    here = closing_table("mall").query("scenario == 'macro' and metric == 'auc'").set_index("model")
    there = closing_table("coupons").set_index("model")
    auc = lambda name: f"{there.auc[name]:.3f}" if name in there.index else "–"
    rows, ideas = [], []
    for m in _toml(COURSE/"models.toml")["model"]:
        links = ", ".join(_link(r["notebook"], f"({r['tag']})") for s in m["symbols"]
                          for r in formulas_of.get(s, []))
        size = sum(count_parameters(build(m["model"], spec, **m["params"])).values())
        arguments = ", ".join(f"{k}={v}" for k, v in m["params"].items())
        reached = _spread(*here.loc[m["mall"], ["mean", "sd"]]) if m.get("mall") in here.index else "–"
        name = f"{_cell(m['name'])} (`{m['model']}`{f' {arguments}' if arguments else ''})"
        rows.append([name, links, f"{size:,}", reached,
                     auc(m.get("coupons")), auc(f"{m.get('coupons')}, per scenario")])
        ideas += [f"- **{m['name']}.** {m['idea']} Source: {m['source']}."]
    return _page("Models", "Every model of the course: idea, formulas, size, and what it reached.",
                 "nbs/course/models.toml, the ledger, the code and nbs/course/results",
                 "A model is built by its name: `model.build(\"interest\", spec, fusion=\"mean\")`. AUC is "
                 f"the mean over scenarios: on the mall from {_link('09_train')}, five seeds (mean ± "
                 f"standard deviation; the log allows {here['mean']['ceiling: the log']:.3f}), on the "
                 f"coupons from {_link('11_coupons')}, ten splits by respondent. Parameters are for the "
                 "mall's 600 items.", "", *ideas, "",
                 *_table(("model", "formulas", "parameters", "AUC, mall", "AUC, coupons",
                          "a head per scenario"), rows),
                 "Parts II and III will add their models here.", "")


METRICS = {"auc": "AUC", "gauc": "GAUC, the same inside users",
           "log_loss": "Log loss in nats per row, lower is better"}


def closing_lines(key):
    "A closing table as Markdown."
    table = closing_table(key)
    if "metric" not in table:
        columns = [c for c in table if c not in ("commit", "hardware", "date")]
        return _table([c.replace("_", " ") for c in columns],
                      [[_number(row[c]) for c in columns] for _, row in table.iterrows()])
    lines = []
    for metric, title in METRICS.items():
        part = table[table.metric == metric]
        if not len(part): continue
        scenarios = list(dict.fromkeys(part.scenario))
        cells = {(r.model, r.scenario): _spread(r.mean, r.sd) for r in part.itertuples()}
        rows = [[_cell(model), *(cells.get((model, s), "–") for s in scenarios)]
                for model in dict.fromkeys(part.model)]
        lines += [f"{title}:", "", *_table(["model", *scenarios], rows)]
    return lines


def results():
    "The page of the closing runs and of the benchmarks."
    lines = []
    for r in _toml(COURSE/"results.toml")["result"]:
        run = closing_table(r["key"]).iloc[0]
        lines += [f"## {r['title']}", "",
                  f"{r['about']} From {_link(r['notebook'], r['notebook'])}, run at commit "
                  f"`{run['commit']}` on {run['hardware']}, {run['date']}.", "", *closing_lines(r["key"])]
    for path in sorted((ROOT/"bench"/"results").glob("*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        hardware, script = run["hardware"], run["benchmark"] if run["benchmark"] != "imports" else "notebooks"
        machine = hardware.get("gpu") or "{cpu}, {cores} cores, {threads} thread(s)".format(**hardware)
        keys = list(dict.fromkeys(k for row in run["rows"] for k in row))
        lines += [f"## Benchmark: {path.stem}", "",
                  f"{run['date']}, commit `{run['commit']}`, {machine}, PyTorch "
                  f"{run['torch']}, Python {run['python']}. By `python -m bench.{script}`.", "",
                  *_table([k.replace("_", " ") for k in keys],
                          [[_number(row.get(k)) for k in keys] for row in run["rows"]])]
    return _page("Results",
                 "The tables of the closing runs, and what training, ranking and preprocessing cost.",
                 "nbs/course/results and bench/results",
                 "Numbers of another machine will differ in the last digits, times by more. A difference "
                 "smaller than the spread is no difference.", "", *lines)


def _number(x):
    if x is None or x != x: return "–"
    if isinstance(x, bool): return "yes" if x else "no"
    if isinstance(x, float): return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"
    return _cell(f"{x:,}" if isinstance(x, int) else x)


# ---------------------------------------------------------------- glossary

def glossary():
    "The page of terms."
    rows = []
    for t in sorted(_toml(COURSE/"glossary.toml")["term"], key=lambda t: t["en"].lower()):
        where = _link(t["page"]) if "page" in t else f"{PARTS[t['part']]}, to come"
        rows.append([_cell(t["en"]), _cell(t["zh"]), _cell(t["meaning"]), where])
    return _page("Glossary", "Terms of the course in English and Chinese.", "nbs/course/glossary.toml",
                 "The course grew from a Chinese article. Here is each of its technical terms, with the "
                 "English one that the course uses.", "",
                 *_table(("English", "中文", "meaning", "where"), rows), prose=True)


# ---------------------------------------------------------------- exercises with folded solutions

def exercises():
    "The page of exercises: statement, and the solution folded away."
    from tools import exercises as ex
    lines, lesson = [], ""
    python = lambda source: ["```python", source.rstrip(), "```", ""]
    for e in ex.sources():
        if e.lesson != lesson:
            lesson = e.lesson
            lines += [f"## {lesson.replace('_', ' ', 1)}", "", f"To {_link(lesson, lesson)}.", ""]
        lines += [f"### {e.name.split('_')[0]} {e.title}", ""]
        stubs, solved = {c.id: c.source for c in ex.student_copy(e).cells}, []
        for cell in e.cells:
            text = re.sub(r"^# .*\n+", "", cell.source).replace("../../../nbs/", "../")
            if cell.kind == "text": lines += [text, ""]
            elif cell.kind == "solution": lines += python(stubs[cell.id])
            solution = re.sub(r"^[ \t]*### (BEGIN|END) SOLUTION\n?", "", cell.source, flags=re.M)
            if cell.kind == "solution": solved += python(solution)
            elif cell.kind == "answer": solved += [solution.strip(), ""]
        lines += ["<details><summary>Solution</summary>", "", *solved, "</details>", ""]
    return _page("Exercises", "The graded exercises, with solutions folded away.", "exercises/source",
                 "Try first. A solution read before an attempt is soon forgotten. `make exercises` makes "
                 "notebooks of these that check your answer in words; `exercises/README.md` says how. For "
                 "teachers: [Teaching with this course](../teaching.md).", "", *lines)


PAGES = {"made/notation.md": notation, "made/formulas.md": formulas, "made/library.md": api,
         "made/models.md": models, "made/results.md": results, "made/glossary.md": glossary,
         "made/exercises.md": exercises, "made/went_wrong.md": went_wrong}

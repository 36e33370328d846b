"Pages that are made from the repository say what it says."
import ast
import re

import pytest

from tools import notebooks, pages


def test_the_pages_are_in_step():
    assert pages.write(check=True) == [], "run make export"


def test_every_page_is_in_the_sidebar():
    text = (notebooks.NBS/"_quarto.yml").read_text(encoding="utf-8")
    assert all(f"- {name}\n" in text for name in pages.PAGES)


MARKS = pages.wrong_marks()


def plain(text): return re.sub(r"[\\\s'\"]+", "", text)


def spoken():
    "Every text that the package can say, with … for what varies."
    said = []
    for path in (notebooks.ROOT/"multiscene_rec").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str): said.append(node.value)
            if isinstance(node, ast.JoinedStr): said.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
    return plain("\n".join(said))


SPOKEN = spoken()


@pytest.mark.parametrize("mark", MARKS, ids=[f"{m['test']}-{i}" for i, m in enumerate(MARKS)])
def test_a_message_is_said_by_the_package_and_read_by_its_test(mark):
    "A piece of it that does not vary stands in the package, and one, word for word, in the test that bears the mark."
    path, name = mark["test"].split("::")
    tree = ast.parse(next((notebooks.ROOT/"tests").rglob(path)).read_text(encoding="utf-8"))
    test = next(node for node in tree.body if getattr(node, "name", "") == name)
    used = {n.id for n in ast.walk(test) if isinstance(n, ast.Name)} | {a.arg for a in test.args.args}
    tables = [n for n in tree.body if isinstance(n, ast.Assign) and any(getattr(t, "id", "") in used for t in n.targets)]
    read = "".join(ast.unparse(n) for n in [*tables, test])
    for text in [ast.unparse(d) for d in test.decorator_list if ast.unparse(d).startswith(("pytest.mark.wrong", "wrong("))]: read = read.replace(text, "")
    pieces = [p for p in (part.strip(" :;,.'") for part in mark["message"].split("…")) if len(p) >= 8]
    phrases = [s for piece in pieces for s in re.split(r"[:;,()]|\b\d+(?:\.\d+)?\b|'s |InterestModel\.save|model\.(?:json|safetensors)|with fit|numbers|text", piece) if len(s.strip()) >= 8]
    assert any(plain(s) in SPOKEN for s in phrases), phrases
    assert any(plain(s) in plain(read) for s in [*pieces, *phrases]), phrases
    assert mark["area"] in pages.AREAS
    for part in ("cause", "remedy"): assert mark[part].endswith(".") and len(mark[part]) < 200, mark


def test_no_message_stands_twice():
    said = [m["message"] for m in MARKS]
    assert sorted(said) == sorted(set(said))


@pytest.mark.parametrize("words", [
    "is empty", "has a header and no rows", "missing column", "scenario", "label", "one class", "infinite", "stands twice", "zone",
    "newcomer", "whole number", "axis", "pickle", "format", "damaged", "free space", "Ctrl-C", "another run", "milliseconds"])
def test_the_bad_days_are_all_there(words):
    assert words.lower() in pages.went_wrong().lower()


# ---------------------------------------------------------------- nothing is missing from the pages

def test_every_formula_symbol_model_and_exercise_is_on_its_page():
    page = {name: (notebooks.NBS/name).read_text(encoding="utf-8") for name in pages.PAGES}
    for row in pages.ledger():
        assert f"({row['tag']})" in page["formulas.md"] and f"`{row['symbol']}`" in page["formulas.md"] and row["tests"], row
    for book, name, _, said in pages.public():
        assert f"`{name}`" in page["library.md"] and (said or name.isupper() or name == "app"), f"{book}: {name} has no first line"
    from multiscene_rec.fusion import FUSIONS
    assert all(f"fusion={name})" in page["models.md"] for name, kind in FUSIONS.items() if kind.__module__.startswith("multiscene_rec."))
    from tools import exercises
    assert all(f"### {e.name.split('_')[0]} {e.title}" in page["exercises.md"] for e in exercises.sources())


def test_the_letters_are_those_of_the_code():
    code = "\n".join(p.read_text(encoding="utf-8") for p in pages.PACKAGE.glob("*.py"))
    for symbol in pages._toml(pages.COURSE/"notation.toml")["symbol"]:
        for name in symbol["code"]: assert re.search(rf"\b{name}\b", code), name
        assert (notebooks.NBS/f"{symbol['page']}.ipynb").exists()


def test_every_term_says_where_it_is_taught():
    terms = pages._toml(pages.COURSE/"glossary.toml")["term"]
    assert len(terms) >= 100 and len({t["en"] for t in terms}) == len(terms)
    for t in terms:
        assert t["meaning"].endswith(".") and t["zh"] and (t.get("part") in pages.PARTS or (notebooks.NBS/f"{t['page']}.ipynb").exists()), t


def printed(stem):
    "All that the code cells of a notebook printed, as stored."
    cells = notebooks.read(notebooks.NBS/f"{stem}.ipynb")["cells"]
    return "".join(o.get("text", "") or o.get("data", {}).get("text/plain", "") for c in cells if c["cell_type"] == "code" for o in c["outputs"])


def test_closing_tables_say_what_their_notebooks_printed():
    mall, text = pages.closing_table("mall"), printed("09_train")
    for row in mall.itertuples():
        said = f"{row.mean:.3f}" + ("" if row.sd != row.sd else f" ± {row.sd:.3f}")
        assert said in text, (row.model, row.scenario, row.metric, said)
    coupons, text = pages.closing_table("coupons"), printed("11_coupons")
    for row in coupons.itertuples(): assert row.model in text and f"{row.auc:.3f}"[1:] in text, row
    for table in (mall, coupons): assert re.fullmatch(r"[0-9a-f]{7,}", str(table["commit"][0])) and "core" in table["hardware"][0]

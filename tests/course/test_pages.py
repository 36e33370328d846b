"Pages that are made from the repository say what it says; tests/course/test_house.py holds them in step."
import ast
import re

import pytest

from tools import notebooks, pages

MARKS = pages.wrong_marks()


def squeezed(text): return re.sub(r"[\\\s'\"]+", "", text)


def spoken():
    "Every text that the package can say, with … for what varies."
    texts = []
    for path in pages.PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str): texts.append(node.value)
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
    return squeezed("\n".join(texts))


SPOKEN = spoken()
VARIES = re.compile(r"[:;,()]|\b\d+(?:\.\d+)?\b|'s |InterestModel\.save|model\.(?:json|safetensors)|with fit|"
                    "numbers|text")


def code_of(name):
    "The code of a test (`file::function`) with the tables that it uses, without its marks."
    path, name = name.split("::")
    tree = ast.parse(next(pages.TESTS.rglob(path)).read_text(encoding="utf-8"))
    test = next(node for node in tree.body if getattr(node, "name", "") == name)
    used = {n.id for n in ast.walk(test) if isinstance(n, ast.Name)} | {a.arg for a in test.args.args}
    tables = [n for n in tree.body if isinstance(n, ast.Assign)
              and any(getattr(t, "id", "") in used for t in n.targets)]
    code = "".join(ast.unparse(node) for node in [*tables, test])
    for mark in map(ast.unparse, test.decorator_list):
        if mark.startswith(("pytest.mark.wrong", "wrong(")): code = code.replace(mark, "")
    return squeezed(code)


@pytest.mark.parametrize("mark", MARKS, ids=[f"{m['test']}-{i}" for i, m in enumerate(MARKS)])
def test_a_message_is_said_by_the_package_and_read_by_its_test(mark):
    "A piece of it that does not vary stands in the package, and one, word for word, in the marked test."
    pieces = [p for p in (part.strip(" :;,.'") for part in mark["message"].split("…")) if len(p) >= 8]
    phrases = [phrase for piece in pieces for phrase in VARIES.split(piece) if len(phrase.strip()) >= 8]
    read = code_of(mark["test"])
    assert any(squeezed(phrase) in SPOKEN for phrase in phrases), phrases
    assert any(squeezed(phrase) in read for phrase in [*pieces, *phrases]), phrases
    assert mark["area"] in pages.AREAS
    for part in ("cause", "remedy"): assert mark[part].endswith(".") and len(mark[part]) < 200, mark


def test_the_bad_days_are_all_there():
    page = pages.went_wrong().lower()
    days = ("is empty", "has a header but no rows", "missing column", "scenario", "label", "one class",
            "infinite", "twice",
            "zone", "newcomer", "whole number", "axis", "pickle", "format", "damaged", "free space", "ctrl-c",
            "another run",
            "milliseconds")
    assert [day for day in days if day not in page] == []


# ---------------------------------------------------------------- nothing is missing from the pages

def test_every_formula_symbol_model_and_exercise_is_on_its_page():
    from multiscene_rec.fusion import FUSIONS
    from tools import exercises
    page = {name: (notebooks.NBS/name).read_text(encoding="utf-8") for name in pages.PAGES}
    for row in pages.ledger():
        for text in (f"({row['tag']})", f"`{row['symbol']}`"): assert text in page["made/formulas.md"], row
        assert row["tests"], row
    for book, name, _, doc in pages.public():
        assert f"`{name}`" in page["made/library.md"], name
        assert doc or name.isupper() or name == "app", f"{book}: {name} has no first line"
    for name, kind in FUSIONS.items():
        if kind.__module__.startswith("multiscene_rec."): assert f"fusion={name})" in page["made/models.md"]
    for e in exercises.sources(): assert f"### {e.name.split('_')[0]} {e.title}" in page["made/exercises.md"]


def test_the_letters_are_those_of_the_code():
    code = "\n".join(p.read_text(encoding="utf-8") for p in pages.PACKAGE.glob("*.py"))
    for symbol in pages._toml(pages.COURSE/"notation.toml")["symbol"]:
        for name in symbol["code"]: assert re.search(rf"\b{name}\b", code), name
        assert (notebooks.NBS/f"{symbol['page']}.ipynb").exists()


def test_every_term_says_where_it_is_taught():
    terms = pages._toml(pages.COURSE/"glossary.toml")["term"]
    assert len(terms) >= 100 and len({t["en"] for t in terms}) == len(terms)
    for t in terms:
        assert t["meaning"].endswith(".") and t["zh"], t
        assert t.get("part") in pages.PARTS or (notebooks.NBS/f"{t['page']}.ipynb").exists(), t


def printed(stem):
    "All that the code cells of a notebook printed, as stored."
    cells = notebooks.read(notebooks.NBS/f"{stem}.ipynb")["cells"]
    outputs = [out for cell in cells if cell["cell_type"] == "code" for out in cell["outputs"]]
    return "".join(out.get("text", "") or out.get("data", {}).get("text/plain", "") for out in outputs)


def test_closing_tables_say_what_their_notebooks_printed():
    mall, text = pages.closing_table("mall"), printed("09_train")
    for row in mall.itertuples():
        number = f"{row.mean:.3f}" + ("" if row.sd != row.sd else f" ± {row.sd:.3f}")
        assert number in text, (row.model, row.scenario, row.metric, number)
    coupons, text = pages.closing_table("coupons"), printed("11_coupons")
    for row in coupons.itertuples(): assert row.model in text and f"{row.auc:.3f}"[1:] in text, row
    for table in (mall, coupons):
        assert re.fullmatch(r"[0-9a-f]{7,}", str(table["commit"][0])) and "core" in table["hardware"][0]

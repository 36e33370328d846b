"The slides: what the slide types choose is a lecture, is drawn, fits, and is what Jupyter's own slides show."
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from browsing import browser
from shared import made_once

from tools import notebooks, preview, slides
from tools.site import foreign_loads

LESSONS = [*slides.lessons(), notebooks.NBS/"_template.ipynb"]
TYPES = {"slide", "subslide", "fragment", "skip", "notes", "-"}
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    "The folder of the lectures, and what could not be drawn."
    def make(folder):
        written, missing = slides.build(LESSONS, folder/"_slides")
        return [path.name for path in written], missing
    folder, (written, missing) = made_once(tmp_path_factory, "slides", make)
    out = folder/"_slides"
    assert written == [f"{path.stem}.html" for path in LESSONS]
    return out, missing


def run(command, **more):
    env = notebooks.child_env()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, **more)
    assert done.returncode == 0, done.stderr


# The lessons

@each_lesson
def test_each_lesson_is_a_lecture_of_an_hour(path, tmp_path):
    made = slides.slides(path, tmp_path)
    titles = [title for _, title, _ in made]
    lecture = path.stem != "_template"
    count = len(made) + 1  # the title
    assert 10*lecture <= count <= 25, f"{path.name} has {count} slides; a lecture has 10 to 25"
    assert titles[0] == "The question" and "What can go wrong" in titles and titles[-1] == "Summary"
    text = "\n\n".join(text for _, _, parts in made for _, text in parts)
    assert re.search(r"\\tag\{\d+\.\d+\}", text), "no numbered formula"
    assert re.search(r"^!\[.+\]\(\S+\.\w+\)", text, re.MULTILINE), "no figure"
    for _, title, parts in made:
        assert title and parts and all(text.strip() for _, text in parts), f"{path.name}: {title}"


@each_lesson
def test_every_cell_of_a_lesson_has_a_slide_type(path):
    "In Jupyter a cell without one joins the slide before it, which is seldom meant."
    for cell in notebooks.read(path)["cells"]:
        where, kind = f"{path.name}, {cell['source'][:60]!r}", slides.slide_type(cell)
        assert kind in TYPES, where
        assert "slideshow" in cell["metadata"], f"{where} has no slide type: skip it, or show it"
        if cell["cell_type"] == "code" and kind != "skip":
            assert cell["outputs"], f"{where} has nothing to show"
            assert not re.search(r"^#\|\s*(?:hide|include: *false)$", cell["source"], re.MULTILINE), where


def test_cleaning_keeps_the_types(tmp_path):
    shutil.copy(notebooks.ROOT/"settings.ini", tmp_path)
    (tmp_path/"nbs").mkdir()
    path = LESSONS[1]
    nb = json.loads(path.read_text(encoding="utf-8"))
    for cell in nb["cells"]: cell["metadata"] |= dict(collapsed=True, tags=["slide"])
    (tmp_path/"nbs"/path.name).write_text(json.dumps(nb), encoding="utf-8")
    run([str(Path(sys.executable).parent/"nbdev_clean")], cwd=tmp_path)
    cells = [notebooks.read(folder/path.name)["cells"] for folder in (notebooks.NBS, tmp_path/"nbs")]
    assert [slides.slide_type(c) for c in cells[0]] == [slides.slide_type(c) for c in cells[1]]
    assert all(set(c["metadata"]) == {"slideshow"} for c in cells[1])


@pytest.mark.slow
def test_jupyter_itself_makes_the_same_slides(tmp_path):
    path = notebooks.NBS/"_template.ipynb"
    run([sys.executable, "-m", "nbconvert", "--to", "slides", "--output-dir", str(tmp_path), str(path)])
    page = next(tmp_path.glob("*.html")).read_text(encoding="utf-8")
    cells = notebooks.read(path)["cells"]
    begun = [c for c in cells if slides.slide_type(c) in ("slide", "subslide")]
    starts = [c for c in begun if slides.slide_type(c) == "slide"]
    assert page.count("<section") == len(begun) + len(starts)


# From cells to slides

def notebook(folder, *cells):
    "The path of a notebook of cells (slide type, source), or (slide type, source, what was printed)."
    made = [dict(cell_type="markdown", metadata={}, source="# T\n\n> What for.")]
    for kind, source, *out in cells:
        cell = dict(cell_type="markdown", metadata=dict(slideshow=dict(slide_type=kind)), source=source)
        if out: cell |= dict(cell_type="code", outputs=[dict(output_type="stream", text=o) for o in out if o])
        made.append(cell)
    path = folder/"80_made.ipynb"
    path.write_text(json.dumps(dict(cells=made)), encoding="utf-8")
    return path


def test_types_and_headings_make_the_slides(tmp_path):
    code = "```python\n# no heading\n```"
    path = notebook(tmp_path, ("skip", "## A\n\nhidden"), ("slide", "one"), ("fragment", "two"),
                    ("", "three"), ("subslide", f"## B\n\nfour\n\n{code}\n\n### C\n\nfive"), ("skip", "six"),
                    ("notes", "seven"), ("slide", "> **Box.** *Eight*\n> nine"), ("subslide", "ten"))
    assert slides.slides(path, tmp_path) == [
        ("slide", "A", [("-", "one"), ("fragment", "two"), ("-", "three")]),
        ("subslide", "B", [("-", f"four\n\n{code}")]), ("subslide", "C", [("-", "five"), ("notes", "seven")]),
        ("slide", "Box", [("-", "*Eight*\nnine")]), ("subslide", "C", [("-", "ten")])]


def test_of_code_the_output_is_shown_and_the_source_folded(tmp_path):
    path = notebook(tmp_path, ("slide", "#| echo: false\nprint(7)", "7\n"), ("slide", "#| export\nx = 1", ""))
    (_, _, [(_, printed)]), (_, _, [(_, alone)]) = slides.slides(path, tmp_path)
    assert "<details" in printed and "print(7)" in printed and printed.rstrip("`\n").endswith("7")
    assert alone == "``` {.python}\nx = 1\n```"


def test_sections_fragments_notes_and_wide_diagrams():
    text = slides.source([("slide", "A", [("-", "one"), ("fragment", "two")]),
                          ("subslide", "B", [("notes", "n")]),
                          ("slide", "C", [("-", "```mermaid\ngraph TB\n  A --> B\n```")])])
    page = preview.pandoc(text, "slides.html", True, dict(title="T", drawn=True))
    assert page.count("<section") == page.count("</section") == 6  # the title, two parts, three slides
    assert re.search(r'<div class="fragment">\s*<p>two</p>', page) and '<aside class="notes">' in page
    assert "graph LR" in page and "mermaid.min.js" in page


def test_an_unknown_lesson_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["slides", "no_such"])
    with pytest.raises(SystemExit,
                       match="no lesson is called no_such; the lessons are 00_article, .*05_fusion"):
        slides.main()


# The lectures

def test_the_lectures_load_nothing_from_elsewhere_and_describe_their_images(built):
    out, _ = built
    for sheet in out.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"(?:@import|url\()\s*[\"'(url]*(?:https?:)?//", text), sheet
    for path in LESSONS:
        text = (out/f"{path.stem}.html").read_text(encoding="utf-8")
        for to in re.findall(r'<a [^>]*?href="([^"]+)"', text):
            assert re.match("[a-z]+:|#cb", to), f"{path.name}: {to} is not beside the lectures"
        assert foreign_loads(text) == [] and text.count('<div class="body">') == text.count("<h2")
        assert all(re.search(r'alt="[^"]{20,}"', image) for image in re.findall(r"<img[^>]*>", text))
        for name in re.findall(r'<(?:img|script|link)\b[^>]*?(?:src|href)="([^"]+)"', text):
            assert built[1] or (out/name).is_file(), f"{path.name}: {name}"
        prose = re.sub(r"<(code|pre|script|span class=\"math)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert not re.search(r"^#\||:::|@fig-|\[@|(?<!\w)@[a-z]+\d{4}|\{\{<", prose, re.MULTILINE), path.name


def test_without_node_the_slides_stand_one_under_another(tmp_path, monkeypatch):
    monkeypatch.setattr(preview.shutil, "which", lambda name: None)
    (page,), missing = slides.build(LESSONS[5:6], tmp_path/"_slides")
    text = page.read_text(encoding="utf-8")
    assert "Node.js" in missing and "<script" not in text and "<math" in text and "<h2" in text


# Of each slide, drawn: what is wrong with it.
LOOK = """async () => {
  const wrong = [];
  for (const slide of deck.getSlides()) {
    const {h, v} = deck.getIndices(slide);
    deck.slide(h, v, 99);
    await fit(slide);
    const body = slide.querySelector(".body"), title = (slide.querySelector("h1, h2") || slide).textContent;
    if (!slide.getClientRects().length) wrong.push(`${title}: cannot be reached`);
    if (!body) continue;
    if (body.scrollWidth > body.clientWidth + 1) wrong.push(`${title}: ${body.scrollWidth} px wide`);
    if (body.scrollHeight > 2.5*body.clientHeight) wrong.push(`${title}: ${body.scrollHeight} px high`);
    if (body.getBoundingClientRect().bottom > innerHeight) wrong.push(`${title}: runs out below`);
    for (const e of body.querySelectorAll("p, li, pre, td"))
      if (!e.closest("svg") && e.getClientRects().length && parseFloat(getComputedStyle(e).fontSize) < 13)
        wrong.push(`${title}: letters of ${getComputedStyle(e).fontSize}`);
  }
  return wrong;
}"""


@pytest.mark.slow
def test_no_slide_overflows_and_arrows_turn(built):
    out, missing = built
    if missing: pytest.skip(missing)
    wrong = []
    with browser() as chrome:
        tab = chrome.new_page(viewport=dict(width=1280, height=720))
        tab.on("console", lambda m: wrong.append(f"{tab.url}: {m.text}") if m.type == "error" else None)
        tab.on("pageerror", lambda err: wrong.append(f"{tab.url}: {err}"))
        for path in LESSONS:
            tab.goto((out/f"{path.stem}.html").as_uri())
            tab.wait_for_function("() => deck.isReady()", timeout=60_000)
            wrong += [f"{path.stem}, {line}" for line in tab.evaluate(LOOK)]
            text = (out/f"{path.stem}.html").read_text(encoding="utf-8")
            assert tab.locator(".katex").count() >= text.count('<span class="math'), path.stem
            assert tab.locator(".katex-error").count() == 0, path.stem
            assert tab.locator("pre.mermaid svg").count() == text.count('<pre class="mermaid">'), path.stem
        tab.goto((out/"05_fusion.html").as_uri())
        tab.wait_for_function("() => deck.isReady()")
        last = tab.evaluate("deck.getTotalSlides()") - 1
        for key, before in (("ArrowRight", 1), ("Home", 0), ("End", last)):
            tab.keyboard.press(key)
            tab.wait_for_function(f"() => deck.getSlidePastCount() === {before}")
    assert not wrong, "\n".join(wrong)

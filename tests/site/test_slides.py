"The slides: what the tags choose is a lecture, fits, and is drawn; Quarto itself is asked where it is installed."
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from browsing import browser
from test_site import MATH, ask_node, without_code

from tools import notebooks, preview, slides
from tools.site import foreign_loads

LESSONS = slides.lessons()
MADE = {path.stem: slides.slides(path) for path in LESSONS}
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)


def texts(made): return [(slide.title, b.text) for slide in made for b in slide.blocks if b.kind == "text"]


# The lessons

@each_lesson
def test_each_lesson_is_a_lecture_of_an_hour(path):
    made = MADE[path.stem]
    titles = [slide.title for slide in made]
    assert 10 <= len(made) <= 25, f"{path.name} has {len(made)} slides; a lecture has 10 to 25. Tag cells 'slide' and 'slide-more': see tools/slides.py"
    assert titles[0] == "The question" and "What can go wrong" in titles and "Summary" in titles
    assert sum(b.kind == "image" for slide in made for b in slide.blocks) >= 1
    assert re.search(r"\\tag\{\d+\.\d+\}", "".join(text for _, text in texts(made)))


def test_the_template_shows_how_cells_are_tagged():
    made = slides.slides(notebooks.NBS/"_template.ipynb")
    titles = [slide.title for slide in made]
    assert titles[0] == "The question" and "What can go wrong" in titles and titles[-1] == "Summary"
    assert any(b.kind == "image" for slide in made for b in slide.blocks) and "\\tag{80.1}" in "".join(text for _, text in texts(made))


@each_lesson
def test_each_slide_has_a_title_and_something_to_say_and_not_too_much(path):
    for slide in MADE[path.stem]:
        assert slide.title and slide.blocks and "#" not in slide.title, slide
        assert all(b.text.strip() for b in slide.blocks), slide.title
        words = sum(b.words for b in slide.blocks)
        assert words <= 150, f"{slide.title}: {words} words"
        for b in slide.blocks:
            if b.kind == "image": assert min(slides.image_size(slide, b)) > 200, f"{slide.title}: an image of {slides.image_size(slide, b)}"
        high = sum(b.px for b in slide.blocks if b.kind != "image")
        assert high <= slides.HEIGHT - 110, f"{slide.title}: {high} px"


@each_lesson
def test_tags_are_known_and_stand_where_they_mean_something(path):
    cells = [(c, slides.tags(c)) for c in notebooks.read(path)["cells"] if slides.tags(c)]
    assert cells, f"{path.name}: no cell is tagged 'slide'; see tools/slides.py"
    assert slides.BEGIN in cells[0][1]
    for cell, chosen in cells:
        where = f"{path.name}, {cell['source'][:60]!r}"
        assert set(chosen) <= set(slides.TAGS), where
        assert len({slides.BEGIN, slides.MORE} & set(chosen)) == 1, where
        assert cell["cell_type"] == "markdown" or slides.BRIEF not in chosen, where
        assert cell["cell_type"] == "code" or slides.CODE not in chosen, where
        if cell["cell_type"] == "code":
            assert cell["outputs"], f"{where}: nothing to show"
            assert not re.search(r"^#\|\s*(?:hide|include:\s*false)\s*$", cell["source"], flags=re.MULTILINE), where


def test_nothing_is_left_that_only_a_page_understands():
    for name, made in MADE.items():
        for title, text in texts(made):
            said = without_code(text)
            assert not re.search(r"^#\||^\s*:::|</?details|</?summary|@fig-|\[@|\]\((?!https?:)|\{\{<", said, flags=re.MULTILINE), f"{name}, {title}: {said}"
            assert not re.search(r"(?<!\w)@[a-z]+\d{4}", said), f"{name}, {title}: {said}"
            if "```" in text: assert re.match(r"```(?:mermaid|python)\n", text) and text.rstrip().endswith("```"), f"{name}, {title}: {text}"
        for slide in made:
            for b in slide.blocks:
                if b.kind == "code": assert not re.search(r"^(?:#\||%)", b.text, flags=re.MULTILINE), f"{name}, {slide.title}"
                if b.kind == "table": assert "<style" not in b.text and "<script" not in b.text


def test_every_formula_is_read_by_katex():
    found = [(f"{name}, {title}", m["display"] or m["inline"], m["display"] is not None) for name, made in MADE.items() for title, text in texts(made) for m in MATH.finditer(without_code(text))]
    assert len(found) > 500
    wrong = [f"{found[said['index']][0]}: {said['said']}" for said in ask_node("formulas.mjs", [dict(tex=tex, display=display) for _, tex, display in found])]
    assert not wrong, "\n".join(wrong)
    stray = [f"{name}, {title}: {text}" for name, made in MADE.items() for title, text in texts(made) if re.search(r"(?<!\\)\$", MATH.sub(" ", without_code(text)))]
    assert not stray, "\n".join(stray)


def test_every_diagram_is_read_by_mermaid():
    found = [re.sub(r"^```mermaid\n|```\s*$", "", text) for made in MADE.values() for _, text in texts(made) if text.startswith("```mermaid")]
    assert found and ask_node("diagrams.mjs", found) == []


def test_cleaning_keeps_the_tags(tmp_path):
    shutil.copy(notebooks.ROOT/"settings.ini", tmp_path)
    (tmp_path/"nbs").mkdir()
    for path in LESSONS[:2]:
        nb = json.loads(path.read_text(encoding="utf-8"))
        for cell in nb["cells"]: cell["metadata"]["collapsed"] = True
        (tmp_path/"nbs"/path.name).write_text(json.dumps(nb), encoding="utf-8")
    done = subprocess.run([str(Path(sys.executable).parent/"nbdev_clean")], cwd=tmp_path, env=notebooks.child_env(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for path in LESSONS[:2]:
        assert "collapsed" not in (tmp_path/"nbs"/path.name).read_text(encoding="utf-8")
        before, after = ([slides.tags(c) for c in json.loads(p.read_text(encoding="utf-8"))["cells"]] for p in (path, tmp_path/"nbs"/path.name))
        assert before == after and sum(map(bool, after)) > 10


# The sources

@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    "All sources, as they are made where Quarto is not."
    out, which = tmp_path_factory.mktemp("slides")/"_slides", shutil.which
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slides.shutil, "which", lambda name: None if name == "quarto" else which(name))
        return out, slides.build(LESSONS, out)


def test_without_quarto_the_sources_are_made_and_it_is_said(sources):
    out, said = sources
    assert f"{len(LESSONS)} sources" in said and "Quarto" in said and "not installed" in said and "--preview" in said and "\n" not in said
    assert sorted(p.stem for p in out.glob("*.qmd")) == [p.stem for p in LESSONS]


def test_the_yaml_of_the_sources(sources):
    project = yaml.safe_load((sources[0]/"_quarto.yml").read_text(encoding="utf-8"))
    settings = project["format"]["revealjs"]
    assert settings["slide-number"] is True and settings["theme"] == "simple"
    assert "://" not in json.dumps(project) and (sources[0]/settings["css"]).is_file() and settings["html-math-method"]["url"] == "katex/"
    assert "://" not in (sources[0]/settings["css"]).read_text(encoding="utf-8")
    for path in LESSONS:
        head, _ = preview.front_matter((sources[0]/f"{path.stem}.qmd").read_text(encoding="utf-8"))
        assert (head["title"], head["subtitle"]) == notebooks.head(path)
        assert head["author"] == notebooks.settings()["author"] and head["format"] == "revealjs"


def test_the_sources_hold_slides_images_and_diagrams_for_quarto(sources):
    for path in LESSONS:
        text = (sources[0]/f"{path.stem}.qmd").read_text(encoding="utf-8")
        outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        assert re.findall(r"^## (.+)$", outside, flags=re.MULTILINE) == [slide.title for slide in MADE[path.stem]]
        assert not re.search(r"^#(?: |###? )", outside, flags=re.MULTILINE), "another level of heading would make another slide"
        assert "```mermaid" not in text and len(re.findall(r"^```", text, flags=re.MULTILINE)) % 2 == 0
        assert outside.count("\n::: {") == len(re.findall(r"^:::$", outside, flags=re.MULTILINE))
        images = re.findall(r'!\[[^\n]*\]\((images/[\w.]+)\)\{fig-alt="([^"]*)" width="(\d+)px" height="(\d+)px"\}', text)
        assert len(images) == sum(b.kind == "image" for slide in MADE[path.stem] for b in slide.blocks) >= 1
        for name, alt, _, _ in images: assert (sources[0]/name).read_bytes()[:4] == b"\x89PNG" and len(alt) > 20, name


@pytest.mark.skipif(shutil.which("quarto") is None, reason="needs Quarto: https://quarto.org")
def test_quarto_draws_them(tmp_path):
    out = tmp_path/"_slides"
    assert "lectures in" in slides.build([LESSONS[5]], out)
    page = (out/"05_fusion.html").read_text(encoding="utf-8")
    for sheet in out.rglob("*.css"): assert not re.search(r"(?:@import|url\()\s*[\"'(url]*(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    assert foreign_loads(page) == [] and page.count("<section") > len(MADE["05_fusion"]) and "katex/katex.min.js" in page


# Without Quarto

@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    out = tmp_path_factory.mktemp("preview")
    written, missing = slides.build_preview(LESSONS, out)
    return written, missing


def test_the_pages_load_nothing_from_elsewhere_and_describe_their_images(pages):
    for path, page in zip(LESSONS, pages[0]):
        text = page.read_text(encoding="utf-8")
        assert foreign_loads(text) == [] and text.count('<section class="slide">') == len(MADE[path.stem]) + 1
        assert text.count("<h2>") == len(MADE[path.stem]) and "#|" not in re.sub(r"<(code|pre).*?</\1>", "", text, flags=re.DOTALL)
        assert all(re.search(r'alt="[^"]{20,}"', image) for image in re.findall(r"<img [^>]*>", text))


OVERFLOW = """() => all.flatMap((slide, i) => {
  slide.style.display = "block"; slide.style.transform = "";
  const box = slide.getBoundingClientRect(), found = [], title = `${i + 1} ${slide.querySelector("h1, h2").textContent}`;
  if (slide.scrollHeight > slide.clientHeight) found.push(`${title}: ${slide.scrollHeight} px high`);
  for (const e of slide.querySelectorAll("p, li, pre, table, img, figcaption, svg")) {
    if (e.closest(".katex")) continue;
    const r = e.getBoundingClientRect();
    if (r.bottom > box.bottom - 10 || r.right > box.right - 10) found.push(`${title}: ${e.tagName} ends at ${Math.round(r.right - box.left)}, ${Math.round(r.bottom - box.top)}`);
    if (e.matches("p, li, pre, table") && !e.closest("svg") && parseFloat(getComputedStyle(e).fontSize) < 15) found.push(`${title}: small letters`);
  }
  for (const d of slide.querySelectorAll(".katex-display")) {
    const right = Math.max(...[...d.querySelectorAll(".katex-html > .base")].map(e => e.getBoundingClientRect().right)), tag = d.querySelector(".tag");
    if (right > (tag ? tag.getBoundingClientRect().left : box.right - 60)) found.push(`${title}: a formula runs into its number or the edge`);
  }
  slide.style.display = "";
  return found;
})"""


def test_no_slide_overflows_and_arrows_turn(pages):
    if pages[1]: pytest.skip(pages[1])
    found = []
    with browser() as chrome:
        tab = chrome.new_page(viewport=dict(width=slides.WIDTH, height=slides.HEIGHT))
        for page in pages[0]:
            tab.goto(page.as_uri())
            tab.wait_for_selector("body.one", state="attached")
            assert tab.locator(".slide:visible h1").count() == 1
            found += [f"{page.stem}: {line}" for line in tab.evaluate(OVERFLOW)]
        for key, number in (("ArrowRight", 2), (" ", 3), ("PageDown", 4), ("ArrowLeft", 3), ("Home", 1), ("End", len(MADE[LESSONS[-1].stem]) + 1)):
            tab.keyboard.press(key)
            tab.wait_for_function(f"() => document.querySelector('.slide.now .number').textContent === '{number}'")
        assert tab.locator(".katex-error").count() == 0
    assert not found, "\n".join(found)


# The rules

def test_the_short_form():
    assert slides.sentences("See (a. B) and $x. Y$ first. Then *this*. Done!") == ["See (a. B) and $x. Y$ first.", "Then *this*. Done!"]
    assert slides.sentences("Wang et al. (2017) asked. **Step 1.** For all rows we do. 5 remain.")[:2] == ["Wang et al. (2017) asked.", "**Step 1.** For all rows we do."]
    long = "This sentence is as long as a sentence should be."
    short = list(slides.brief(["## Title", f"{long} Second one goes. Here it is:", "$$x \\tag{1.1}$$", f"{long} And no more.", f"What is the whole of the question here? {long} No more.", "(An aside of some length.)", f"- **a**: {long} More.\n- b"]))
    assert short == ["## Title", f"{long} Here it is:", "$$x \\tag{1.1}$$", long, f"What is the whole of the question here? {long}", f"- **a**: {long}\n- b"]


def test_pieces_keep_together_what_belongs_together():
    assert slides.split_blocks("# T\n\na\nb\n\n$$\nx\n\ny\n$$\n\n```python\n1\n\n2\n```\n\n$$z$$") == ["# T", "a\nb", "$$\nx\n\ny\n$$", "```python\n1\n\n2\n```", "$$z$$"]
    para = slides.Block("text", "Words that announce:", 300)
    formula = slides.Block("text", "$$x$$", 200)
    made = list(slides.fitted(slides.Slide("T", [slides.Block("text", "Before.", 100), para, formula])))
    assert [s.title for s in made] == ["T", "T (2)"] and made[1].blocks == [para, formula]
    assert [b.text for s in slides.fitted(slides.Slide("T", slides.text_blocks("It was said before. Now the table:"))) for b in s.blocks] == ["It was said before."]


def test_texts_lose_what_only_a_page_needs():
    text = "See [05](05_fusion.ipynb) and [it](https://example.org), @vaswani2017, [@he2015] and @fig-one.\n\n<details><summary>Answer</summary>\n\n42\n\n</details>"
    assert slides.prose(text).strip() == "See 05 and [it](https://example.org), Vaswani et al. (2017), (He et al. 2015) and the figure."
    title, parts = slides.quote("> **What can go wrong.** *One*: a thing. *Two*: another. Still two.")
    assert title == "What can go wrong" and parts == ["- *One*: a thing.\n- *Two*: another. Still two."]
    assert slides.stacked("$$a = " + "x + "*60 + "1, \\qquad b = 2 \\tag{1.1}$$").endswith("b = 2 \\end{gathered} \\tag{1.1}$$")
    assert slides.stacked("$$a \\qquad b$$") == "$$a \\qquad b$$"


def test_what_quarto_gets_otherwise():
    assert slides.own_fonts("@import url(https://fonts.example.com/css?family=A:400,700);a{}@import 'own.css';") == "a{}@import 'own.css';"
    assert slides.own_fonts('@import"https://fonts.example.com/css";a{}') == "a{}"
    assert slides.table_columns("| a | b |\n|---|---|\n| 1 | 2 long words |") == "| a | b |\n|---|--------------|\n| 1 | 2 long words |"


def test_an_unknown_lesson_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["slides", "no_such"])
    with pytest.raises(SystemExit, match="no lesson is called no_such; there are 00_article, .*05_fusion"): slides.main()

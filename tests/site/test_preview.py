"The preview: pages without Quarto that link to one another, load nothing from elsewhere and fit a phone."
import re
from pathlib import Path

import pytest
from browsing import browser, sideways

from tools import notebooks, preview
from tools.site import foreign_loads

NAMES = ["index", "04_extractor", "05_fusion"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("preview")
    written, missing = preview.build(NAMES, out)
    assert written == ["index.html", "extractor.html", "fusion.html"]
    return out, missing


def read(folder): return {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.html")}


def test_links_lead_to_what_is_there(built):
    pages = read(built[0])
    ids = {name: set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    names = {notebooks.html_name(name) for _, names in preview.order() for name in names}
    checked = 0
    for name, text in pages.items():
        for to in re.findall(r'<a [^>]*?href="([^"]+)"', text):
            if re.match(r"[a-z]+:", to): continue
            path, _, anchor = to.partition("#")
            checked += 1
            assert not path or path in names or (built[0]/path).exists(), f"{name}: {to}"
            if anchor and (path or name) in pages: assert anchor in ids[path or name], f"{name}: {to}"
        for to in re.findall(r'<(?:img|script|link) [^>]*?(?:src|href)="([^"]+)"', text):
            assert to.startswith("data:") or (built[0]/to).exists(), f"{name}: {to}"
    assert checked > 50
    assert 'href="extractor.html"' in pages["fusion.html"] and "05_fusion.ipynb" not in pages["index.html"]


def test_no_other_host_is_loaded_from(built):
    for name, text in read(built[0]).items(): assert foreign_loads(text) == [], name
    for css in built[0].rglob("*.css"): assert not re.search(r"url\((?!data:)", css.read_text(encoding="utf-8")), css


def test_directives_figures_citations_and_titles(built):
    text = read(built[0])["fusion.html"]
    body = text[text.index("<main"):]
    assert "<h1>Fusing the scenarios</h1>" in body and body.count("<h1") == 1
    assert "#|" not in body and "show_doc" not in body and "test_eq, test_close" not in body
    assert "{target=" not in body and '<a class="source"' in body
    assert "Vaswani et al." in body and 'id="ref-vaswani2017"' in body and "@vaswani2017" not in body
    assert all(re.search(r'alt="[^"]{20,}"', img) for img in re.findall(r"<img [^>]*>", body))
    assert not re.search(r"</?style", body)
    assert 'class="mermaid"' in read(built[0])["extractor.html"]


def test_an_unknown_page_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no page is called 77_gone; there are index, 00_article"): preview.build(["77_gone"], tmp_path)


def test_without_node_the_pages_are_there_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(preview.shutil, "which", lambda name: None)
    written, missing = preview.build(["went_wrong"], tmp_path)
    assert "Node.js" in missing and "<table>" in (tmp_path/written[0]).read_text(encoding="utf-8")


def test_the_bibliography_is_read(tmp_path):
    path = tmp_path/"r.bib"
    path.write_text('@article{a1,\n  author = {J{\\"a}rvelin, Kalervo and {\\v{Z}}ak, Ann and {\\L}oe, Jo}, title = {The {IR} \\& so on}, volume = {20},\n'
                    "  number = {4}, journal = {J. of X}, pages = {1--9}, year = {2002}\n}\n\n@book{b2, author = {Roe, R.}, title = {B}, publisher = {P}, year = {1999}}\n", encoding="utf-8")
    found = preview.bibliography(path)
    assert found["a1"]["author"] == [["Järvelin", "Kalervo"], ["Žak", "Ann"], ["Łoe", "Jo"]] and found["a1"]["title"] == "The IR & so on"
    assert preview.reference("a1", found["a1"]) == '<p id="ref-a1">Järvelin, Kalervo, Ann Žak and Jo Łoe (2002). The IR &amp; so on. <em>J. of X</em> 20(4), 1–9.</p>'
    assert preview.reference("b2", found["b2"]) == '<p id="ref-b2">Roe, R. (1999). <em>B</em>. P.</p>'
    cite = preview.Citations(found, ["fig-x"])
    assert cite("as @b2 says") == 'as <a href="#ref-b2">Roe (1999)</a> says'
    assert cite("so [see @a1, p. 3; @b2].") == 'so (see <a href="#ref-a1">Järvelin et al. 2002</a>, p. 3; <a href="#ref-b2">Roe 1999</a>).'
    assert cite("`@b2` ndcg@10 a@b.org @gone") == "`@b2` ndcg@10 a@b.org @gone" and cite("@fig-x") == '<a href="#fig-x">Figure 1</a>'
    assert cite.cited == ["b2", "a1"]


def test_links_are_rewritten_to_the_names_of_the_site():
    cfg = dict(doc_host="https://x.org", doc_baseurl="/repo")
    for before, after in (("05_fusion.ipynb#a", "fusion.html#a"), ("went_wrong.md", "went_wrong.html"), ("https://x.org/repo/train.html#fit", "train.html#fit"),
                          ("https://y.org/a.ipynb", "https://y.org/a.ipynb"), ("#here", "#here"), ("images/a.png", "images/a.png")):
        assert preview.retarget(before, cfg) == after


def test_formulas_and_diagrams_are_drawn_and_a_phone_is_wide_enough(built):
    out, missing = built
    if missing: pytest.skip(missing)
    wrong = []
    with browser() as chrome:
        for scheme in ("light", "dark"):
            tab = chrome.new_page(viewport=dict(width=375, height=800), color_scheme=scheme)
            tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
            tab.on("pageerror", lambda err: wrong.append(str(err)))
            tab.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:", "blob:")) else None)
            for name in read(out):
                tab.goto((out/name).as_uri())
                if name == "extractor.html": tab.wait_for_selector("pre.mermaid svg")
                if name != "index.html": assert tab.locator(".katex").count() > 50, name
                assert tab.locator(".katex-error").count() == 0, name
                assert sideways(tab) <= 0, name
    assert not wrong, wrong


def test_every_page_of_the_sidebar_has_a_title():
    for _, names in preview.order():
        for name in names: assert notebooks.head(notebooks.NBS/name)[0].strip() and Path(name).suffix in {".ipynb", ".md", ".qmd"}

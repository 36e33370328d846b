"The preview: pages without Quarto that link to one another, load nothing from elsewhere and fit a phone."
import re
from pathlib import Path

import pytest
from browsing import browser, sideways
from shared import made_once

from tools import notebooks, preview, site

NAMES = ["index", "04_extractor", "05_fusion", "formulas"]
OWN = ("file:", "data:", "blob:")  # where a page may load from
FILES = ["index.html", "extractor.html", "fusion.html", "made/formulas.html"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out, (written, missing) = made_once(tmp_path_factory, "preview", lambda out: preview.build(NAMES, out))
    assert written == FILES
    return out, missing


def read(folder): return {name: (folder/name).read_text(encoding="utf-8") for name in FILES}


def made(text, drawn=True, *args, **variables):
    "A piece of Markdown as the preview shows it."
    page = preview.pandoc(text, "page.html", drawn, variables, *args)
    return page[page.index("</h1>") + 5:page.index('<nav class="turn"')].strip()


def test_links_lead_to_what_is_there(built):
    out, pages = built[0], read(built[0])
    ids = {(out/name).resolve(): set(re.findall(r'\bid="([^"]+)"', text)) for name, text in pages.items()}
    names = {(out/notebooks.html_name(n)).resolve() for _, section in site.pages_in_order() for n in section}
    checked = 0
    for name, text in pages.items():
        for to in re.findall(r'<a [^>]*?href="([^"]+)"', text):
            if re.match(r"[a-z]+:", to): continue
            path, _, anchor = to.partition("#")
            target = ((out/name).parent/path if path else out/name).resolve()
            checked += 1
            assert target in names or target.exists(), f"{name}: {to}"
            if anchor and target in ids: assert anchor in ids[target], f"{name}: {to}"
        for to in re.findall(r'<(?:img|script|link) [^>]*?(?:src|href)="([^"]+)"', text):
            assert ((out/name).parent/to).exists(), f"{name}: {to}"
    assert checked > 50
    assert 'href="extractor.html"' in pages["fusion.html"]
    assert 'href="../fusion.html"' in pages["made/formulas.html"]


def test_no_other_host_is_loaded_from(built):
    for name, text in read(built[0]).items(): assert site.foreign_loads(text) == [], name
    for css in built[0].rglob("*.css"):
        assert not re.search(r"url\((?!data:)", css.read_text(encoding="utf-8")), css


def test_directives_figures_citations_and_titles(built):
    text = read(built[0])["fusion.html"]
    body = text[text.index("<main"):]
    assert "<h1>Fusing the scenarios</h1>" in body and body.count("<h1") == 1
    assert "#|" not in body and "show_doc" not in body and "test_eq, test_close" not in body
    assert "{target=" not in body and ">source</a>" in body and ":::" not in body
    assert "Vaswani et al." in body and 'id="ref-vaswani2017"' in body and "@vaswani2017" not in body
    assert '<h2 id="references">References</h2>' in body and "Open in Colab</a>" in body
    assert all(re.search(r'alt="[^"]{20,}"', img) for img in re.findall(r"<img[^>]*>", body))
    assert not re.search(r"</?style", body)
    assert '<pre class="mermaid">' in read(built[0])["extractor.html"]


def test_figures_are_numbered_and_links_lead_to_the_names_of_the_site():
    pictures = [f'![{cap}](a.png){{#fig-{name} alt="{name}"}}' for name, cap in (("a", "One"), ("b", "Two"))]
    text = made("\n\n".join(["As @fig-b and @goldberg1991 say.", *pictures]), True, "--metadata=page")
    assert '<a href="#fig-b">Figure 2</a>' in text and '<figure id="fig-a">' in text
    assert "Figure 1: One" in text
    assert "Goldberg (1991)" in text and text.count('id="ref-') == 1 and 'alt="b"' in text
    home = "{doc_host}{doc_baseurl}/".format(**notebooks.settings())
    for before, after in (
            ("05_fusion.ipynb#a", "fusion.html#a"), ("made/went_wrong.md", "made/went_wrong.html"),
            ("../05_fusion.ipynb", "../fusion.html"), (f"{home}train.html#fit", "train.html#fit"),
            ("https://y.org/05_a.ipynb", "https://y.org/05_a.ipynb"), ("images/a.png", "images/a.png"),
            ("#here", "#here")):
        assert f'<a href="{after}"' in made(f"[x]({before})", True, "--metadata=page"), before


def test_cells_are_shown_as_their_options_say(tmp_path):
    def shown(source, **data):
        outs = [dict(output_type="display_data", data=data)] if data else []
        return preview.markdown(dict(cell_type="code", source=source, outputs=outs), tmp_path/"images"/"x")
    assert "print" in shown("#| echo: true\nprint(1)") and shown("#| echo: false\nprint(1)") == ""
    assert shown("#| include: false\nx", **{"text/plain": "1"}) == ""
    assert "7" in shown("x", **{"text/plain": "7"})
    assert "7" not in shown("#| output: false\nx", **{"text/plain": "7"})
    assert '<details class="code">' in shown("#| code-fold: true\nx")
    assert "<details" not in shown("#| code-fold: false\nx")
    assert "<summary>Why</summary>" in shown('#| code-fold: show\n#| code-summary: "Why"\nx')
    assert "<style" not in shown("x", **{"text/html": "<style>a{}</style><table></table>"})
    alt = "#| fig-alt: 'Say \"x\"'"
    picture = shown(f"#| label: fig-x\n#| fig-cap: 'A cap'\n{alt}\nplot()", **{"image/png": "eA=="})
    assert '{#fig-x alt="Say \\"x\\""}' in picture and (tmp_path/"images"/"x-0.png").read_bytes() == b"x"
    assert 'alt="Say &quot;x&quot;"' in made(picture)


def test_an_unknown_page_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no page is called 77_gone; the pages are index, 00_article"):
        preview.build(["77_gone"], tmp_path)


def test_without_node_formulas_are_mathml_with_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(preview.shutil, "which", lambda name: None)
    written, missing = preview.build(["went_wrong"], tmp_path)
    assert "Node.js" in missing and "<table>" in (tmp_path/written[0]).read_text(encoding="utf-8")
    text = made("$$\\frac{a}{b} \\tag{5.1}$$", False)
    assert "<math" in text and "<mfrac>" in text and "(5.1)" in text and "\\tag" not in text


def test_formulas_and_diagrams_are_drawn_and_a_phone_is_wide_enough(built):
    out, missing = built
    if missing: pytest.skip(missing)
    wrong = []
    with browser() as chrome:
        for scheme in ("light", "dark"):
            tab = chrome.new_page(viewport=dict(width=375, height=800), color_scheme=scheme)
            tab.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
            tab.on("pageerror", lambda err: wrong.append(str(err)))
            tab.on("request", lambda r: None if r.url.startswith(OWN) else wrong.append(r.url))
            for name, text in read(out).items():
                tab.goto((out/name).as_uri())
                if name == "extractor.html": tab.wait_for_selector("pre.mermaid svg")
                assert tab.locator(".katex").count() >= text.count('<span class="math'), name
                assert tab.locator(".katex-error").count() == 0, name
                assert sideways(tab) <= 0, name
    assert not wrong, wrong


def test_every_page_of_the_sidebar_has_a_title():
    for _, names in site.pages_in_order():
        for name in names:
            assert notebooks.head(notebooks.NBS/name)[0].strip()
            assert Path(name).suffix in {".ipynb", ".md", ".qmd"}

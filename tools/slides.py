"""A lecture of each lesson in _slides/: the slide types of its cells, Pandoc and reveal.js, no other host.

    python -m tools.slides              every lesson
    python -m tools.slides 05_fusion    this lesson alone
    python -m tools.slides --open       and show the first one in a browser

The types are Jupyter's own (in JupyterLab behind the gears at the right); `jupyter nbconvert --to slides` too
reads them:

    slide, subslide    the cell begins a slide
    fragment           it joins the slide before it when the speaker goes on
    notes              only the speaker sees it (key s)
    skip               the lecture goes without it
    - or none          it joins the slide before it

A heading is the title of a slide, also inside a cell; a slide without one takes the heading above it. Of a
code cell a slide shows the outputs, with the source folded above them; the source where there are none. What
is too long gets smaller letters, then a scroll bar.
"""
import argparse
import html
import re
import shutil
import webbrowser
from pathlib import Path

from tools import notebooks, preview

SLIDES = notebooks.ROOT/"_slides"


def lessons(): return [p for p in notebooks.paths("[0-9][0-9]_*.ipynb") if int(p.name[:2]) < 90]


def slide_type(cell): return cell["metadata"].get("slideshow", {}).get("slide_type") or "-"


def pieces(text):
    "A cell's Markdown, cut before each heading: (heading or None, text). The title of a box is a heading."
    code = re.compile(r"^(`{3,}).*?^\1`*$", re.DOTALL | re.MULTILINE)
    masked = code.sub(lambda m: "x" * len(m[0]), text)
    cuts = [0, *(m.start() for m in re.finditer(r"^#+ ", masked, flags=re.MULTILINE)), len(text)]
    for part in (text[a:b].strip() for a, b in zip(cuts, cuts[1:], strict=False)):
        box = re.match(r"> \*\*(.*?)\.?\*\* *", part)
        if m := re.match(r"#+ (.*)\n*", part): yield m[1], part[m.end():]
        elif box: yield box[1], re.sub(r"^> ?", "", part[box.end():], flags=re.MULTILINE)
        elif part: yield None, part


def code(cell, place):
    "What a slide shows of a code cell."
    keys, source = preview.options(cell["source"])
    source, outs = preview.fence(source, ".python"), list(filter(None, preview.outputs(cell, keys, place)))
    return "\n\n".join([preview.folded(source, "Code"), *outs] if outs else [source])


def slides(path, images):
    "A lesson's slides: (slide or subslide, title, [(type, Markdown), …]); pictures go into `images`."
    made, heading = [], ""
    for i, cell in enumerate(notebooks.read(path)["cells"]):
        kind = "skip" if i == 0 else slide_type(cell)  # the first cell is the lecture's title
        if cell["cell_type"] == "markdown": parts = list(pieces(cell["source"]))
        else: parts = [] if kind == "skip" else [(None, code(cell, images/f"{path.stem}-{i}"))]
        begins = kind if kind in ("slide", "subslide") else None
        for title, text in parts:
            if title and not cell["source"].startswith(">"): heading = title
            if kind == "skip" or not text: continue
            if begins or title or not made: made.append((begins or "subslide", title or heading, []))
            made[-1][2].append(("-" if begins or title else kind, text))
            begins = None
    return made


def source(made):
    "The slides as Pandoc's Markdown: what stands in one outer section are slides of one part of the lecture."
    lines = []
    for kind, title, parts in made:
        if lines and kind == "slide": lines += ["</section>", "<section>"]
        lines += ["<section>", f"## {title}", '<div class="body">']
        for kind, text in parts:
            if kind == "notes": text = f'<aside class="notes">\n\n{text}\n\n</aside>'
            lines.append(preview.div(text, ".fragment") if kind == "fragment" else text)
        lines += ["</div>", "</section>"]
    text = "\n\n".join(["<section>", *lines, "</section>"])
    return re.sub(r"^(```mermaid\n *graph) T[BD]\b", r"\1 LR", text, flags=re.MULTILINE)  # slides are wide


def build(paths, out=SLIDES):
    "Write the lectures; return their files and what could not be drawn."
    shutil.rmtree(out, ignore_errors=True)
    (out/"reveal").mkdir(parents=True)
    missing = ""
    try:
        reveal = preview.draw_tools(out)/"reveal.js"
        for name in ("dist/reveal.js", "dist/reveal.css", "plugin/notes/notes.js"):
            shutil.copy(reveal/name, out/"reveal")
    except OSError as err: missing = str(err)
    shutil.copy(preview.PANDOC/"slides.css", out)
    for path in paths:
        title, purpose = map(html.escape, notebooks.head(path))
        author = html.escape(notebooks.settings()["author"])
        variables = dict(title=title, description=purpose, author=author, drawn=not missing)
        text = preview.pandoc(source(slides(path, out/"images")), "slides.html", not missing, variables,
                              "--metadata=suppress-bibliography")
        (out/f"{path.stem}.html").write_text(text, encoding="utf-8", newline="\n")
    return [out/f"{path.stem}.html" for path in paths], missing


def main():
    "The command line."
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="lessons such as 05_fusion; no name: all")
    parser.add_argument("--open", action="store_true", help="show the first one in a browser")
    args = parser.parse_args()
    known = {path.stem: path for path in lessons()}
    names = [Path(name).stem for name in args.names] or list(known)
    if unknown := sorted(set(names) - set(known)):
        raise SystemExit(f"no lesson is called {', '.join(unknown)}; the lessons are {', '.join(known)}")
    written, missing = build([known[name] for name in names])
    if missing: print(f"The slides stand one under another, and diagrams are text: {missing}.")
    print(f"{len(written)} lectures in {SLIDES}: open {written[0]}")
    if args.open: webbrowser.open(written[0].as_uri())


if __name__ == "__main__":
    main()

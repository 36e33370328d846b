"""All pages as HTML in _preview/, without Quarto: what the site will say, on one plain style sheet.

    python -m tools.preview                 every page
    python -m tools.preview 05_fusion       this page alone, the others as they are
    python -m tools.preview --open          and show the first one in a browser

nbdev's stage before Quarto does the directives, the docs of the code and the links between them; Pandoc
does the rest, with the files of tools/pandoc. Formulas (KaTeX) and diagrams (Mermaid) are drawn by local
files that npm fetches once into a cache; without Node.js formulas are MathML and diagrams are text. No page
needs another host.
"""
import argparse
import base64
import hashlib
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
import webbrowser
from pathlib import Path

import pypandoc
import yaml

from tools import notebooks
from tools.site import complete, pages_in_order

PREVIEW = notebooks.ROOT/"_preview"
JS, PANDOC = (notebooks.ROOT/"tools"/name for name in ("js", "pandoc"))
OUTSIDE = ("404.md",)  # pages that no sidebar names


def run(command, **more):
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace",
                          timeout=600, **more)


# Tools of JavaScript

def js_folder():
    """The folder of tools/js with its packages: in the user's cache, one for each state of tools/js.

    Raises: `OSError` that says what is missing.
    """
    npm = shutil.which("npm")
    if not npm or not shutil.which("node"):
        raise OSError("Node.js with npm is not installed (https://nodejs.org)")
    files = sorted(p for p in JS.iterdir() if p.suffix in {".json", ".mjs"})
    state = b"".join(p.name.encode() + p.read_bytes().replace(b"\r\n", b"\n") for p in files)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home()/".cache")/"multiscene_rec"
    folder = cache/f"js-{hashlib.sha256(state).hexdigest()[:12]}"
    if folder.exists(): return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temp:
        for path in files: shutil.copy(path, temp)
        done = run([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"], cwd=temp)
        error = (done.stderr or done.stdout).strip()[-300:]
        if done.returncode: raise OSError(f"npm could not fetch the packages of tools/js: {error}")
        # Another process may have been quicker: its folder is the same.
        try: Path(temp).rename(folder)
        except OSError:
            if not folder.exists(): raise
        else: Path(temp).mkdir()  # for the with block to remove
    return folder


def draw_tools(folder):
    "Put KaTeX and Mermaid into the folder; return where the packages are."
    packages = js_folder()/"node_modules"
    katex, out = packages/"katex"/"dist", folder/"katex"
    out.mkdir(parents=True, exist_ok=True)
    # The fonts stand inside the style sheet: a page opened as a file may not load them.
    font = lambda m: f"src:url(data:font/woff2;base64,{base64.b64encode((katex/m[1]).read_bytes()).decode()})"
    css = (katex/"katex.min.css").read_text(encoding="utf-8")
    css = re.sub(r"src:url\((fonts/[\w-]+\.woff2)\)[^;}]*", font, css)
    (out/"katex.min.css").write_text(css, encoding="utf-8")
    shutil.copy(katex/"katex.min.js", out)
    shutil.copy(packages/"mermaid"/"dist"/"mermaid.min.js", folder)
    return packages


# nbdev's stage

_PROCESS = """
import nbdev.quarto, nbdev.serve
if __name__ == "__main__":
    nbdev.quarto.refresh_quarto_yml()
    nbdev.serve.proc_nbs(n_workers=2, force=True)
"""


def process(folder, names=None):
    "Run what nbdev does before Quarto on a copy of the project in `folder`; return where the pages are."
    folder, lib = Path(folder), notebooks.settings()["lib_name"]
    (folder/"nbs").mkdir(parents=True)
    for path in notebooks.NBS.iterdir():
        draft = path.name[0] == "." or (path.suffix == ".ipynb" and path.name[0] == "_")
        wanted = names is None or path.suffix not in {".ipynb", ".md", ".qmd"} or path.stem in names
        if path.is_file() and wanted and not draft: shutil.copy(path, folder/"nbs")
    shutil.copy(notebooks.ROOT/"settings.ini", folder)
    shutil.copytree(notebooks.ROOT/lib, folder/lib, ignore=shutil.ignore_patterns("__pycache__"))
    (folder/"process.py").write_text(_PROCESS, encoding="utf-8")
    done = run([sys.executable, "process.py"], cwd=folder, env=notebooks.child_env())
    error = done.stdout[-2000:] + done.stderr[-4000:]
    if done.returncode: raise RuntimeError(f"nbdev could not process the notebooks:\n{error}")
    complete(folder/"_proc")
    return folder/"_proc"


# From cells to Pandoc's Markdown

def front_matter(text):
    "The YAML block at the beginning, as a dictionary, and the text after it."
    m = re.match(r"---\n(.*?)\n---\s*(?:\n|$)", text, flags=re.DOTALL)
    return (yaml.safe_load(m[1]) or {}, text[m.end():]) if m else ({}, text)


def options(source):
    "Quarto's `#| key: value` lines of a cell as a dictionary, and the source without any `#|` line."
    lines = re.findall(r"^#\|\s*([\w-]+:.*)$", source, flags=re.MULTILINE)
    rest = re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip("\n")
    return (yaml.safe_load("\n".join(lines)) or {} if lines else {}), rest


def mermaid(text): return re.sub(r"^(\s*`{3,})\{mermaid\}", r"\1mermaid", text, flags=re.MULTILINE)


def fence(text, kind):
    "The text as a block of code, or of raw HTML."
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{ticks} {{{kind}}}\n{text}\n{ticks}"


def div(text, kind): return f"::::: {{{kind}}}\n{text}\n:::::"


def folded(text, summary, is_open=False):
    opening = '<details class="code" open>' if is_open else '<details class="code">'
    return f"{opening}\n<summary>{html.escape(summary)}</summary>\n\n{text}\n\n</details>"


def picture(data, kind, keys, place):
    "Keep a picture as the file `place` plus its ending, and show it with caption and alternative text."
    file = place.with_suffix("." + kind.removeprefix("image/").removesuffix("+xml"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if "svg" in kind else base64.b64decode(data))
    alt, caption = (" ".join(str(keys.get(key, "")).split()) for key in ("fig-alt", "fig-cap"))
    alt = alt.replace("\\", r"\\").replace('"', r"\"")
    label = f"#{keys['label']} " if str(keys.get("label", "")).startswith("fig-") else ""
    return f'![{caption}]({file.parent.name}/{file.name}){{{label}alt="{alt}"}}'


def output(out, keys, place):
    "One output of a code cell."
    data = out.get("data") or {"text/plain": out.get("text") or "\n".join(out.get("traceback", ()))}
    for kind in ("image/svg+xml", "image/png", "image/jpeg"):
        if kind in data: return picture(data[kind], kind, keys, place)
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
        return div(fence(table, "=html"), ".output .scroll")
    if "text/markdown" in data:
        return div(data["text/markdown"], ".doc" if keys.get("output") == "asis" else ".output")
    text = re.sub(r"\x1b\[[0-9;]*m", "", data.get("text/plain", "")).rstrip()
    return fence(text, ".output") if text else ""


def outputs(cell, keys, place):
    outs = cell.get("outputs", ())
    return [output(out, keys, place.with_name(f"{place.name}-{i}")) for i, out in enumerate(outs)]


def markdown(cell, place):
    "A cell as Pandoc's Markdown, as far as its options show it; pictures become files named after `place`."
    if cell["cell_type"] == "markdown": return mermaid(cell["source"])
    keys, source = options(cell["source"])
    if cell["cell_type"] == "raw" or keys.get("include") is False: return ""
    parts = [fence(source, ".python")] if source and keys.get("echo") is not False else []
    if parts and keys.get("code-fold"):
        parts = [folded(parts[0], keys.get("code-summary", "Code"), keys["code-fold"] == "show")]
    return "\n\n".join(parts + (outputs(cell, keys, place) if keys.get("output") is not False else []))


def pandoc(text, template, drawn, variables, *args, root=""):
    "Markdown as a page of HTML, by the files of tools/pandoc; `root` leads to the first folder."
    home = "{doc_host}{doc_baseurl}/".format(**notebooks.settings())
    args = [f"--template={PANDOC/template}", f"--lua-filter={PANDOC/'filter.lua'}", f"--metadata=home:{home}",
            f"--metadata=root:{root}", f"--variable=root={root}",
            "--citeproc", f"--bibliography={notebooks.NBS/'references.bib'}", "--metadata=lang:en-GB", *args,
            *([f"--katex={root}katex/"] if drawn else ["--mathml", "--metadata=mathml"]),
            *(f"--variable={key}={value}" for key, value in variables.items() if value)]
    if drawn and re.search(r"^\s*`{3,}mermaid", text, flags=re.MULTILINE): args.append("--variable=diagrams")
    return pypandoc.convert_text(text, "html5", format="markdown", extra_args=args)


# Pages

def link(name, built, root, form="{}", attribute=""):
    "A link to the page with its title; the title alone where the page is not built."
    text = form.format(html.escape(notebooks.head(notebooks.NBS/name)[0]))
    if name not in built: return f"<span>{text}</span>"
    return f'<a href="{root}{notebooks.html_name(name)}"{attribute}>{text}</a>'


def navigation(here, built, root):
    "The list of all pages."
    lines = []
    for heading, names in pages_in_order():
        if heading: lines.append(f"<p>{html.escape(heading)}</p>")
        numbers = [re.match(r"\d*", name)[0] for name in names]
        links = [link(name, built, root, f"{number} {{}}".strip(), ' aria-current="page"' * (name == here))
                 for name, number in zip(names, numbers, strict=True)]
        lines += ["<ul>", *(f"<li>{text}</li>" for text in links), "</ul>"]
    return "\n".join(lines)


def turn(here, pages, built, root):
    "Links to the page before and the page after."
    if here not in pages: return ""
    at = pages.index(here)
    before = link(pages[at - 1], built, root, "← {}", ' rel="prev"') if at else "<span></span>"
    return before + (link(pages[at + 1], built, root, "{} →", ' rel="next"') if at + 1 < len(pages) else "")


def page(path, out, drawn, variables, root):
    "The HTML of a processed page."
    if path.suffix == ".ipynb":
        cells = notebooks.read(path)["cells"]
        head = front_matter(cells[0]["source"])[0] if cells[0]["cell_type"] == "raw" else {}
        text = "\n\n".join(markdown(cell, out/"images"/f"{path.stem}-{i}") for i, cell in enumerate(cells))
    else:
        head, text = front_matter(path.read_text(encoding="utf-8"))
        text = mermaid(text)
    variables |= {key: html.escape(head.get(key, "")) for key in ("title", "description")}
    links = head.get("other-links", ())
    variables["links"] = " · ".join(f'<a href="{html.escape(x["href"])}">{x["text"]}</a>' for x in links)
    contents = ["--toc", "--toc-depth=2"] if len(re.findall(r"^## ", text, flags=re.MULTILINE)) > 2 else []
    args = ["--metadata=link-citations", "--metadata=page", *contents]
    return pandoc(text, "page.html", drawn, variables, *args, root=root)


def build(names=None, out=PREVIEW):
    "Write the pages (all, or those named); return the names of their files and what could not be drawn."
    pages = [name for _, section in pages_in_order() for name in section]
    known = {Path(name).stem: name for name in (*pages, *OUTSIDE)}
    if unknown := sorted(set(names or ()) - set(known)):
        raise SystemExit(f"no page is called {', '.join(unknown)}; the pages are {', '.join(known)}")
    wanted = [name for stem, name in known.items() if names is None or stem in names]
    out.mkdir(parents=True, exist_ok=True)
    missing = ""
    try: draw_tools(out)
    except OSError as err: missing = str(err)
    shutil.copy(PANDOC/"page.css", out)
    with tempfile.TemporaryDirectory() as temp:
        proc = process(Path(temp)/"project", names and {Path(name).stem for name in wanted})
        shutil.copytree(proc/"images", out/"images", dirs_exist_ok=True)
        built = {name for name in pages if name in wanted or (out/notebooks.html_name(name)).exists()}
        for name in wanted:
            file, root = out/notebooks.html_name(name), "../" * name.count("/")
            variables = dict(nav=navigation(name, built, root), turn=turn(name, pages, built, root),
                             site=html.escape(notebooks.settings()["title"]))
            file.parent.mkdir(exist_ok=True)
            text = page(proc/name, out, not missing, variables, root)
            file.write_text(text, encoding="utf-8", newline="\n")
    return [notebooks.html_name(name) for name in wanted], missing


def main():
    "The command line."
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="pages such as 05_fusion; no name: all")
    parser.add_argument("--open", action="store_true", help="show the first page in a browser")
    args = parser.parse_args()
    written, missing = build([Path(n).stem for n in args.names] or None)
    if missing: print(f"Formulas are MathML and diagrams are text: {missing}.")
    print(f"{len(written)} pages in {PREVIEW}: open {PREVIEW/written[0]}")
    if args.open: webbrowser.open((PREVIEW/written[0]).as_uri())


if __name__ == "__main__":
    main()

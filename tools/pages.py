"""Pages of the site that are made from the repository, so that they cannot go out of date.

    python -m tools.pages          write them into nbs/
    python -m tools.pages --check  only say whether they are in step
"""
import argparse
import ast
import re
import sys

from tools import notebooks

AREAS = ("your log", "the command", "training", "files", "lists")
_HEAD = "<!-- Made by tools/pages.py from {}: make export writes it. -->\n"


def wrong_marks(folder=notebooks.ROOT/"tests"):
    "Every @pytest.mark.wrong(message, cause=, remedy=, area=) of the tests, with the test that proves it."
    found = []
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for mark in getattr(node, "decorator_list", ()):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) in ("pytest.mark.wrong", "wrong"):
                    said = {k.arg: ast.literal_eval(k.value) for k in mark.keywords}
                    found.append(dict(message=ast.literal_eval(mark.args[0]), test=f"{path.name}::{node.name}", **said))
    return list({m["message"]: m for m in reversed(found)}.values())[::-1]  # one message may be read by several tests


def _cell(text): return re.sub(r"(?<![\w-])(--[a-z][a-z-]*)", r"`\1`", text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*"))


def went_wrong():
    "The page of messages: one table an area."
    marks = wrong_marks()
    lines = ["---", 'title: "What went wrong?"', 'description: "Every message that a user can meet, where it comes from and what to do."', "---", "",
             _HEAD.format("the marks of the tests"),
             "A message is one line: it names the file, the column, the row or the folder, and what to do. Three dots stand for what varies. "
             "Nothing on this page is written by hand twice: each line belongs to a test that provokes the message and reads it.", "",
             "`--debug` after any command adds the traceback.", ""]
    for area in AREAS:
        rows = sorted((m for m in marks if m["area"] == area), key=lambda m: m["message"].lstrip("…. ").lower())
        if not rows: continue
        lines += [f"## {area[0].upper()}{area[1:]}", "", "| message | cause | remedy |", "|---|---|---|"]
        lines += [f"| {_cell(m['message'])} | {_cell(m['cause'])} | {_cell(m['remedy'])} |" for m in rows]
        lines.append("")
    return "\n".join(lines)


PAGES = {"went_wrong.md": went_wrong}


def write(check=False):
    "Bring the pages in step; return the names of those that were not."
    behind = []
    for name, make in PAGES.items():
        path, text = notebooks.NBS/name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text: continue
        behind.append(name)
        if not check: path.write_text(text, encoding="utf-8", newline="\n")
    return behind


def main():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of step")
    behind = write(parser.parse_args().check)
    if behind and "--check" in sys.argv: sys.exit(f"out of step with the repository: {', '.join(behind)}; run make export")


if __name__ == "__main__":
    main()

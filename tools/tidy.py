"""Take out of stored outputs what changes without the notebook changing; tools/export.py does it.

- `show_doc` stores a link to a line of the source, with the owner's name in it. The site makes its own when
  it is built; in JupyterLab the stored one shows as raw text, and in a fork it points to another repository.
- Prints of one cell arrive as one or several pieces, as the machine's load has it.
- A widget (sliders, a progress bar) stores a view with a random id, which the site would answer with a script
  from another host and JupyterLab with an empty box, and its state beside the cells. All outputs of its cell
  go: what it drew stands beside it twice. A still picture is stored by a cell of its own.
- A cell without a slide type would join the slide before it: in a lecture it is left out until it has one.
"""
import re

LINK = re.compile(r"\[source\]\(\S+\)\{[^}]*\}\n\n")
WIDGET = "application/vnd.jupyter.widget-view+json"


def joined(outputs):
    "The outputs with neighbouring pieces of one stream put together."
    out = []
    for o in outputs:
        last = out[-1] if out else {}
        if o["output_type"] == "stream" == last.get("output_type") and o["name"] == last["name"]:
            last["text"] = ("".join(last["text"]) + "".join(o["text"])).splitlines(keepends=True)
        else: out.append(o)
    return out


def tidy(nb):
    "The notebook, changed in place."
    nb["metadata"].pop("widgets", None)
    lecture = any("slideshow" in cell.get("metadata", {}) for cell in nb["cells"])
    for cell in nb["cells"]:
        if lecture: cell["metadata"].setdefault("slideshow", {"slide_type": "skip"})
        if cell["cell_type"] != "code": continue
        if any(WIDGET in o.get("data", {}) for o in cell["outputs"]): cell["outputs"] = []
        cell["outputs"] = joined(cell["outputs"])
        for o in cell["outputs"]:
            text = "".join(o.get("data", {}).get("text/markdown", ""))
            if LINK.search(text): o["data"]["text/markdown"] = LINK.sub("", text).splitlines(keepends=True)
    return nb


def bare(nb):
    "An exercise's source without outputs, which would give the answer away; changed in place."
    for cell in nb["cells"]:
        if cell["cell_type"] == "code": cell["outputs"], cell["execution_count"] = [], None
    nb["metadata"] = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    return nb

"Where the notebooks are and how their cells are read; shared by the tools and the tests."
import json
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT/"nbs"


def paths(pattern="*.ipynb"):
    "The notebooks in teaching order; names that start with _ or . are drafts."
    return sorted(p for p in NBS.glob(pattern) if p.name[0] not in "_.")


def read(path):
    "The notebook as a dictionary, each cell's source and each output's text joined to one string."
    nb = json.loads(Path(path).read_text(encoding="utf-8"))
    for cell in nb["cells"]:
        cell["source"] = "".join(cell["source"])
        for out in cell.get("outputs", ()):
            if "text" in out: out["text"] = "".join(out["text"])
            for kind, data in out.get("data", {}).items():
                if isinstance(data, list): out["data"][kind] = "".join(data)
    return nb


def text(nb):
    "The text of a notebook's file, as nbdev and JupyterLab write it."
    return json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def head(path):
    "(title, one-line purpose) of a page, notebook or Markdown."
    if Path(path).suffix == ".ipynb":
        first = read(path)["cells"][0]["source"]
        return tuple(re.search(rf"^{mark} (.*)$", first, re.MULTILINE)[1].strip() for mark in "#>")
    front = Path(path).read_text(encoding="utf-8")
    return tuple(re.search(rf'^{key}: "(.*)"$', front, re.MULTILINE)[1] for key in ("title", "description"))


def html_name(name):
    "The site's name for a page of nbs/, by its path from there: nbdev leaves out the number."
    path = Path(name)
    stem = re.sub(r"^\d+[a-zA-Z]?_", "", path.stem) if path.suffix == ".ipynb" else path.stem
    return path.with_name(f"{stem}.html").as_posix()


def settings():
    "settings.ini as a dictionary, with its %(...)s filled in."
    import configparser
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def child_env(**more):
    """The environment for a child process: one thread, the root importable, no IN_TEST.

    nbdev's notebook runner sets IN_TEST, and a later nbdev_export would then silently skip `_modidx.py`.
    """
    env = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    env.update({key: "1" for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")})
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
    env["PYTHONIOENCODING"] = "utf-8"
    return {**env, **more}

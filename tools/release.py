"""What a release needs: CITATION.cff, and the checks of the list in CONTRIBUTING.md that a program can do.

    python -m tools.release   say what stands in the way of a release from this checkout
"""
import re
import subprocess
import sys

import yaml

from tools import badges, notebooks

CITATION = notebooks.ROOT/"CITATION.cff"
_HEAD = re.compile(r"^## (\d+\.\d+\.\d+) – (unreleased|\d{4}-\d\d-\d\d)$", re.MULTILINE)
_NOTE = "# Made from settings.ini and CHANGELOG.md by tools/release.py: make export writes it.\n"


def changes(text=None):
    "Version -> date, or 'unreleased', of CHANGELOG.md."
    return dict(_HEAD.findall((notebooks.ROOT/"CHANGELOG.md").read_text(encoding="utf-8") if text is None
                              else text))


def citation(cfg=None, dates=None):
    "The text of CITATION.cff, from settings.ini and the date in CHANGELOG.md."
    cfg, dates = cfg or notebooks.settings(), changes() if dates is None else dates
    entry = {"cff-version": "1.2.0",
             "message": "If you use this course or its library, please cite it as below.",
             "type": "software",
             "title": f"{cfg['title']}: a course and a library on multi-scenario recommendation",
             "abstract": f"{cfg['description']}.", "version": cfg["version"],
             "authors": [{"name": cfg["author"]}],
             "license": "Apache-2.0", "repository-code": cfg["git_url"],
             "url": f"{cfg['doc_host']}{cfg['doc_baseurl']}",
             "keywords": cfg["keywords"].split()}
    date = dates.get(cfg["version"], "unreleased")
    if date != "unreleased": entry["date-released"] = date
    return _NOTE + yaml.safe_dump(entry, sort_keys=False, allow_unicode=True, width=120)


def _git(*args):
    return subprocess.run(["git", *args], cwd=notebooks.ROOT, capture_output=True, text=True,
                          check=True).stdout.strip()


def obstacles():
    "What stands in the way of a release, one line each."
    from tools import export
    cfg = notebooks.settings()
    version, dates, tag = cfg["version"], changes(), badges.tag(cfg)
    if not dates or next(iter(dates)) != version:
        yield f"CHANGELOG.md must begin with ## {version} – and the date of the release"
    elif dates[version] == "unreleased":
        yield f"CHANGELOG.md: put the date in place of 'unreleased' after {version}"
    if tag in _git("tag").split():
        yield f"the tag {tag} exists: raise the version in settings.ini, then make export"
    if _git("branch", "--show-current") != cfg["branch"]: yield f"this is not the branch {cfg['branch']}"
    if changed := [line.split(maxsplit=1)[1] for line in _git("status", "--porcelain").splitlines()]:
        yield f"not committed: {', '.join(changed[:5])}{' …'*(len(changed) > 5)}"
    yield from export.check()


if __name__ == "__main__":
    if found := list(obstacles()): sys.exit("\n".join(found))
    print(f"Ready. Now: git tag {badges.tag(notebooks.settings())} && git push --tags")

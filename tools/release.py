"""What a release needs: CITATION.cff, and the checks of the list in CONTRIBUTING.md that a program can do.

    python -m tools.release           write CITATION.cff (a part of make export)
    python -m tools.release --check   say what stands in the way of a release from this checkout
"""
import argparse
import re
import subprocess
import sys

import yaml

from tools import badges, notebooks

CITATION = notebooks.ROOT/"CITATION.cff"
_HEAD = re.compile(r"^## (\d+\.\d+\.\d+) – (unreleased|\d{4}-\d\d-\d\d)$", re.MULTILINE)


def changes(text=None):
    "Version -> date, or 'unreleased', of CHANGELOG.md."
    return dict(_HEAD.findall((notebooks.ROOT/"CHANGELOG.md").read_text(encoding="utf-8") if text is None else text))


def citation(cfg=None, dates=None):
    "The text of CITATION.cff, from settings.ini and the date in CHANGELOG.md."
    cfg, dates = cfg or notebooks.settings(), changes() if dates is None else dates
    said = {"cff-version": "1.2.0", "message": "If you use this course or its library, please cite it as below.", "type": "software",
            "title": f"{cfg['title']}: a course and a library on multi-scenario recommendation", "abstract": f"{cfg['description']}.", "version": cfg["version"],
            "authors": [{"name": cfg["author"]}], "license": "Apache-2.0", "repository-code": cfg["git_url"], "url": f"{cfg['doc_host']}{cfg['doc_baseurl']}",
            "keywords": cfg["keywords"].split()}
    date = dates.get(cfg["version"], "unreleased")
    if date != "unreleased": said["date-released"] = date
    return "# Made from settings.ini and CHANGELOG.md by tools/release.py: make export writes it.\n" + yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=120)


def _git(*args):
    return subprocess.run(["git", *args], cwd=notebooks.ROOT, capture_output=True, text=True, check=True).stdout.strip()


def obstacles():
    "What stands in the way of a release, one line each."
    from tools import pages, readme, site
    cfg = notebooks.settings()
    version, dates = cfg["version"], changes()
    if not dates or next(iter(dates)) != version: yield f"CHANGELOG.md must begin with ## {version} – and the date of the release"
    elif dates[version] == "unreleased": yield f"CHANGELOG.md: put the date in place of 'unreleased' behind {version}"
    if badges.tag(cfg) in _git("tag").split(): yield f"the tag {badges.tag(cfg)} is there already: raise the version in settings.ini, then make export"
    if _git("branch", "--show-current") != cfg["branch"]: yield f"this is not the branch {cfg['branch']}"
    if changed := _git("status", "--porcelain"): yield f"not committed: {', '.join(line[3:].strip() for line in changed.splitlines()[:5])}{' …'*(changed.count(chr(10)) > 4)}"
    behind = badges.write(check=True) + pages.write(check=True)
    behind += [name for name, ok in (("README.md", readme.README.read_text(encoding="utf-8") == readme.render()), ("_quarto.yml", site.write_sidebar(check=True)),
                                     ("CITATION.cff", CITATION.read_text(encoding="utf-8") == citation())) if not ok]
    if behind: yield f"out of step: {', '.join(behind)}; run make export"


def main():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something stands in the way")
    if not parser.parse_args().check: return CITATION.write_text(citation(), encoding="utf-8", newline="\n")
    if found := list(obstacles()): sys.exit("\n".join(found))
    print(f"Ready. Now: git tag {badges.tag(notebooks.settings())} && git push --tags")


if __name__ == "__main__":
    main()

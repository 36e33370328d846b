"CITATION.cff is true, and the check before a release sees what stands in the way."
import re

import yaml

from tools import export, notebooks, release

CFG = notebooks.settings()


def test_citation_is_complete():
    entry = yaml.safe_load(release.citation())
    assert {"cff-version", "message", "title", "authors", "version", "license",
            "repository-code"} <= entry.keys()
    assert entry["version"] == CFG["version"] and entry["repository-code"] == CFG["git_url"]
    assert entry["license"] == "Apache-2.0" and CFG["license"] == "apache2"


def test_the_date_of_a_release_comes_from_the_changes():
    dates = release.changes("# Changes\n\n## 0.2.0 – 2027-01-31\n\n- x\n\n## 0.1.0 – unreleased\n")
    assert dates == {"0.2.0": "2027-01-31", "0.1.0": "unreleased"}
    assert str(yaml.safe_load(release.citation({**CFG, "version": "0.2.0"},
                                               dates))["date-released"]) == "2027-01-31"
    assert "date-released" not in release.citation({**CFG, "version": "0.1.0"}, dates)


def test_the_changes_begin_with_this_version():
    assert next(iter(release.changes())) == CFG["version"]


def test_each_obstacle_is_named(monkeypatch):
    state = dict(tag="", branch=CFG["branch"], status="")
    monkeypatch.setattr(release, "_git", lambda what, *rest: state[what])
    monkeypatch.setattr(release, "changes", lambda text=None: {CFG["version"]: "2027-01-31"})
    monkeypatch.setattr(export, "check", lambda: [])
    assert list(release.obstacles()) == []
    for change, says in ((dict(tag=f"v{CFG['version']}"), "raise the version"),
                         (dict(branch="other"), "not the branch"),
                         (dict(status=" M x"), "not committed: x")):
        before = dict(state)
        state.update(change)
        found, = release.obstacles()
        assert says in found
        state.update(before)
    monkeypatch.setattr(export, "check", lambda: ["README.md is out of step"])
    assert "README.md" in next(release.obstacles())
    monkeypatch.setattr(release, "changes", lambda text=None: {CFG["version"]: "unreleased"})
    assert "put the date" in next(release.obstacles())
    monkeypatch.setattr(release, "changes", lambda text=None: {"9.9.9": "unreleased"})
    assert re.search(r"must begin with ## \d", next(release.obstacles()))

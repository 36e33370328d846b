"CITATION.cff is true, and the check before a release sees what stands in the way."
import re

import yaml

from tools import notebooks, readme, release

CFG = notebooks.settings()


def test_citation_is_in_step_and_complete():
    text = release.CITATION.read_text(encoding="utf-8")
    assert text == release.citation(), "run make export"
    said = yaml.safe_load(text)
    assert {"cff-version", "message", "title", "authors", "version", "license", "repository-code"} <= said.keys()
    assert said["version"] == CFG["version"] and said["repository-code"] == CFG["git_url"] and said["license"] == "Apache-2.0"
    assert str(CFG["license"]) == "apache2"


def test_the_date_of_a_release_comes_from_the_changes():
    dates = release.changes("# Changes\n\n## 0.2.0 – 2027-01-31\n\n- x\n\n## 0.1.0 – unreleased\n")
    assert dates == {"0.2.0": "2027-01-31", "0.1.0": "unreleased"}
    assert str(yaml.safe_load(release.citation({**CFG, "version": "0.2.0"}, dates))["date-released"]) == "2027-01-31"
    assert "date-released" not in release.citation({**CFG, "version": "0.1.0"}, dates)


def test_the_changes_begin_with_this_version():
    assert next(iter(release.changes())) == CFG["version"]


def test_each_obstacle_is_named(monkeypatch):
    state = dict(tag="", branch=CFG["branch"], status="")
    monkeypatch.setattr(release, "_git", lambda what, *rest: state[what])
    monkeypatch.setattr(release, "changes", lambda text=None: {CFG["version"]: "2027-01-31"})
    step = [line for line in release.obstacles()]
    assert step == ["out of step: CITATION.cff; run make export"]  # it has no date yet
    monkeypatch.setattr(release, "citation", lambda: release.CITATION.read_text(encoding="utf-8"))
    assert list(release.obstacles()) == []
    for change, says in ((dict(tag=f"v{CFG['version']}"), "raise the version"), (dict(branch="other"), "not the branch"), (dict(status=" M x"), "not committed: x")):
        before = dict(state)
        state.update(change)
        found, = release.obstacles()
        assert says in found
        state.update(before)
    monkeypatch.setattr(readme, "render", lambda: "another")
    assert "README.md" in next(release.obstacles())
    monkeypatch.setattr(release, "changes", lambda text=None: {CFG["version"]: "unreleased"})
    assert "put the date" in next(release.obstacles())
    monkeypatch.setattr(release, "changes", lambda text=None: {"9.9.9": "unreleased"})
    assert re.search(r"must begin with ## \d", next(release.obstacles()))

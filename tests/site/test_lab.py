"""make lab, in a browser, as a reader meets it: home page, notebooks that run, sliders, answers, exercises.

The server is started by the Makefile's own line on a copy of the notebooks and exercises, and with settings
of its own: nothing that is saved reaches the checkout or the user's JupyterLab.
"""
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import namedtuple
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browsing import browser

from tools import exercises, notebooks

UNIX = shutil.which("make") is not None and sys.platform != "win32"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not UNIX, reason="needs make and a Unix shell")]
ROOT = notebooks.ROOT
# Else it asks about news, and asks another host.
SETTINGS = {"notification": dict(fetchNews="false", checkForUpdates=False)}
SECOND = 1000  # Playwright counts in milliseconds
EXERCISE = next(e for e in exercises.sources() if e.name == "05a_distance")
PICTURES = os.environ.get("MULTISCENE_PICTURES")  # a folder: what the browser showed is kept there

Lab = namedtuple("Lab", "folder opened host token")


# The server

def copied(folder):
    "What make lab shows and runs."
    made = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "release", "submitted", "autograded",
                                  "feedback",
                                  "gradebook.db")
    for name in ("nbs", "exercises", "tools", "multiscene_rec"): shutil.copytree(ROOT/name, folder/name,
                                                                                 ignore=made)
    for name in ("Makefile", "settings.ini"): shutil.copy(ROOT/name, folder)
    return folder


def own_jupyter(home):
    "The environment of a JupyterLab never opened before; its browser is a script that keeps the address."
    settings = home/"settings"/"@jupyterlab"/"apputils-extension"
    settings.mkdir(parents=True)
    for name, values in SETTINGS.items():
        (settings/f"{name}.jupyterlab-settings").write_text(json.dumps(values), encoding="utf-8")
    opener = home/"opener"
    opener.write_text('#!/bin/sh\nprintf %s "$1" > "$0.part" && mv "$0.part" "$0.said"\n', encoding="utf-8")
    opener.chmod(0o755)
    folders = dict(JUPYTER_CONFIG_DIR="config", JUPYTER_DATA_DIR="data", JUPYTER_RUNTIME_DIR="runtime",
                   IPYTHONDIR="ipython", JUPYTERLAB_SETTINGS_DIR="settings",
                   JUPYTERLAB_WORKSPACES_DIR="workspaces")
    env = {key: str(home/name) for key, name in folders.items()}
    return env | dict(JUPYTER_PREFER_ENV_PATH="1", BROWSER=f"{opener} %s")


def stop(server, runtime):
    "The end of JupyterLab, which ends its kernels first, and with it of make."
    for path in runtime.glob("jpserver-*.json"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(path.read_text(encoding="utf-8"))["pid"], signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired): server.wait(20)
    with contextlib.suppress(ProcessLookupError): os.killpg(server.pid, signal.SIGKILL)
    server.wait(10)


@pytest.fixture(scope="module")
def chrome():
    with browser() as chrome: yield chrome


@pytest.fixture(scope="module")
def lab(chrome, tmp_path_factory):
    "make lab on a copy, where the student copy of one exercise has been made."
    home = tmp_path_factory.mktemp("jupyter")
    folder = copied(tmp_path_factory.mktemp("course"))
    env = notebooks.child_env(PYTHONPATH=str(folder), **own_jupyter(home))
    build = [sys.executable, "-m", "tools.exercises", "build", EXERCISE.name]
    subprocess.run(build, cwd=folder, env=env, check=True, timeout=120)
    more = "--ServerApp.use_redirect_file=False" + " --allow-root"*(os.name == "posix" and os.geteuid() == 0)
    with open(home/"log", "w", encoding="utf-8") as log:
        # -o: the environment is there already, this one
        make = ["make", "-o", ".venv/.ready", "lab", f"BIN={Path(sys.executable).parent}", f"ARGS={more}"]
        server = subprocess.Popen(make, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log,
                                  stderr=subprocess.STDOUT, start_new_session=True)
        try:
            address, end = home/"opener.said", time.monotonic() + 60
            while not address.exists():
                alive = server.poll() is None and time.monotonic() < end
                assert alive, (home/"log").read_text(encoding="utf-8")[-3000:]
                time.sleep(.1)
            opened = address.read_text(encoding="utf-8")
            at = urlsplit(opened)
            yield Lab(folder, opened, f"{at.scheme}://{at.netloc}", at.query.removeprefix("token="))
        finally: stop(server, home/"runtime")


# The browser

# What JupyterLab writes there of itself: its debugger asks a kernel that is just being restarted.
NOISE = re.compile("Could not restore the debugger state")


@pytest.fixture
def tab(lab, chrome):
    "An empty tab of a new reader; what the console reports fails the test, and kernels end with it."
    context = chrome.new_context(viewport=dict(width=1280, height=900))
    context.set_default_timeout(30*SECOND)
    tab, wrong = context.new_page(), []
    note = lambda line, bad: wrong.append(line) if bad else None
    tab.on("console", lambda m: note(f"{m.text} ({m.location.get('url')})", m.type == "error"))
    tab.on("pageerror", lambda err: wrong.append(str(err)))
    tab.on("request", lambda r: note(f"asks for {r.url}", not r.url.startswith((lab.host, "data:", "blob:"))))
    try: yield tab
    finally:
        asked = dict(headers={"Authorization": f"token {lab.token}"})
        sessions = f"{lab.host}/api/sessions"
        for session in context.request.get(sessions, **asked).json():
            context.request.delete(f"{sessions}/{session['id']}", **asked)
        context.close()
    wrong = [line for line in wrong if not NOISE.search(line)]
    assert not wrong, "\n".join(wrong)


def keep(tab, name):
    if PICTURES: tab.screenshot(path=Path(PICTURES)/f"{name}.png")


FRONT = ".jp-NotebookPanel:not(.lm-mod-hidden)"


def in_front(tab, path):
    "The notebook that the reader sees, when its kernel waits for work."
    tab.locator(".lm-DockPanel-tabBar .lm-mod-current .lm-TabBar-tabLabel",
                has_text=Path(path).name).wait_for()
    tab.locator("#jp-main-statusbar", has_text="| Idle").wait_for(timeout=60*SECOND)
    return tab.locator(FRONT)


def opened(lab, tab, path):
    "A notebook, alone: in a workspace of its own."
    tab.goto(f"{lab.host}/lab/workspaces/{secrets.token_hex(4)}/tree/{path}?token={lab.token}")
    return in_front(tab, path)


def choose(tab, menu, entry):
    "An entry of the menu bar."
    tab.locator("#jp-MainMenu .lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
    tab.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{re.escape(entry)}…?$")).click()


def run_all(tab, panel, seconds=180):
    "Restart the kernel and run all cells: the texts of the errors, and whether the last cell was run."
    choose(tab, "Kernel", "Restart Kernel and Run All Cells")
    tab.locator(".jp-Dialog button.jp-mod-accept").click()
    panel.locator(".jp-InputPrompt", has_text="[*]").first.wait_for(state="attached", timeout=60*SECOND)
    tab.wait_for_function(f"""() => {{
        const panel = document.querySelector("{FRONT}");
        const prompts = [...panel.querySelectorAll(".jp-InputPrompt")];
        return !prompts.some(e => e.textContent.includes("[*]"))
          && panel.querySelector(".jp-Notebook-ExecutionIndicator[data-status=idle]");
    }}""", timeout=seconds*SECOND)
    kinds = ", ".join(f"[data-mime-type='application/vnd.jupyter.{kind}']" for kind in ("stderr", "error"))
    last = panel.locator(".jp-CodeCell .jp-InputPrompt").last.inner_text()
    return panel.locator(kinds).all_inner_texts(), bool(re.search(r"\d", last))


WELL = [], True


# What a reader does

def test_make_lab_opens_the_home_page_and_its_links(lab, tab):
    tab.goto(lab.opened)
    home = in_front(tab, "index.ipynb")
    title, _ = notebooks.head(notebooks.NBS/"index.ipynb")
    assert home.get_by_role("heading", level=1).inner_text().startswith(title)
    keep(tab, "home")
    home.locator("a[href*='05_fusion.ipynb']").first.click()
    in_front(tab, "05_fusion.ipynb")


def moved(tab, slider):
    "Move a slider three steps up by the keyboard; where it was and is, once the picture has changed."
    widget = slider.locator("xpath=ancestor::*[contains(@class, 'widget-interact')]")
    slider.scroll_into_view_if_needed()
    readout = slider.locator(".widget-readout", has_text=re.compile(r"\d"))
    at, before = readout.text_content(), widget.locator("img").get_attribute("src")
    slider.locator(".noUi-handle").focus()
    for _ in range(3): tab.keyboard.press("ArrowRight")
    widget.locator(f"img:not([src='{before}'])").wait_for()
    tab.locator("#jp-main-statusbar", has_text="| Idle").wait_for()
    return at, readout.text_content()


@pytest.mark.parametrize("name, moves",
                         [("05_fusion", [("1.00", "2.50"), ("2.00", "3.50")]), ("06_predictor", []),
                                         ("07_metrics", [("0.10", "0.13")])])
def test_a_notebook_runs_shows_its_plots_and_a_slider_changes_a_picture(name, moves, lab, tab):
    cells = notebooks.read(lab.folder/"nbs"/f"{name}.ipynb")["cells"]
    stored = sum("image/png" in out.get("data", {}) for cell in cells for out in cell.get("outputs", ()))
    panel = opened(lab, tab, f"nbs/{name}.ipynb")
    choose(tab, "Edit", "Clear Outputs of All Cells")
    assert panel.locator(".jp-OutputArea-output img").count() == 0
    assert run_all(tab, panel) == WELL
    plots = panel.locator(".jp-OutputArea-output img:not(.jupyter-widgets img)")
    assert plots.count() == stored > 3
    assert all(plots.evaluate_all("pictures => pictures.map(p => p.complete && p.naturalWidth > 100)"))
    plots.first.scroll_into_view_if_needed()
    keep(tab, name)
    sliders = panel.locator(".widget-slider")
    if moves: sliders.last.wait_for()
    assert [moved(tab, slider) for slider in sliders.all()] == moves
    if moves: keep(tab, f"{name}_moved")


def test_an_exercise_leads_to_its_notebook_where_answers_unfold(lab, tab):
    exercise = opened(lab, tab, f"exercises/release/{EXERCISE.name}/{EXERCISE.name}.ipynb")
    exercise.locator("a[href*='05_fusion.ipynb']").first.click()
    panel = in_front(tab, "05_fusion.ipynb")
    answer = panel.locator(".jp-RenderedMarkdown details").first
    text = answer.locator("p").first
    assert text.is_hidden()
    answer.locator("summary").click()
    text.wait_for(state="visible")
    keep(tab, "answer")
    answer.locator("summary").click()
    text.wait_for(state="hidden")


def fill(tab, panel, has, code):
    "Replace the text of the cell in which these words stand, as a student who pastes."
    cell = panel.locator(".jp-CodeCell .cm-content", has_text=has)
    cell.click()
    tab.keyboard.press("ControlOrMeta+a")
    tab.keyboard.insert_text(code)


def test_an_exercise_says_what_is_wrong_and_when_it_is_right(lab, tab):
    path = lab.folder/"exercises"/"release"/EXERCISE.name/f"{EXERCISE.name}.ipynb"
    panel = opened(lab, tab, path.relative_to(lab.folder).as_posix())
    errors, to_the_end = run_all(tab, panel)
    assert len(errors) == 1 and "NotImplementedError" in errors[0] and not to_the_end
    wrong = tomllib.loads(EXERCISE.path.with_name("wrong.toml").read_text(encoding="utf-8"))["wrong"]
    code, = (w["code"].strip() for w in wrong if w["why"] == "forgets the mask")
    fill(tab, panel, "YOUR CODE HERE", code)
    errors, to_the_end = run_all(tab, panel)
    assert len(errors) == 1 and not to_the_end
    assert "Wrong: the weight of the absent scenario should be 0, got 0.333333." in errors[0]
    keep(tab, "exercise_wrong")
    (solution,) = EXERCISE.solution().values()
    solution = re.sub("^ *### (BEGIN|END) SOLUTION\n?", "", solution, flags=re.M).strip()
    fill(tab, panel, "def distance_attention", solution)
    assert run_all(tab, panel) == WELL
    keep(tab, "exercise_right")
    choose(tab, "File", "Save Notebook")
    dirty = ".lm-DockPanel-tabBar .lm-mod-current.jp-mod-dirty"
    tab.wait_for_function(f"() => !document.querySelector('{dirty}')")
    assert list(exercises.load(path).solution().values()) == [solution]

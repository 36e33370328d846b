"A headless Chromium for the tests, by an explicit path: $CHROMIUM, else the system's, else Playwright's own."
import contextlib
import os
import shutil
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def browser():
    "Skips, with the reason, where Playwright or Chromium is missing."
    sync = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    with sync.sync_playwright() as play:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        path = os.environ.get("CHROMIUM") or found or play.chromium.executable_path
        if not Path(path).is_file():
            pytest.skip(f"needs Chromium (apt install chromium); no file {path}")
        chrome = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try: yield chrome
        finally: chrome.close()


def sideways(tab):
    "By how many pixels the page is wider than the window."
    widths = "document.documentElement.scrollWidth, document.body.scrollWidth"
    return tab.evaluate(f"() => Math.max({widths}) - innerWidth")

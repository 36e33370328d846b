"Run a notebook from top to bottom as nbdev does (its directives and flags), in a process of its own."
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools import notebooks

TIMEOUT = 180   # seconds for one notebook; the aim is 60
SLOW_TIMEOUT = 3600
COUPONS = "in-vehicle-coupon"

_CHILD = """
import sys
from pathlib import Path
from nbdev.test import test_nb
path, skip, force, root = sys.argv[1:]
passed, seconds = test_nb(Path(path), skip.split(), force.split(), basepath=root)
sys.exit(0 if passed else 1)
"""


def have_coupons():
    "Whether $MULTISCENE_DATA holds the coupon file."
    folder = os.environ.get("MULTISCENE_DATA")
    return bool(folder) and any((Path(folder)/COUPONS).glob("*.csv*"))


def have_cuda():
    "Whether PyTorch sees an NVIDIA GPU."
    import torch
    return torch.cuda.is_available()


def default_flags(slow=False):
    "The flags of settings.ini's tst_flags that this machine can honour; slow only when asked for."
    return [name for name, on in (("slow", slow), ("gpu", have_cuda()), ("coupons", have_coupons())) if on]


def run(path, flags=(), timeout=None):
    "Run one notebook; return (passed, seconds, what it printed)."
    timeout = timeout or (SLOW_TIMEOUT if "slow" in flags else TIMEOUT)
    skip = notebooks.settings()["tst_flags"]
    arguments = [str(Path(path).absolute()), skip, " ".join(flags), str(notebooks.ROOT)]
    command = [sys.executable, "-c", _CHILD, *arguments]
    start = time.monotonic()
    # Into a file, not a pipe: a grandchild that keeps a pipe open would keep us waiting past the time-out.
    with tempfile.TemporaryFile() as out:
        child = subprocess.Popen(command, cwd=notebooks.NBS, env=notebooks.child_env(),
                                 stdin=subprocess.DEVNULL,
                                 stdout=out, stderr=subprocess.STDOUT, start_new_session=os.name == "posix")
        try:
            passed, note = child.wait(timeout) == 0, ""
        except subprocess.TimeoutExpired:
            passed, note = False, f"\n{Path(path).name}: stopped after {timeout} s"
            _stop(child)
        seconds = time.monotonic() - start
        out.seek(0)
        return passed, seconds, out.read().decode("utf-8", "replace") + note


def _stop(child):
    "End a child and what it started."
    if os.name == "posix": os.killpg(child.pid, signal.SIGKILL)
    else: child.kill()
    child.wait()

"A folder that takes seconds to make: one of the test processes makes it, all of them read it."
import json
import os

from filelock import FileLock


def made_once(factory, name, make):
    "(folder, what `make(folder)` returned, plain data), the same for every process of this run."
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)/name
    result = folder.with_suffix(".json")
    with FileLock(folder.with_suffix(".lock")):
        if not result.exists(): result.write_text(json.dumps(make(folder)), encoding="utf-8")
    return folder, json.loads(result.read_text(encoding="utf-8"))

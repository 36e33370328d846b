"""The lower bounds of settings.ini as constraints, for the oldest row of the test matrix.

    python -m tools.bounds > oldest.txt

Only what the package needs at run time; the tools of `dev` stay at what constraints.txt says.
"""
import re

from tools import notebooks


def oldest(cfg):
    "One `name==version` per requirement of the form `name>=version`; a bound of 2.6 means the newest 2.6.x."
    return [re.sub(r"^([\w.-]+)>=([\d.]+).*$", r"\1==\2.*", r) for r in cfg["requirements"].split()]


if __name__ == "__main__":
    print("\n".join(oldest(notebooks.settings())))

"""Exercises: one source each in nbgrader's form, student copies, marks.

    python -m tools.exercises build [NAME ...]       student copies into exercises/release/, by nbgrader
    python -m tools.exercises grade FOLDER           marks of all submissions, as FOLDER/marks.csv
    python -m tools.exercises list                   names and points

An exercise is a folder `exercises/source/NNx_name/`: the notebook of that name, and `wrong.toml`, the wrong
answers that test its checks and are never handed out.
"""
import argparse
import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tools import notebooks

FOLDER = notebooks.ROOT/"exercises"
SOURCE, RELEASE = FOLDER/"source", FOLDER/"release"
CHECKS = compile((FOLDER/"check.py").read_text(encoding="utf-8"), "check.py",
                 "exec") # read before any submission runs


@dataclass
class Cell:
    "A cell; kind is text, setup, solution, answer (in words), helper (of hidden checks) or test."
    kind: str
    id: str
    source: str
    points: float = 0


@dataclass
class Exercise:
    "An exercise as its notebook says it."
    path: Path
    cells: list = field(default_factory=list)

    @property
    def name(self): return self.path.stem # 05a_distance

    @property
    def lesson(self):
        "The notebook of the course that it goes with: 05_fusion."
        return next(p.stem for p in notebooks.paths(f"{self.name[:2]}_*.ipynb"))

    @property
    def points(self):
        "Full marks: those of the checks. A teacher reads the answers in words."
        return sum(self.tests().values())

    @property
    def title(self):
        "The headline."
        lines = (line for cell in self.cells for line in cell.source.splitlines())
        return next(line for line in lines if line.startswith("# ")).removeprefix("# ").strip()

    def solution(self):
        "What stands in the cells for answers in code, by their ids."
        return {cell.id: cell.source for cell in self.cells if cell.kind == "solution"}

    def tests(self):
        "Points of the cells of checks, by their ids."
        return {cell.id: cell.points for cell in self.cells if cell.kind == "test"}


def _cell(cell):
    mark, text = cell["metadata"].get("nbgrader", {}), cell["cell_type"] == "markdown"
    if mark.get("solution"): kind = "answer" if text else "solution"
    elif mark.get("grade"): kind = "test" if mark["points"] else "helper"
    else: kind = "text" if text else "setup"
    return Cell(kind, mark.get("grade_id", ""), "".join(cell["source"]), mark.get("points", 0))


def load(path):
    "Read an exercise or a student copy."
    return Exercise(Path(path),
                    [_cell(cell) for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]])


def sources():
    "All exercises, in order."
    return [load(path) for path in sorted(SOURCE.glob("*/*.ipynb"))]


def _nbgrader(folder):
    "nbgrader's own settings of a folder with nbgrader_config.py."
    from traitlets.config import PyFileConfigLoader
    config = PyFileConfigLoader("nbgrader_config.py", path=str(folder)).load_config()
    config.CourseDirectory.root = str(folder)
    return config


def student_copy(exercise):
    "The exercise as a student gets it: what nbgrader takes out is out."
    import nbformat
    from nbgrader.preprocessors import ClearHiddenTests, ClearSolutions
    nb, config = nbformat.read(exercise.path, 4), _nbgrader(FOLDER)
    for step in (ClearSolutions, ClearHiddenTests): nb, _ = step(config=config).preprocess(nb, {})
    return Exercise(exercise.path, [_cell(cell) for cell in nb.cells])


# ---------------------------------------------------------------- student copies

def _keep(release, kept, asked, say=print):
    "Copy what somebody has put into the folder of student copies to another one, before it is replaced."
    cells = lambda exercise: [(c.id, c.source.strip()) for c in exercise.cells]
    for exercise in asked:
        fresh = cells(student_copy(exercise))
        for path in sorted(p for p in (release/exercise.name).rglob("*") if p.is_file()):
            if path.name == "check.py" or {"__pycache__", ".ipynb_checkpoints"} & set(path.parts): continue
            with contextlib.suppress(Exception):
                if path.stem == exercise.name and cells(load(path)) == fresh: continue
            place = kept/path.parent.relative_to(release)
            place.mkdir(parents=True, exist_ok=True)
            names = (f"{path.stem}-{k}{path.suffix}" for k in range(1, 10**6))
            copy = next(place/name for name in names if not (place/name).exists())
            copy.write_bytes(path.read_bytes())
            say(f"{path.relative_to(release).as_posix()} was worked on: kept as "
                f"{kept.name}/{copy.relative_to(kept).as_posix()}")


def build(names=(), say=print, folder=FOLDER):
    "Student copies by nbgrader; each gets check.py beside it."
    from nbgrader.apps import NbGraderAPI
    asked = [e for e in sources() if not names or e.name in names]
    unknown = set(names) - {e.name for e in asked}
    if unknown: sys.exit(f"no exercise has the name {', '.join(sorted(unknown))}")
    _keep(folder/"release", folder/"kept", asked, say)
    nbgrader = NbGraderAPI(config=_nbgrader(folder))
    with _programs(): _released(nbgrader, asked, say, folder)


@contextlib.contextmanager
def _programs(): # nbgrader starts alembic by its name, wherever this Python's programs are
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), path))
    try: yield
    finally: os.environ["PATH"] = path


def _released(nbgrader, asked, say, folder):
    for exercise in asked:
        done = nbgrader.generate_assignment(exercise.name, force=True, create=True)
        problem = done.get("error") or done.get("log") or ""
        if not done["success"]: sys.exit(f"{exercise.name}: nbgrader failed\n{problem[-3000:]}")
        (folder/"release"/exercise.name/"check.py").write_bytes((FOLDER/"check.py").read_bytes())
        say(f"exercises/release/{exercise.name}: {exercise.points:g} points")


def _user(name): # (uid, gid)
    if name is None: return None
    import pwd
    if os.getuid(): sys.exit(f"only root can run code as another user; leave out --user {name}")
    try: return pwd.getpwnam(name)[2:4]
    except KeyError: sys.exit(f"there is no user {name!r} on this machine")


def main():
    "The command line."
    whole = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=whole)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("build").add_argument("names", nargs="*", help="exercises; default all")
    commands.add_parser("list")
    grade = commands.add_parser("grade")
    grade.add_argument("folder", type=Path)
    grade.add_argument("--out", type=Path, help="csv file; default FOLDER/marks.csv")
    grade.add_argument("--seed", type=int,
                       help="of the hidden checks; default: MULTISCENE_GRADE_SEED, else drawn, and printed")
    grade.add_argument("--seconds", type=int, default=60, help="for one notebook")
    grade.add_argument("--user", help="who runs the students' code, such as nobody; only root can set it")
    args = parser.parse_args()
    if args.what == "build": build(args.names)
    elif args.what == "list":
        for e in sources(): print(f"{e.name:<28} {e.points:g} points  {e.title}")
    else:
        if not args.folder.is_dir(): sys.exit(f"no such folder: {args.folder}; it holds a folder per student")
        seed = os.environ.pop("MULTISCENE_GRADE_SEED", "")
        if args.seed is None and seed and not seed.isdecimal():
            sys.exit(f"MULTISCENE_GRADE_SEED should be a whole number, not {seed!r}")
        from tools import grade
        seed = int(seed) if args.seed is None and seed else args.seed
        with grade.Nursery(_user(args.user), alone=True) as nursery:
            grade.grade_folder(args.folder, nursery, args.out, seed, seconds=args.seconds)


if __name__ == "__main__":
    main()

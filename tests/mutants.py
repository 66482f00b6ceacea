"""Would a test notice if one operator, number or argument of the arithmetic were another?

mutmut changes one at a time in the files that pyproject.toml names for it, and runs the tests that
come through there. Exit code 1 if no test fails at a change that `mutants.txt` does not list: there
is why each of these changes no number. Arguments are patterns of mutants, as mutmut names them:
`lightning_distill.losses.chunked.*`; without one it is all of them, half an hour on two cores.
"""

import ast
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "build" / "mutants"
COPIED = ("lightning_distill", "conf", "tests", "pyproject.toml")


def main(patterns: list[str]) -> int:
    known = {line for line in _known() if line and not line.startswith("#")}
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    for name in COPIED:
        _copy(REPOSITORY / name, FOLDER / name)
    os.chdir(FOLDER)
    for path in walk_mutatable_files():
        path.write_text(undecorated(path.read_text()))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-m", "mutmut", "run", *patterns],
        env=environment | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    survivors = tell()
    new = [change for change in survivors if change not in known]
    print(*(f"\nno test fails at\n{change}" for change in new), sep="")
    if not patterns:
        gone = sorted(known - set(survivors))
        print(*(f"\nno longer survives, or is no longer made\n{line}" for line in gone), sep="")
    print(f"\n{len(survivors)} survivors, {len(new)} of them not in tests/mutants.txt")
    return 1 if new else 0


def tell() -> list[str]:
    """Prints what became of each file's mutants, and returns those that no test noticed."""
    survivors = []
    for path in walk_mutatable_files():
        file = SourceFileMutationData(path=path)
        file.load()
        became = {name: status_by_exit_code[code] for name, code in file.exit_code_by_key.items()}
        became = {name: status for name, status in became.items() if status != "not checked"}
        if became:
            counts = sorted(Counter(became.values()).items())
            print(f"{path}: {len(became)} mutants,", ", ".join(f"{n} {s}" for s, n in counts))
        noticed = ("killed", "timeout", "segfault")
        survivors += [change_of(name) for name, status in became.items() if status not in noticed]
    return survivors


def change_of(name: str) -> str:
    """The function, and the line as the mutant has it; without numbers, which later lines shift."""
    module, _, function = name.rpartition("__mutmut_")[0].rpartition(".")
    function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    lines = get_diff_for_mutant(name).splitlines()[2:]
    there = [line[1:].strip() for line in lines if line.startswith("+")]
    gone = [line[1:].strip() for line in lines if line.startswith("-")]
    said = " ".join(there) or f"without {' '.join(gone)}"
    return f"{module.removeprefix('lightning_distill.')}.{function}: {said}"


def undecorated(source: str) -> str:
    """With `f = decorator(f)` behind each function: mutmut passes by what is decorated above it."""
    lines, tree, edits = source.splitlines(keepends=True), ast.parse(source), []
    for scope in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
        for node in scope.body:
            if not isinstance(node, ast.FunctionDef) or not node.decorator_list:
                continue
            call = node.name
            for decorator in reversed(node.decorator_list):
                call = f"{ast.unparse(decorator)}({call})"
            line = f"{' ' * node.col_offset}{node.name} = {call}\n"
            edits.append((node.decorator_list[0].lineno, node.lineno, node.end_lineno, line))
    for first, body, end, line in sorted(edits, reverse=True):
        lines.insert(end, line)
        del lines[first - 1 : body - 1]
    return "".join(lines)


def _known() -> list[str]:
    return (REPOSITORY / "tests" / "mutants.txt").read_text().splitlines()


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy2(source, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

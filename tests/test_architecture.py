"""The order of the rooms: a module imports only what lies below it, and nothing in a circle."""

import ast
from collections.abc import Iterator
from pathlib import Path

import lightning_distill

PACKAGE = Path(lightning_distill.__file__).parent
# From top to bottom. A module may import its own room and those below it.
ROOMS = [
    *("__main__", "api", "cli", "planning", "export", "chat", "reevaluation", "pipeline"),
    "experiment",
    *("tracking", "report", "sweeps", "evaluation", "transfer", "training", "data", "metrics"),
    *("losses", "models", "storage", "distributed", "config"),
    *("", "activity", "errors", "constants", "imports", "progress", "screen", "stages"),
]
FILES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    .removesuffix("__init__")
    .rstrip("."): file
    for file in PACKAGE.rglob("*.py")
}


def imported(module: str) -> Iterator[str]:
    """The modules of the package that this one imports, also inside functions."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} has a relative import"
            names = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "lightning_distill":
                within = (".".join(parts[1:end]) for end in range(len(parts), 0, -1))
                yield next(one for one in within if one in FILES)


def room(module: str) -> int:
    return ROOMS.index(module.split(".")[0])


GRAPH = {module: {one for one in imported(module) if one != module} for module in FILES}


def test_every_module_is_in_a_room():
    assert {module.split(".")[0] for module in FILES} == set(ROOMS)


def test_no_import_runs_up():
    up = [f"{a} imports {b}" for a, names in GRAPH.items() for b in names if room(b) < room(a)]
    assert not up


def test_no_imports_form_a_circle():
    """Python runs the `__init__` of each package that a name lies in, so those count as imported,
    but for those of the importing module's own packages, which have begun already."""
    graph = {}
    for module, names in GRAPH.items():
        own = {module.rsplit(".", depth)[0] for depth in range(module.count(".") + 1)}
        packages = {
            ".".join(name.split(".")[:end])
            for name in names
            for end in range(1, name.count(".") + 1)
        }
        graph[module] = names | (packages - own)
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, " → ".join([*path[path.index(module) :], module])
        if module not in done:
            for name in sorted(graph[module]):
                visit(name, [*path, module])
            done.add(module)

    for module in sorted(graph):
        visit(module, [])

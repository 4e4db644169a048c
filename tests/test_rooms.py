"""The package is a house of rooms: imports flow one way through them, and through the studies; functions are short."""

import ast
import pathlib

import rlx2_jax

HOUSE = pathlib.Path(rlx2_jax.__file__).parent
ROOMS = (
    *("errors", "runtime", "io", "sparse", "kernels", "envs", "replay", "config", "networks", "agents", "policies"),
    *("export", "analysis", "viz", "training", "sweeps"),
)
"""From the ground up: each may import those before it."""


def imported_by(path):
    """Rooms that a module imports, however it says so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "rlx2_jax":
            yield from (alias.name for alias in node.names if alias.name in ROOMS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlx2_jax."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("rlx2_jax."))


def test_imports_flow_one_way_through_the_rooms():
    assert {path.stem for path in HOUSE.iterdir() if path.suffix in ("", ".py")} - {"__pycache__", "py"} <= {
        *ROOMS,
        "__init__",
    }
    looked_at = 0
    for path in HOUSE.rglob("*/*.py"):
        room = path.relative_to(HOUSE).parts[0]
        for other in imported_by(path):
            assert ROOMS.index(other) <= ROOMS.index(room), f"{path} imports {other}"
            looked_at += 1
    assert looked_at > 400


STUDIES = HOUSE.parent / "experiments" / "paper"
OF_STUDIES = (
    *("published", "study", "search", "factors", "arms", "plan", "registry"),
    *("store", "tables", "sections", "figures", "pictures", "comparisons", "report", "runner"),
)
"""Modules of the paper's studies, likewise: what they are, then what was recorded of them, and last what makes it."""


def test_imports_flow_one_way_through_the_studies():
    assert {path.stem for path in STUDIES.glob("*.py")} == {*OF_STUDIES, "__init__"}
    for path in (STUDIES / f"{name}.py" for name in OF_STUDIES):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "paper":
                own = [alias.name for alias in node.names] if node.module == "paper" else [str(node.module)[6:]]
                for other in own:
                    assert OF_STUDIES.index(other) < OF_STUDIES.index(path.stem), f"{path} imports {other}"


def test_no_function_is_longer_than_sixty_lines():
    launchers = HOUSE.parent / "experiments"
    for path in (*HOUSE.rglob("*.py"), *launchers.glob("*.py"), *STUDIES.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = int(node.end_lineno or 0) - node.lineno + 1  # With its signature, docstring and nested ones.
                assert length <= 60, f"{path}: {node.name} has {length} lines; split it."

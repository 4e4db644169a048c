"""The package is a house of rooms, and imports flow one way through them."""

import ast
import pathlib

import rlx2_jax

HOUSE = pathlib.Path(rlx2_jax.__file__).parent
ROOMS = (
    *("errors", "runtime", "io", "sparse", "kernels", "envs", "replay", "config", "networks", "agents", "policies"),
    *("analysis", "viz", "training", "sweeps"),
)
"""From the ground up: each may import those before it."""


def test_imports_flow_one_way_through_the_rooms():
    assert {path.stem for path in HOUSE.iterdir() if path.suffix in ("", ".py")} - {"__pycache__", "py"} <= {
        *ROOMS,
        "__init__",
    }
    for path in HOUSE.rglob("*/*.py"):
        room = path.relative_to(HOUSE).parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlx2_jax."):
                other = str(node.module).split(".")[1]
                assert ROOMS.index(other) <= ROOMS.index(room), f"{path} imports {node.module}"

"""The notebook does its job when executed from top to bottom."""

import ast
import importlib

import nbclient
import nbformat
import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "experiments" / "notebooks" / "quickstart.ipynb"


def test_every_name_that_the_notebook_takes_from_the_library_is_there():
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    tree = ast.parse("\n".join(cells[1:]))
    taken = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("rlx2_jax"):
            module = importlib.import_module(node.module)
            taken |= {alias.name: getattr(module, alias.name) for alias in node.names}
    used = [
        getattr(taken[node.value.id], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in taken
    ]
    assert used


@pytest.mark.slow
def test_the_quickstart_notebook_trains_and_draws():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    printed = "".join(output.get("text", "") for output in outputs)
    score = float(next(line.split()[1] for line in printed.splitlines() if line.strip().startswith("score")))
    assert score >= 950

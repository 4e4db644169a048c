"""The notebooks do their job when executed from top to bottom, and what they say of it is so."""

import ast
import importlib
import itertools
import json
import os
import re
import textwrap

import jax
import nbclient
import nbformat
import pytest

from tests.conftest import ROOT

PLACE = ROOT / "experiments" / "notebooks"
NOTEBOOKS = sorted(PLACE.glob("*.ipynb"))
SETUP = "import importlib.util\n\nif importlib.util.find_spec("
"""What a set-up cell begins with, after a word on what it is."""

LONGEST = 12
"""Lines in a cell that are not blank; but cells that import may have more."""

WIDEST = 100
"""Characters of a line, which a page has room for."""

PICTURES = {
    "1-quick-start": 2,
    "2-sweeps": 2,
    "3-topology": 7,
    "4-your-own": 2,
    "5-any-model": 2,
    "6-deploy": 1,
}
"""Cells that show a picture."""

CLAIMS = {
    "1-quick-start": """
        assert result.finished and summary["score"] > 900
        assert 0.05 < summary["size_ratio"] < 0.15
        assert np.count_nonzero(kernels["Dense_0"]) == kernels["Dense_0"].size and present.mean() < 0.1
    """,
    "2-sweeps": """
        assert result.finished and result.plan.compilations == 1 and len(result.table) == 9
        assert jax.device_count() == 2
        score = lambda method: np.mean([row["score"] for row in result.table if row["method"] == method])
        assert score("dense") > 600 and score("rlx2") > score("ss")
        assert returns.shape == reports["return_mean"].shape and returns[:, -1].min() > 0.95
        np.testing.assert_allclose(returns[:, :2], reports["return_mean"][:, :2], atol=1e-3)
    """,
    "3-topology": """
        assert result.finished and result.summary["best"] > 2 * result.rows[0]["return_mean"]
        assert kept[0] == 100 and 30 < kept[-1] < 90
        assert {*curves.column(result.rows, "n_step")} == {1, 3}
    """,
    "4-your-own": """
        assert result.finished and result.summary["score"] > -400
        starts = jax.random.split(jax.random.PRNGKey(1), 8)
        seen = [envs.episodes.record(env, result.policy.act, key, 200).states.physics[0] for key in starts]
        assert np.cos(seen)[:, -60:].min() > 0.9
    """,
    "5-any-model": """
        ends = {name: float(right[-1]) for name, (_, (right, _)) in found.items()}
        assert min(ends.values()) > 0.93 and ends["RigL, 90 % sparse"] > ends["dense"] - 0.02
        assert ends["pruned to 95 %"] > ends["dense"] - 0.03
        densities = [float(density[-1]) for _, (_, density) in found.values()]
        np.testing.assert_allclose(densities, [1, 0.1, 0.05], atol=1e-3)
        empty = x.mean(0) == 0
        for name in list(optimisers)[1:]:
            links = sparse.masks_of(found[name][0][1])["params"]["Dense_0"]["kernel"].sum(1)
            assert links[empty].mean() < 0.7 * links.mean()
    """,
    "6-deploy": """
        assert max(off.values()) < 1e-5 and total > 900
        assert compiler is None or latency["c"] < min(latency["jax"], latency["onnx"], latency["numpy"])
    """,
}
"""What must hold in a notebook's own names when it is at its end."""


def cells(path, kind):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def code(path):
    """All code of a notebook but its set-up, as Python reads it."""
    return "\n".join(re.sub(r"^%.*$", "", cell, flags=re.MULTILINE) for cell in cells(path, "code")[1:])


def parametrised(function):
    return pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)(function)


def test_there_is_a_notebook_for_each_topic():
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES) == set(CLAIMS)


@parametrised
def test_a_notebook_is_kept_without_what_it_printed_and_begins_as_all_do(path):
    kept = json.loads(path.read_text())
    assert [cell["id"] for cell in kept["cells"]] == [f"cell-{i}" for i in range(len(kept["cells"]))]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in kept["cells"] if "outputs" in cell)
    head, setup = (nbformat.read(path, as_version=4).cells[i] for i in (0, 1))
    title, sentences, badge = head.source.split("\n\n")
    assert title.startswith("# ") and 2 <= len(re.findall(r"[.?](?=\s|$)", sentences)) <= 3
    assert re.fullmatch(rf"\[!\[Open in Colab\]\(colab\.svg\)\]\(https://colab\S+/{path.name}\)", badge)
    assert SETUP in setup.source and "%pip install" in setup.source


def test_all_notebooks_are_opened_and_installed_from_one_repository():
    text = "".join(path.read_text() for path in NOTEBOOKS)
    opened = re.findall(r"colab\.research\.google\.com/github/([\w-]+/[\w-]+)/blob/main/experiments/notebooks/", text)
    installed = re.findall(r"git\+https://github\.com/([\w-]+/[\w-]+)", text)
    assert len(opened) == len(installed) == len(NOTEBOOKS) and len({*opened, *installed}) == 1


@parametrised
def test_cells_are_short_and_each_comes_after_words(path):
    kinds = nbformat.read(path, as_version=4).cells
    for before, cell in itertools.pairwise(kinds[1:]):
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if line]
            assert len(lines) <= LONGEST or "import" in cell.source, cell.source
            assert max(map(len, lines)) <= WIDEST, cell.source
            assert before.cell_type == "markdown", cell.source
    assert kinds[-1].source.startswith("## What next")


@parametrised
def test_links_of_a_notebook_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(cells(path, "markdown"))):
        assert target.startswith("https://") or (path.parent / target).resolve().is_file(), target


def named(module, name):
    """What `from module import name` gives."""
    found = importlib.import_module(module)
    return getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")


@parametrised
def test_every_name_that_a_notebook_takes_from_the_library_is_there(path):
    tree = ast.parse(code(path))
    taken = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("rlx2_jax"):
            taken |= {alias.name: named(node.module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in taken:
            assert hasattr(taken[node.value.id], node.attr), ast.unparse(node)
    assert taken


@pytest.mark.slow
@parametrised
def test_a_notebook_runs_from_top_to_bottom_and_holds_what_it_says(path, tmp_path, monkeypatch):
    # As others start it, but with the tests' cache of programs and as little polished as those.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    shown = len(notebook.cells)
    notebook.cells.append(nbformat.v4.new_code_cell(textwrap.dedent(CLAIMS[path.stem])))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    pictures = 0
    for cell in notebook.cells[:shown]:
        outputs = cell.get("outputs", [])
        assert not [output for output in outputs if output.get("name") == "stderr"], outputs
        pictures += any("image/png" in output.get("data", {}) for output in outputs)
    assert pictures == PICTURES[path.stem]

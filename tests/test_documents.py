"""README and the documents are true: their code runs, their commands parse, their links lead somewhere."""

import ast
import dataclasses
import html.parser
import importlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import types
from unittest import mock

import pytest
import yaml
from absl import flags

import rlx2_jax
from rlx2_jax.config import Config, command_line, resolve
from tests import names
from tests.conftest import ROOT, launch_here, small
from tests.test_run import quiet
from tests.test_sweep_launcher import free_port

DOCUMENTS = [ROOT / "README.md", ROOT / "WORKSPACE.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"experiments/(\w+\.py)((?:\s+--[^\s`]+)*)")
WIDEST = 98
"""Characters of a line of code, which a page of the site has room for."""

TRAINS = re.compile(r"runs/|\btrain\(|make_train|sweep\(")
"""Code that trains, or reads what was trained."""


def shown(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    return [code for found, code in FENCE.findall(path.read_text()) if found == language]


def test_code_fits_the_pages_of_the_site():
    for path in sorted((ROOT / "docs").rglob("*.md")):
        for _, code in FENCE.findall(path.read_text()):
            assert all(len(line) <= WIDEST for line in code.splitlines()), f"{shown(path)}: {code}"


@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "experiments/results").glob("*/*.md"))], ids=shown)
def test_no_sentence_is_torn_by_a_number_that_begins_a_line(path):
    """A line such as "4. Some fell back" is an item of a list to a site, wherever it stands in a paragraph of one."""
    before = ""
    for line in path.read_text().splitlines():
        number = re.match(r"\s*\d+\. ", line)
        assert not number or not before.strip() or re.match(r"\s*\d+\. ", before), f"{before} | {line}"
        before = line


@pytest.mark.parametrize("path", sorted((ROOT / "rlx2_jax").rglob("*.py")), ids=shown)
def test_a_scheme_in_the_text_of_a_module_is_indented_whole(path):
    """A site takes indented lines below others that are not for the same paragraph, and runs them together."""
    lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
    for before, line in itertools.pairwise(lines):
        assert not re.match(" {4}", line) or not before or before.startswith("    "), f"{before} | {line}"


def test_readme_is_short_and_shows_what_a_newcomer_needs():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 200
    first = re.search(r"^# rlx2_jax\n\n(.*?)\n\n", text, re.DOTALL | re.MULTILINE).group(1)
    assert len(re.findall(r"\.(?=\s|$)", first.replace("et al.", ""))) == 3  # Sentences.
    order = [
        text.index(part) for part in ("## Two commands", "load_policy", "## Results", "## Beside others", "## Cite")
    ]
    assert order == sorted(order)


def python_pages():
    for path in DOCUMENTS:
        if found := blocks(path, "python"):
            slow = [pytest.mark.slow] if TRAINS.search("".join(found)) else []
            yield pytest.param(path, id=shown(path), marks=slow)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with the runs that documents speak of, all of them small, and with recorded studies."""
    place = tmp_path_factory.mktemp("documents")
    for name, method in (("hopper", "rlx2"), ("dense", "dense")):
        quiet(small(method=method), place / "runs" / name)
    for name in ("found", "td3-inverted_pendulum-rlx2-0"):
        shutil.copytree(place / "runs" / "hopper", place / "runs" / name)
    (place / "experiments").mkdir()
    (place / "experiments" / "results").symlink_to(ROOT / "experiments" / "results")
    return place


@pytest.mark.parametrize("path", [*python_pages()])
def test_the_code_of_a_page_runs_from_top_to_bottom(path, request, tmp_path, monkeypatch):
    """As it is written; but settings that it leaves open are those of a small run."""
    codes = blocks(path, "python")
    place = request.getfixturevalue("trained") if TRAINS.search("".join(codes)) else tmp_path
    monkeypatch.chdir(place)
    # A module, so that classes of the page know where they come from.
    page = types.ModuleType("page_of_the_documents")
    monkeypatch.setitem(sys.modules, page.__name__, page)
    left_open = {name: value for name, value in vars(small()).items() if value is not None}
    with mock.patch.dict(Config.__init__.__kwdefaults__, left_open):
        for code in codes:
            exec(compile(code, str(path), "exec"), vars(page))


def commands():
    """Every launcher's command in any document, in blocks of any language and in sentences."""
    for path in DOCUMENTS:
        text = re.sub(r"\$\([^)]*\)", "x", path.read_text().replace("\\\n", " "))
        for launcher, rest in COMMAND.findall(re.sub(r"\$\w+", "1", text)):
            yield pytest.param(launcher, re.sub("[\"']", "", rest).split(), id=f"{shown(path)}: {launcher}{rest[:40]}")


def checked(main):
    """In the place of a launcher's work: parse what it was given."""
    del main
    command_line._parse(sys.argv)
    given = flags.FLAGS
    if "env" in given and "rows" not in given:  # Rows are of studies and benchmarks.
        resolve(dataclasses.replace(command_line.read_config(), data_parallel=1))
    if "sweep.env" in given:
        command_line.read_swept()
        command_line.parse_seeds(given["seeds"].value)


@pytest.mark.parametrize(("launcher", "arguments"), [*commands()])
def test_a_command_has_flags_that_are_there_with_values_that_can_be(launcher, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "_guarded", checked)
    done = launch_here(launcher, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_flags_and_extras_that_are_named_in_sentences_are_there():
    given = {f.name for f in dataclasses.fields(Config)}
    for launcher in (ROOT / "experiments").glob("*.py"):
        given |= set(re.findall(r'(?:DEFINE_\w+|define_path|define_place)\(\s*"(\w+)"', launcher.read_text()))
    given |= {"preset", "help", "helpfull", "precision", "compilation_cache"}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in DOCUMENTS:
        text = path.read_text()
        for flag in re.findall(r"`--(?:no)?(\w+)[=`]", text):
            assert flag in given or f"no{flag}" in given, f"{shown(path)} names --{flag}"
        for named in re.findall(r"(?:\.|rlx2-jax)\[([\w,]+)\]'", text):
            assert set(named.split(",")) <= set(extras), f"{shown(path)} names [{named}]"


def test_yaml_is_yaml():
    (text,) = [code for path in DOCUMENTS for code in blocks(path, "yaml")]
    service, job = yaml.safe_load_all(text)
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"]


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if "probe/" in "".join(blocks(path, "bash"))], ids=shown)
def test_blocks_of_commands_on_probes_run_in_a_shell(path, tmp_path):
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    search = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    for code in (code for code in blocks(path, "bash") if "probe/" in code):
        done = subprocess.run(
            ["bash", "-e", "-c", code.replace("8476", str(free_port()))],
            cwd=tmp_path, env={**os.environ, "PATH": search, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        table = json.loads((tmp_path / "runs" / "loopback" / "sweep.json").read_text())
        assert len(table) == 8 and all(row["finished"] for row in table)


def anchors(path):
    """Where a link into a document may lead: its headings, and names of its modules."""
    text = FENCE.sub("", path.read_text())
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    for module, members in names.shown(text):
        yield module
        yield from (name.path for name in names.names(module) if members is None or name.name in members)
    yield from (re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings)


@pytest.mark.parametrize("path", DOCUMENTS, ids=shown)
def test_every_link_leads_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", path.read_text())):
        if re.match(r"https://\w[\w.-]+/", target):
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        assert other.is_file(), f"{shown(path)} links {target}"
        assert not anchor or anchor in set(anchors(other)), f"{shown(path)} links {target}"


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    told = (ROOT / "mkdocs.yml").read_text()
    found = set(re.findall(r"(\S+\.md)$", told, re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == {name for name in found if not (ROOT / name).exists() or (ROOT / "docs" / name).exists()}
    reports = {path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments" / "results").glob("*/README.md")}
    assert reports | {"WORKSPACE.md"} <= found


def test_every_public_name_has_a_docstring():
    assert [name.path for name in names.library() if not name.documented] == []


def test_the_reference_begins_with_the_names_of_the_package():
    named = re.findall(r"^\| `rlx2_jax\.(\w+)`", (ROOT / "docs/reference/index.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(rlx2_jax.__all__)


def test_the_reference_shows_every_room_and_all_that_rooms_give_away():
    modules = [module for page in names.PAGES for module, _ in names.shown(page.read_text())]
    assert len(set(modules)) == len(modules)
    loaded = [importlib.import_module(module) for module in modules]
    objects = [getattr(importlib.import_module(n.module), n.name) for n in names.library() if "." not in n.name]
    rooms = pathlib.Path(rlx2_jax.__file__).parent.glob("*/__init__.py")
    for room in [importlib.import_module(f"rlx2_jax.{path.parent.name}") for path in rooms]:
        for name in getattr(room, "__all__", ()):
            value = getattr(room, name)
            assert any(value is other for other in [*objects, *loaded]), f"{room.__name__}.{name} is on no page"


class Fetched(html.parser.HTMLParser):
    """What a page fetches when it is opened."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(values["href"])
        elif tag != "a" and values.get("src"):
            self.addresses.append(values["src"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_is_made_without_a_warning_and_fetches_nothing_from_elsewhere(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > len(DOCUMENTS) - 2
    for page in pages:
        fetched = Fetched()
        fetched.feed(page.read_text())
        assert fetched.addresses
        assert not re.search(r"<code>[^<]*--\w", page.read_text()), (
            f"a line may end within a flag's hyphens: {page.name}"
        )
        for address in fetched.addresses:
            assert not re.match(r"(\w+:)?//", address), f"{page.name} fetches {address}"
            local = address.partition("?")[0].partition("#")[0]
            assert (page.parent / local).exists(), f"{page.name} lacks {address}"
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(.?(\w+:)?//|@import", style.read_text())

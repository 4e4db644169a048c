"""The page of a run: it holds what the run left, says what is not there, loads nothing, and fits its window."""

import contextlib
import dataclasses
import html
import html.parser
import json
import re
import shlex
import shutil
import subprocess
from unittest import mock

import jax
import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rlx2_jax.analysis import accounting
from rlx2_jax.config import METHODS, Config, command_line, presets, resolve, written
from rlx2_jax.errors import ConfigError, WorkdirError
from rlx2_jax.training import drawing, recorded
from rlx2_jax.viz import inline, page, panels, viewer
from rlx2_jax.viz.rollout import roll_out
from tests.conftest import ROOT, cached, launch_here, small
from tests.test_rollout import saved
from tests.test_run import quiet

FILES = {"rows": "metrics.jsonl", "summary": "summary.json", "policy": "policy.npz", "masks": "topology.npz"}
"""Where what a page shows is read from."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The directory of a small run that is finished."""
    directory = tmp_path_factory.mktemp("page") / "run"
    quiet(small(), directory)
    return directory


@pytest.fixture(scope="module")
def whole(run):
    """Its page."""
    return recorded.page(run)


@pytest.fixture
def few():
    """Pages have few pictures: drawing takes most of their time."""
    fewer = {"CURVES": panels.CURVES[:2], "WIRING": (), "MASKS": panels.MASKS[2:3]}
    with mock.patch.multiple(panels, **fewer):
        yield


@pytest.fixture
def copy(run, tmp_path):
    """A directory that may be changed."""
    return shutil.copytree(run, tmp_path / "run")


class Elements(html.parser.HTMLParser):
    """Elements of a page, and the text of each kind of element."""

    def __init__(self, content):
        super().__init__()
        self.found, self.texts, self.open = [], {}, []
        self.feed(content.decode())

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_equal_runs_make_equal_bytes(run, whole):
    assert recorded.page(run) == whole


def test_a_page_asks_for_nothing_and_refers_to_what_it_has(whole):
    content = whole.decode()
    assert "default-src 'none'" in content
    without = re.sub(r'\bhref="(#|data:,"|data:image/png;base64,[^"]*")', "", content)
    assert not re.search(
        r"https?:|//\w+\.|\bsrc=|\bhref=|@import|\bfetch\(|XMLHttp|WebSocket|<script|<link rel=.s", without
    )
    elements = Elements(content.encode())
    names = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(set(names)) == len(names)
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"|aria-labelledby="([^"]+)"', content)
    assert {name for names in used for name in names if name} <= set(names)


def test_every_picture_has_words(whole):
    pictures = Elements(whole).all("svg")
    assert len(pictures) > 10
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 20 for picture in pictures)


def test_no_text_of_a_run_is_taken_for_the_page(run, few):
    odd = '</title><script>alert("1")</script>'
    found = recorded.read(run)
    assert found.policy is not None
    changed = found._replace(name=odd, config=dataclasses.replace(found.config, env=odd))
    content = page.page(changed, None, odd).decode()
    assert "<script" not in content and "alert(&quot;1&quot;)" in content


def cells(content, name):
    """The other cells of the rows of tables that begin with a name."""
    rows = re.findall(rf'<th scope="row">{re.escape(name)}</th>(.*?)</tr>', content.decode())
    return [re.findall(r"<td>(.*?)(?:<span.*?)?</td>", row) for row in rows]


@pytest.mark.parametrize("method", ["rlx2", "tiny", "dense"])
@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_sizes_are_those_of_the_accounts_and_dense_is_what_their_ratios_are_to(run, few, agent, method):
    found = recorded.read(run)
    config = resolve(small(agent=agent, method=method))
    content = page.page(found._replace(config=config))
    account = accounting.account(config, *found.sizes)
    for name, count, ratio in (
        ("links, of online and target networks", account.size, account.size_ratio),
        ("FLOPs of an action", account.flops_test, account.flops_test_ratio),
        ("FLOPs of an update on 16 transitions", 16 * account.flops_train, account.flops_train_ratio),
    ):
        ((ours, _, told),) = cells(content, name)
        assert told == f"{ratio:.4f}"
        assert ours in (f"{count:,.0f}", f"{count / 1000:.4g} thousand", f"{count / 1e6:.4g} million")
    shown = sum(int(row[1].replace(",", "")) for i in (1, 2, 3) for row in cells(content, f"actor, layer {i}"))
    assert shown == sum(account.actor_links)


def command(content):
    """The command that makes a run again."""
    (text,) = re.findall(r'<pre class="wrap"><code>(.*?)</code>', content.decode())
    return shlex.split(html.unescape(re.sub(r"</?span[^>]*>", "", text)))


def test_links_of_one_critic_are_those_of_the_first(run, few):
    masks = recorded.read(run).masks
    first, last = (masks.masks(i, "critic") for i in (0, -1))
    rows = re.findall(r"one critic, layer \d.*?<td>([^<]*)</td></tr>", recorded.page(run).decode())
    assert rows == [page._percent((a[0] & b[0]).sum() / b[0].sum()) for a, b in zip(first, last, strict=True)]
    assert rows != [page._percent((a & b).sum() / b.sum()) for a, b in zip(first, last, strict=True)]


@pytest.mark.parametrize(("values", "length"), [([-0.00125, 0.00125], 9), ([-123456, -100], 300_000), ([1, 7e7], 7e6)])
def test_no_letter_of_a_panel_is_cut_off(values, length):
    for wide, unit in ((False, "share of hidden units"), (True, "environment steps per second")):
        with inline.look():
            figure, axis = panels._empty(wide=wide)
            axis.plot([length / 2, length], values)
            panels._finish(axis, unit, legend=False)
        box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.get_figwidth() and box.y1 <= figure.get_figheight()


def test_a_panel_of_nothing_but_zeros_has_a_scale_of_whole_numbers():
    with inline.look():
        _, axis = panels._empty()
        axis.plot([1, 2], [0, 0])
        panels._finish(axis, "links", legend=False)
    assert axis.get_ylim() == (0, 1)


def typed(arguments):
    """The configuration of these flags."""
    values = flags.FlagValues()
    command_line.define_config_flags(values)
    values(["train.py", *arguments])
    return command_line.read_config(values)


def test_the_command_on_a_page_makes_its_run_again(run, whole):
    python, launcher, *arguments = command(whole)
    assert python == "python" and (ROOT / launcher).is_file()
    assert resolve(typed(arguments)) == recorded.read(run).config


@given(
    st.sampled_from(sorted(presets.ROWS)),
    st.sampled_from([(), ("paper",), ("release",)]),
    st.sampled_from(sorted(METHODS)),
    st.fixed_dictionaries(
        {},
        optional={
            "total_steps": st.sampled_from([40_000, 123_457]),
            "num_envs": st.sampled_from([4, 20]),
            "hidden": st.sampled_from([(32,), (256, 256)]),
            "seed": st.integers(0, 9),
            "evolve_interval": st.integers(10, 99),
            "dynamic_buffer": st.booleans(),
            "schedule_scale": st.sampled_from([0.01, 1 / 3]),
        },
    ),
)
def test_what_is_written_of_a_run_is_enough_and_not_more(row, reading, method, settings):
    config = resolve(presets.make_config((row, *reading), {"total_steps": 100_000, **settings, "method": method}))
    kept = written(config)
    assert resolve(Config(**kept)) == config
    fields = {field.name: field for field in dataclasses.fields(Config)}
    assert resolve(typed([f"--{name}={page._spelled(fields[name], value)}" for name, value in kept.items()])) == config
    for name in kept:
        fewer = {other: value for other, value in kept.items() if other != name}
        with contextlib.suppress(ConfigError):
            assert resolve(Config(**fewer)) != config


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_what_is_not_there_is_said_and_the_rest_is_shown(copy, few, whole, name, how):
    path = copy / FILES[name]
    assert whole.count(b'class="lacks"') == 1  # Of the episode.
    path.unlink()
    if name == "masks":
        (copy / "masks.npz").unlink()  # They would do in its place.
    if how == "damaged":
        path.write_bytes(b"{\n[1]\n")
    found = recorded.read(copy)
    assert not getattr(found, name)
    content = recorded.page(copy).decode()
    assert found.lacking[name][1:30] in html.unescape(content)
    assert str(copy.parent) not in content
    for section in ("curves", "masks", "rollout", "sizes", "time", "use", "configuration"):
        assert f'<section id="{section}"' in content
    assert "<svg" in content


def test_a_run_that_was_stopped_says_how_far_it_came(copy, few):
    summary = json.loads((copy / "summary.json").read_text()) | {"finished": False, "env_steps": 800}
    (copy / "summary.json").write_text(json.dumps(summary))
    assert "Ended before its end, at step 800 of 1,200; --resume goes on." in recorded.page(copy).decode()
    (copy / "summary.json").write_text(json.dumps(summary | {"env_steps": 100, "updates": 0}))
    assert cells(recorded.page(copy), "FLOPs of 0 updates") == [["0", "0", "-"]]
    (copy / "summary.json").write_text(json.dumps(summary | {"diverged": True}))
    assert "Diverged by step 800 of 1,200: its numbers were no longer finite." in recorded.page(copy).decode()


def test_what_is_no_run_is_refused_and_nothing_is_written(tmp_path):
    done = launch_here("report.py", "--workdir=nowhere", cached(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "error: nowhere holds no run (nowhere/config.json cannot be read); name the directory of one.\n"
    )
    assert "no workdir given" in launch_here("report.py", cached(), cwd=tmp_path).stderr
    assert "ends with .html" in launch_here("report.py", "--workdir=a", "--output=a.pdf", cached(), cwd=tmp_path).stderr
    assert list(tmp_path.iterdir()) == []


def test_a_clone_is_refused_by_its_name(copy):
    (copy / "metrics.jsonl").write_text('{"updates": 400, "return_mean": 1.0, "loss": 0.1}\n')
    for read in (recorded.read, drawing.read_rows):
        with pytest.raises(WorkdirError, match="holds a clone, of which there is no page"):
            read(copy)


def test_an_episode_is_the_viewers_page_inside_the_page(tmp_path, few):
    directory = saved(tmp_path / "run", "InvertedPendulum-v4", episode_length=12)
    done = launch_here("report.py", f"--workdir={directory}", cached())
    assert done.returncode == 0, done.stderr
    policy = recorded.read(directory).policy
    expected = viewer.page(roll_out(policy, jax.random.split(jax.random.PRNGKey(recorded.SEED), 1)[0]))
    (frame,) = Elements((directory / "report.html").read_bytes()).all("iframe")
    assert frame["srcdoc"].encode() == expected and frame["title"]


def test_where_no_episode_can_be_shown_the_page_says_why(run, few, tmp_path):
    done = launch_here("report.py", f"--workdir={run}", f"--output={tmp_path}/new/page.html", cached())
    assert done.returncode == 0, done.stderr
    assert "No episode can be shown: probe/action has no bodies to look at" in (tmp_path / "new/page.html").read_text()


LOOKING = """<script>
const found = [], note = (text) => found.push(text);
addEventListener("error", (e) => note("error " + e.message));
addEventListener("securitypolicyviolation", (e) => note("refused " + e.blockedURI));
addEventListener("load", () => setTimeout(() => {
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) note("wider than the window: " + wide + " in " + innerWidth);
  for (const e of performance.getEntriesByType("resource")) note("loaded " + e.name);
  for (const e of document.querySelectorAll("svg")) {
    const box = e.getBoundingClientRect();
    if (getComputedStyle(e.parentElement).display !== "none" && (box.width < 100 || box.height < 60)) note("flat");
  }
  document.body.innerHTML = "<p>" + JSON.stringify(found) + "</p>";
}, 300));
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_an_error_a_request_or_a_bar(run, tmp_path, width):
    directory = saved(tmp_path / "run", "InvertedPendulum-v4", episode_length=12)
    for name in ("metrics.jsonl", "summary.json"):
        shutil.copy(run / name, directory / name)
    looked_at = tmp_path / "page.html"
    looked_at.write_bytes(recorded.page(directory, rollout=True).replace(b"<body>", b"<body>" + LOOKING.encode(), 1))
    arguments = [
        "--headless",
        "--no-sandbox",
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
    ]
    arguments += [
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},2000",
        "--virtual-time-budget=5000",
    ]
    done = subprocess.run(
        ["chromium", *arguments, "--dump-dom", looked_at.as_uri()], capture_output=True, text=True, timeout=300
    )
    assert "<p>[]</p>" in done.stdout, done.stdout[-2000:]

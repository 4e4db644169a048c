"""Pictures of masks: every panel shows something, every name can be read, and each cell has the colour of its link."""

import dataclasses
import io
import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from rlx2_jax import policies
from rlx2_jax.config import resolve
from rlx2_jax.envs.labels import Labels
from rlx2_jax.io import files
from rlx2_jax.networks import masking
from rlx2_jax.networks.structure import structure, templates
from rlx2_jax.policies import Policy, history
from rlx2_jax.training import train
from rlx2_jax.viz import curves, film, masks
from tests.conftest import PAPER_AGENTS, launch_here, small

ROWS = [
    {"env_steps": 400 * k, "return_mean": 1.0, "replay_size": 300 * k, "policy_distance": 0.3 / k} for k in (1, 2, 3)
]


def random_masks(config, sizes, rng):
    """Masks with as many links as a configuration makes, of any network."""
    like, made = templates(config, *sizes), {}
    for name, own in structure(config, *sizes).items():
        kernels = []
        for kernel, count in zip(masking.kernels(like[name]), own.links, strict=True):
            flat = np.arange(np.prod(kernel.shape[-2:])) < count
            flat = np.broadcast_to(flat, (*kernel.shape[:-2], flat.size))
            kernels.append(rng.permuted(flat, axis=-1).reshape(kernel.shape))
        made[name] = masking.with_kernels(jax.tree.map(lambda leaf: np.ones(leaf.shape, bool), like[name]), kernels)
    return made


def of(path, sizes=(5, 2), snapshots=4, seed=0, **changes):
    """A history of random masks, its policy, and its configuration."""
    rng, config = (
        np.random.default_rng(seed),
        resolve(small(**{"actor_sparsity": 0.6, "critic_sparsity": 0.5} | changes)),
    )
    config = dataclasses.replace(config, total_steps=snapshots * config.eval_every)
    names = [f"a_joint_with_a_long_name_{i}_velocity" for i in range(sizes[0])], [f"motor_{i}" for i in range(sizes[1])]
    labels = Labels.read({"observation_names": names[0], "action_names": names[1]}, *sizes)
    describe = lambda steps: policies.describe(config, steps, None, sizes, labels)
    course = [random_masks(config, sizes, rng) for _ in range(snapshots)]
    recorder = history.Recorder(path, config, sizes, describe)
    recorder.begin(0, {n: [np.packbits(k) for k in masking.kernels(tree)] for n, tree in course[0].items()})
    for k, each in enumerate(course[1:], 1):
        recorder.add(k * config.eval_every, each)
    weights = jax.tree.map(lambda mask: np.where(mask, rng.normal(size=mask.shape), 0), course[-1]["actor"])
    return history.load(path), Policy(weights, describe(0)), config.to_dict()


def figures(recorded, policy):
    yield from (masks.draw_strip(recorded, network) for network in history.NETWORKS)
    yield from (masks.draw_inputs(recorded, policy), masks.draw_layers(recorded))


def assert_legible(figure):
    """Every panel has something in it, and a heading or the name of an axis; names beside it do not overlap."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    assert "sparsity" in figure.get_suptitle()
    titles = []
    for axis in figure.axes:
        assert axis.has_data()
        assert axis.get_title() or axis.get_ylabel()
        title = axis.title.get_window_extent()
        assert title.x0 >= 0 and title.x1 <= width, "cut off"
        titles += [title] * bool(axis.get_title())
        low, high = sorted(axis.get_ylim())
        ticks = [tick for tick in axis.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes = [tick.label1.get_window_extent() for tick in ticks if tick.label1.get_text()]
        boxes = sorted((box for box in boxes if box.width), key=lambda box: box.y0)
        for below, above in itertools.pairwise(boxes):
            assert below.y1 <= above.y0 + 1, "names overlap"
        ticks = [tick.label1 for tick in axis.xaxis.get_major_ticks() if tick.label1.get_visible()]
        low, high = sorted(axis.get_xlim())
        below = [label.get_window_extent() for label in ticks if low <= label.get_position()[0] <= high]
        for one, other in itertools.pairwise(sorted((box for box in below if box.width), key=lambda box: box.x0)):
            assert one.x1 < other.x0, "numbers overlap"
        for box in boxes:
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, "cut off"
    for one, other in itertools.combinations(titles, 2):
        assert not one.overlaps(other), "headings overlap"


class Encoders(nn.Module):
    """Reads all but three of the inputs first, and those by themselves."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        first, second = nn.Dense(self.widths[0])(x[..., 3:]), nn.Dense(self.widths[0])(x[..., :3])
        return nn.Dense(self.widths[-1])(nn.relu(first + second))


def encoders(features, initial):
    return Encoders(features)


def test_rows_of_a_matrix_that_reads_some_inputs_alone_have_no_names(tmp_path):
    recorded, *_ = of(tmp_path / "a.npz", network=f"{__name__}:encoders", method="set", sizes=(8, 2))
    first, second, *_ = masks._layers(recorded, "actor")
    assert [layer.masks.shape[1] for layer in (first, second)] == [5, 3]
    assert first.rows == () and first.axes[1] == "inputs"


@pytest.mark.parametrize("agent", PAPER_AGENTS)
@pytest.mark.parametrize("network", ["mlp", "layernorm", "simba"])
def test_every_panel_of_every_picture_shows_something_for_any_network(tmp_path, agent, network):
    for figure in figures(*of(tmp_path / "file", snapshots=2, agent=agent, network=network)[:2]):
        assert_legible(figure)


@pytest.mark.parametrize("sizes", [(1, 1), (348, 17)])
def test_names_can_be_read_of_one_input_and_of_many(tmp_path, sizes):
    for figure in figures(*of(tmp_path / "file", sizes)[:2]):
        assert_legible(figure)


def test_masks_that_never_moved_and_runs_without_a_policy_distance_have_pictures_too(tmp_path):
    recorded, policy, config = of(tmp_path / "file", snapshots=1)
    assert recorded.steps == (0,)
    for figure in (*figures(recorded, policy), masks.draw_inputs(recorded), masks.draw_buffer(ROWS, config)):
        assert_legible(figure)
    assert "beside" not in "".join(part.get_suptitle() for part in masks.draw_strip(recorded).subfigs)
    for axis in masks.draw_layers(recorded).axes:  # Lines, not a point at step 0 of an axis that says nothing.
        assert all(len(line.get_xdata()) == 2 for line in axis.lines) and not axis.get_xticks().size
    undisturbed = masks.draw_buffer([row | {"policy_distance": None} for row in ROWS], config)
    assert_legible(undisturbed)
    assert len(undisturbed.axes) == 1


def test_a_strip_tells_how_many_links_there_are_and_how_many_are_new(tmp_path):
    recorded, _, _ = of(tmp_path / "file", snapshots=3)
    first, *later = (axis.get_title() for axis in masks.draw_strip(recorded).axes[:3])
    layers = [recorded.masks(i, "actor")[0] for i in range(3)]
    links = int(layers[0].sum())
    assert first == f"step 0: {links:,} links ({100 * links / layers[0].size:.3g} %)"
    for k, title in enumerate(later, 1):
        new = int((layers[k] & ~layers[k - 1]).sum())
        assert title == f"step {400 * k:,}: {links:,} links ({100 * links / layers[k].size:.3g} %), {new} new"


@pytest.mark.parametrize(("sizes", "sparsity", "layer"), [((1, 1), 0.5, 2), ((20, 1), 0.5, 1), ((1, 1), 0.0, 1)])
def test_a_strip_is_of_the_first_layer_that_lacks_links(tmp_path, sizes, sparsity, layer):
    recorded, _, _ = of(tmp_path / "file", sizes, snapshots=2, hidden=(64, 64), actor_sparsity=sparsity)
    lacking = [k for k, mask in enumerate(recorded.masks(0, "actor"), 1) if not mask.all()]
    assert layer == (lacking or [1])[0]
    figure = masks.draw_strip(recorded)
    assert_legible(figure)
    above, below = figure.subfigs
    assert above.get_suptitle().startswith(f"actor, layer {layer} of 3, ")
    assert [axis.get_title()[:7] for axis in below.axes] == [f"layer {k}" for k in (1, 2, 3) if k != layer]


def test_a_cell_has_the_colour_of_what_became_of_its_link():
    before, now = np.array([[False, True], [True, False]]), np.array([[False, False], [True, True]])
    pixels = masks._pixels(before, now)
    corners = pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1]
    shown = ["#" + "".join(f"{part:02x}" for part in corner) for corner in corners]
    assert shown == [masks.PALETTE[name].lower() for name in ("absent", "dropped", "kept", "new")]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 4


def test_inputs_are_counted_by_name_and_those_that_nothing_reads_are_told(tmp_path):
    recorded, policy, _ = of(tmp_path / "file", actor_sparsity=0.9)
    kernel = np.array(policy.params["Dense_0"]["kernel"])
    kernel[2] = 0
    params = policy.params | {"Dense_0": policy.params["Dense_0"] | {"kernel": kernel}}
    figure = masks.draw_inputs(recorded, Policy(params, policy.about))
    axes = {axis.get_title(): axis for axis in figure.axes}
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    widths = lambda title: [bar.get_width() for bar in axes[title].patches]
    shown = zip(
        names, widths("links of the actor"), widths("links of a critic"), widths("sum of |w|, actor"), strict=True
    )
    actor, critic = (recorded.masks(-1, name)[0] for name in history.NETWORKS)
    for name, links, of_critic, weight in shown:
        i = recorded.labels.observation_names.index(name.removesuffix(" (unread)"))
        assert (links, of_critic) == (actor[i].sum(), critic[0, i].sum())
        assert weight == pytest.approx(np.abs(kernel[i]).sum())
        assert name.endswith("(unread)") or weight > 0
    assert sum(name.endswith("(unread)") for name in names) >= 1
    assert widths("links of a critic from actions") == critic[0, 5:].sum(1).tolist()


@pytest.mark.parametrize("sparsity", [0, 0.6])
def test_colours_of_links_from_each_input_have_a_range_that_holds_them(tmp_path, sparsity):
    recorded, policy, _ = of(tmp_path / "file", actor_sparsity=sparsity)
    links = np.stack([masks_of[0].sum(-1) for masks_of in (recorded.matrices(i, "actor") for i in range(4))])
    (image,) = (image for axis in masks.draw_inputs(recorded, policy).axes for image in axis.images)
    low, high = image.get_clim()
    assert (low, high) == ((0, links.max()) if sparsity == 0 else (links.min(), links.max())) and low < high


def test_a_film_has_a_picture_for_each_snapshot(tmp_path):
    recorded, _, _ = of(tmp_path / "file", snapshots=3)
    pictures = [*masks.animate(recorded, "critic")]
    assert len(pictures) == len(recorded.steps) == 3
    assert {picture.shape for picture in pictures} == {pictures[0].shape}
    assert all((a != b).any() for a, b in itertools.pairwise(pictures))
    assert not any(side % 2 for side in pictures[0].shape[:2]), "as MP4 needs it"
    orange = np.array([int(masks.PALETTE["new"][i : i + 2], 16) for i in (1, 3, 5)])
    seen = [int((picture == orange).all(-1).sum()) for picture in pictures]
    assert seen[0] < min(seen[1:]), "at first nothing is new but in the legend"
    with Image.open(io.BytesIO(film.write_gif(iter(pictures), masks.FPS, [*masks.PALETTE.values()]))) as gif:
        assert (gif.n_frames, gif.size) == (3, pictures[0].shape[1::-1])
        gif.seek(2)
        colors = {color for _, color in gif.convert("RGB").getcolors(2**16)}
    drawn = {tuple(int(code[i : i + 2], 16) for i in (1, 3, 5)) for code in masks.PALETTE.values()}
    assert drawn <= colors, "of these none is changed"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("drawn") / "run"
    train(small(), directory, show_progress=False)
    return directory


BEGINS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "gif": b"GIF8"}


@pytest.mark.parametrize(
    ("kind", "ending"),
    [("masks", "png"), ("masks", "gif"), ("inputs", "svg"), ("layers", "pdf"), ("buffer", "svg"), ("curves", "png")],
)
def test_the_launcher_draws_every_kind(run, tmp_path, kind, ending):
    output = tmp_path / "new" / f"picture.{ending}"
    whose = ["--network=critic"] if kind == "masks" else []
    done = launch_here("plot.py", f"--workdir={run}", f"--kind={kind}", f"--output={output}", *whose)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {output}\n", "")
    assert output.read_bytes().startswith(BEGINS[ending])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--kind=masks", "--output=a.png"], "nothing to draw; name runs with --workdirs, or one with --workdir."),
        (["--kind=masks", "--workdir={run}"], "nowhere to draw; name a file with --output, such as picture.png."),
        (["--kind=inputs", "--workdir={run}", "--output=a.gif"], "name a file that ends with .png, .pdf or .svg."),
        (["--kind=masks", "--workdir={run}", "--output=a.bmp"], "that ends with .png, .pdf, .svg, .gif or .mp4."),
        (["--kind=layers", "--workdirs={run},b", "--output=a.png"], "--kind=layers draws one run, not 2; name it with"),
        (["--kind=masks", "--workdir=b", "--output=a.png"], "b holds no run"),
        (["--kind=buffer", "--workdir={empty}", "--output=a.png"], "holds no evaluation yet; let its run go on."),
        (["--kind=masks", "--workdir={empty}", "--output=a.png"], "no masks at"),
        (["--kind=inputs", "--workdir={blind}", "--output=a.png"], "no policy at"),
        (["--network=critic", "--workdir={run}", "--output=a.png"], "--network says whose masks are drawn; leave it"),
        (["--title=a", "--kind=inputs", "--workdir={run}", "--output=a.png"], "--title is the heading of curves"),
        (["--kind=colours", "--workdir={run}", "--output=a.png"], "--kind"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence_and_nothing_is_written(run, tmp_path, arguments, sentence):
    places = {"run": run, "empty": tmp_path / "empty", "blind": tmp_path / "blind"}
    for name in ("empty", "blind"):
        places[name].mkdir()
        files.write_bytes(places[name] / "config.json", (run / "config.json").read_bytes())
    files.write_bytes(places["blind"] / history.NAME, (run / history.NAME).read_bytes())
    (tmp_path / "cwd").mkdir()
    done = launch_here("plot.py", *(each.format(**places) for each in arguments), cwd=tmp_path / "cwd")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.endswith(".\n") and done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert not list((tmp_path / "cwd").iterdir())


def test_a_run_can_be_drawn_while_it_goes_on_and_its_curve_names_it(run):
    config = resolve(small()).to_dict()
    assert curves.headline(config) == "rlx2 td3 on probe/action, seed 0, sparsity 90 % / 90 %"
    figure = curves.draw_run(files.read_json_lines(run / "metrics.jsonl"), curves.headline(config))
    FigureCanvasAgg(figure).draw()
    bias = next(axis for axis in figure.axes if axis.get_title() == "value at the start of episodes")
    legend = bias.get_legend().get_window_extent()
    for line in bias.lines:
        points = bias.transData.transform(np.column_stack(line.get_data()))
        assert not any(legend.contains(*point) for point in points), "the legend lies on no line"

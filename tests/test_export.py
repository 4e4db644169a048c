"""Policies as ONNX, JAX and NumPy files: they act as the policy does, without us, and say where they come from."""

import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys
import zipfile

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from rlx2_jax import envs, export, policies
from rlx2_jax.config import Config, resolve
from rlx2_jax.envs.labels import Labels
from rlx2_jax.errors import CheckpointError, ConfigError, FileError
from rlx2_jax.export import artifacts, c_source, numpy_archive, onnx_graph, program, xla_artifact
from rlx2_jax.export.describe import describe
from rlx2_jax.export.description import Description
from rlx2_jax.export.program import BINARY, REDUCTIONS, UNARY, Operation
from rlx2_jax.networks.structure import nets, structure
from rlx2_jax.training import workdirs
from tests import random_programs
from tests.conftest import cached, launch, launch_here
from tests.test_launchers import assert_refused

FORMATS = export.FORMATS

TRAINABLE = [
    (a, n) for a in ("td3", "sac", "droq") for n in ("mlp", "layernorm", "simba") if (a, n) != ("droq", "simba")
]


class Sorted(nn.Module):
    """A network with an operation that programs do not have."""

    outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(jnp.sort(nn.Dense(8)(x), -1))


def ordered(features, initial):
    return Sorted(features[-1])


def untrained(path, agent="sac", network="mlp", sparsity=0.9, hidden=(24, 24), env="Hopper-v4"):
    """A policy that has learned nothing, with as many links as a run's has, read from a run's directory."""
    sizes = envs.make(env).observation_size, envs.make(env).action_size
    config = resolve(
        Config(env=env, agent=agent, network=network, hidden=hidden, actor_sparsity=sparsity, kernel_init="lecun")
    )
    params = jax.jit(functools.partial(nets(config, sizes[1])["actor"].init, inputs=sizes[0]))(jax.random.PRNGKey(0))
    rng, links = np.random.default_rng(1), iter(structure(config, *sizes)["actor"].links)

    def sparse(leaf):
        if leaf.ndim != 2:
            return leaf + rng.normal(size=leaf.shape).astype(np.float32) / 10
        kept = rng.permutation(leaf.size).reshape(leaf.shape) < next(links)
        return np.asarray(leaf) * kept

    about = policies.describe(config, 300, 12.5, sizes, Labels.of(envs.make(env)))
    workdirs.prepare(path, config, resume=False, overwrite=False)
    policies.save(path / "policy.npz", jax.tree.map(sparse, params), about)
    return policies.load(path)


def deviation(artifact, policy, observations):
    expected = np.asarray(jax.jit(policy.act)(observations))
    return float(np.abs(np.asarray(artifact.act(observations)) - expected).max())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One policy of SAC on Hopper in three formats."""
    path = tmp_path_factory.mktemp("saved")
    policy = untrained(path / "run")
    return policy, export.save(policy, path, FORMATS), path


@pytest.mark.parametrize(("agent", "network"), TRAINABLE)
def test_a_policy_of_any_agent_and_network_acts_alike_in_each_format(agent, network, tmp_path):
    policy = untrained(tmp_path, agent, network)
    written = export.save(policy, tmp_path / "export", ("c", "onnx", "numpy"))
    for artifact in written.artifacts:
        assert artifact.deviation < 1e-6
        for batch in (0, 1, 7):
            assert np.asarray(artifact.act(np.ones((batch, 11), np.float32))).shape == (batch, 3)


def test_weights_of_8_bits_may_deviate_and_it_is_said_by_how_much(saved, tmp_path):
    policy, whole, _ = saved
    (rounded,) = export.save(policy, tmp_path, ["c"], int8=True).artifacts
    exact = whole.artifacts[FORMATS.index("c")]
    assert 1e-4 < rounded.deviation < 0.1
    summary = json.loads((tmp_path / export.SUMMARY).read_text())["artifacts"]["c"]
    assert summary == summary | {"deviation": rounded.deviation, "int8": True, "tanh": "libm"}
    expected = c_source.int8_error(whole.program, np.eye(11))
    found = np.abs(rounded.act(np.eye(11, dtype=np.float32)) - exact.act(np.eye(11, dtype=np.float32))).max()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_8_bits_change_is_measured_on_the_tasks_own_observations_and_returns(pendulum):
    flags = ("--workdir=run", "--format=c", "--int8", "--tanh=approximate", "--episodes=3", "--output=small", cached())
    done = launch_here("export.py", *flags, cwd=pendulum)
    assert done.returncode == 0, done.stderr
    assert "on 10,002 observations of InvertedPendulum-v4" in done.stdout
    found = json.loads((pendulum / "small" / "export.json").read_text())["check"]
    assert 0 < found["deviation"]["c"] < 0.1
    assert {name: len(returns) for name, returns in found["returns"].items()} == {"policy": 3, "c": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "network", "sparsity"), [(*pair, (0.9, 0.98)[i % 2]) for i, pair in enumerate(TRAINABLE)]
)
def test_ten_thousand_observations_of_a_task(agent, network, sparsity, tmp_path):
    """Of a random walk; a tenth of them also a thousand times as large, where float32 itself may be off by more."""
    policy = untrained(tmp_path, agent, network, sparsity, hidden=(256, 256))
    written = export.save(policy, tmp_path / "export", FORMATS)
    extreme = 1e3 * recorded()[::10]
    truth = np.stack([in_double(written.program, o) for o in extreme])
    allowed = 1e-5 + 3 * np.abs(policy.act(extreme) - truth).max()
    assert allowed < 1e-3
    for artifact in written.artifacts:
        assert deviation(artifact, policy, recorded()) < 1e-5
        assert np.abs(artifact.act(extreme) - truth).max() < allowed


def in_double(program_, observation):
    """The action by a program in double precision."""
    values = []
    for operation in program_:
        inputs = [values[i] for i in operation.inputs]
        values.append(observation.astype(np.float64) if not values else program.evaluate(operation, inputs))
    return values[-1]


@functools.cache
def recorded():
    """Observations `[10000, 11]` of Hopper-v4."""
    many = envs.VectorEnvironment(envs.make("Hopper-v4"), 40, 1000, 40)

    def step(state, key):
        action = jax.random.uniform(key, (40, 3), minval=-1)
        return many.step(state, action, key)[0], state.current.observation

    keys = jax.random.split(jax.random.PRNGKey(0), 251)
    found = jax.jit(lambda: jax.lax.scan(step, many.renew(many.init(), keys[0]), keys[1:])[1])()
    return np.asarray(found).reshape(-1, 11)


def everything(seed):
    """A program of every operation there is; each is read by the last one."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    operations = [Operation("input", (), 5), Operation("constant", (), 5, data=normal(5))]
    operations += [Operation("constant", (), 1, data=normal(1)), Operation("abs", (0,), 5)]
    operations += [Operation(name, (3,), 5) for name in UNARY]
    # Values up to 3, or exp of sums and powers would leave float32's accuracy.
    operations += [Operation("tanh", (len(operations) - 1,), 5), Operation("abs", (0,), 5)]
    tame = len(operations) - 2
    for name in BINARY:
        operations += [Operation(name, (3, other), 5) for other in (1, 2, tame) if name != "power" or other != 1]
    operations += [Operation(name, (0,), 1) for name in REDUCTIONS]
    places = {o.name: k for k, o in enumerate(operations)}
    operations.append(Operation("select", (places["greater"], 0, 2), 5))
    operations.append(Operation("select", (places["equal"], 1, places["sum"]), 5))
    operations.append(Operation("take", (0,), 3, indices=(4, 0, 4)))
    operations.append(Operation("take", (2,), 4, indices=(0,) * 4))
    weight = normal(5, 6) * (rng.random((5, 6)) < 0.3)
    operations.append(Operation("linear", (0,), 6, weight=weight, bias=normal(6)))
    every = tuple(range(len(operations)))
    operations.append(Operation("concat", every, sum(o.size for o in operations)))
    return tuple(operations)


def described(program_):
    names = lambda kind, count: tuple(f"{kind} {i} é" for i in range(count))
    inputs, outputs = program_[0].size, program_[-1].size
    ones = (1.0,) * outputs
    return Description(
        "all", names("in", inputs), names("out", outputs), tuple(-x for x in ones), ones, {"env": "none"}
    )


def observations_of(program_, batch, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 3, (batch, program_[0].size)).astype(np.float32)


def run(program_, observations):
    with np.errstate(all="ignore"):
        return np.stack([program.run(program_, o) for o in observations])


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_onnx_has_every_operation(batch):
    every = everything(batch)
    act = onnx_graph.load(onnx_graph.write(every, described(every)))
    observations = observations_of(every, batch)
    found = act(observations)
    assert found.shape == (batch, every[-1].size)
    if batch:
        np.testing.assert_allclose(found, run(every, observations), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["constant", "take"])
def test_a_policy_that_reads_nothing_gives_as_many_actions_as_there_are_observations(name):
    always = (Operation("input", (), 3), Operation("constant", (), 2, data=np.asarray([0.5, -1], np.float32)))
    if name == "take":
        always = (*always, Operation("take", (1,), 2, indices=(1, 0)))
    act = onnx_graph.load(onnx_graph.write(always, described(always)))
    action = program.run(always, np.zeros(3))
    for batch in (0, 1, 4):
        np.testing.assert_array_equal(act(np.zeros((batch, 3))), np.broadcast_to(action, (batch, 2)))


def test_an_onnx_file_says_what_it_is(saved):
    import onnx

    policy, _, path = saved
    model = onnx.load(path / "policy.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", onnx_graph.OPSET)]
    shape = lambda value: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
    assert [(v.name, shape(v)) for v in model.graph.input] == [("observation", ["batch", 11])]
    assert [(v.name, shape(v)) for v in model.graph.output] == [("action", ["batch", 3])]
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["observation_names"])[:2] == ["rootz_position", "rooty_angle"]
    assert json.loads(told["action_names"]) == ["thigh_joint", "leg_joint", "foot_joint"]
    assert json.loads(told["action_limits"]) == [[-1.0, 1.0]] * 3
    assert (told["env"], told["backend"], told["agent"], told["env_steps"]) == ("Hopper-v4", "mujoco", "sac", "300")
    assert (told["return_mean"], told["commit"]) == ("12.5", policy.about["commit"] or "unknown")
    assert "sac on Hopper-v4" in model.doc_string


def test_names_limits_and_origin_come_back_from_each_file(saved):
    policy, _, path = saved
    expected = describe(policy)
    assert expected.observation_names == tuple(policy.about["observation_names"])
    assert xla_artifact.load(path / "policy_jax.npz").description == expected
    assert numpy_archive.load(path / "policy_numpy.npz").description == expected
    summary = json.loads((path / export.SUMMARY).read_text())
    assert {k: summary[k] for k in ("name", "provenance")} == {"name": expected.name, "provenance": expected.provenance}
    assert set(summary["artifacts"]) == set(FORMATS)


def test_the_summary_says_what_compaction_took(saved):
    _, written, path = saved
    before, after = written.sizes
    summary = json.loads((path / export.SUMMARY).read_text())
    assert summary["compaction"]["before"]["widths"] == [11, 24, 24, 6]
    assert summary["compaction"]["before"]["bytes"] == 4 * (11 * 24 + 24 + 24 * 24 + 24 + 24 * 6 + 6)
    assert summary["compaction"]["after"] == json.loads(json.dumps(after._asdict()))
    assert after.bytes < before.bytes and after.connections <= before.connections
    assert summary["unread"] == [*written.unread]


@hypothesis.settings(max_examples=15)
@hypothesis.given(seed=st.integers(0, 2**31))
def test_random_programs_act_alike_in_onnx_and_numpy(seed, tmp_path_factory):
    made, directory = random_programs.random_program(seed), tmp_path_factory.mktemp("random")
    numpy_archive.save(directory / "a.npz", made, described(made))
    observations = np.random.default_rng(seed).normal(size=(5, made[0].size)).astype(np.float32)
    expected = run(made, observations)
    for act in (
        onnx_graph.load(onnx_graph.write(made, described(made))),
        numpy_runner_of(directory)(directory / "a.npz"),
    ):
        np.testing.assert_allclose(act(observations), expected, rtol=1e-4, atol=1e-4)


@hypothesis.settings(max_examples=20)
@hypothesis.given(seed=st.integers(0, 2**31))
def test_a_numpy_archive_is_read_as_it_was_written(seed, tmp_path_factory):
    every, path = random_programs.random_program(seed), tmp_path_factory.mktemp("numpy") / "a.npz"
    numpy_archive.save(path, every, described(every))
    read = numpy_archive.load(path)
    assert read.description == described(every)
    for before, after in zip(every, read.program, strict=True):
        for field in ("name", "inputs", "size", "indices"):
            assert getattr(before, field) == getattr(after, field)
        for field in ("data", "weight", "bias"):
            np.testing.assert_array_equal(getattr(before, field), getattr(after, field))


ALONE = """
import json, sys
class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("rlx2_jax", "flax", "brax", *GONE):
            raise ImportError(f"{name} is not here")
sys.meta_path.insert(0, Gone())
sys.path.insert(0, PLACE)
CODE
imported = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(json.dumps([many.tolist(), one.tolist(), sorted(name for name in imported if not name.startswith("_"))]))
"""


def alone(code, place, gone):
    """What an isolated process prints that can import neither us nor other packages."""
    code = f"GONE, PLACE = {gone!r}, {str(place)!r}\n" + ALONE.replace("CODE", code)
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


NUMPY = """
import numpy, policy
act = policy.load(PLACE + "/policy_numpy.npz")
observations = numpy.load(PLACE + "/observations.npy")
many, one = act(observations), act(observations[0])
"""

JAX = """
import numpy, jax.export
file = numpy.load(PLACE + "/policy_jax.npz")
act = jax.export.deserialize(bytearray(file["function"])).call
observations = numpy.load(PLACE + "/observations.npy")
many, one = act(observations), act(observations[:1])[0]
"""


@pytest.mark.parametrize(("code", "gone"), [(NUMPY, ("jax", "scipy")), (JAX, ("optax",))], ids=["numpy", "jax"])
def test_an_artefact_acts_where_we_are_not(code, gone, saved):
    policy, _, path = saved
    observations = np.random.default_rng(3).normal(size=(5, 11)).astype(np.float32)
    np.save(path / "observations.npy", observations)
    many, one, imported = alone(code, path, gone)
    np.testing.assert_allclose(many, policy.act(observations), atol=1e-6)
    np.testing.assert_allclose(one, policy.act(observations[0]), atol=1e-6)
    if code == NUMPY:
        assert imported == ["numpy", "policy"]


def test_the_runner_has_every_operation(tmp_path):
    every = everything(0)
    numpy_archive.save(tmp_path / "a.npz", every, described(every))
    act = numpy_runner_of(tmp_path)(tmp_path / "a.npz")
    for batch in (0, 1, 7):
        observations = observations_of(every, batch)
        assert act(observations).shape == (batch, every[-1].size)
        if batch:
            np.testing.assert_allclose(act(observations), run(every, observations), rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(act(observations[0]), program.run(every, observations[0]))


def numpy_runner_of(directory):
    numpy_archive.save_runner(directory / "policy.py")
    spec = importlib.util.spec_from_file_location("policy", directory / "policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load


def test_a_jax_artefact_is_of_all_platforms_and_calls_nothing_of_ours(saved):
    _, _, path = saved
    exported = xla_artifact.load(path / "policy_jax.npz").exported
    assert exported.platforms == ("cpu", "cuda", "tpu")
    text = exported.mlir_module()
    # JAX sees by one that there is a batch, and takes it out when it compiles.
    assert {line.split("custom_call @")[1].split("(")[0] for line in text.splitlines() if "custom_call @" in line} <= {
        "shape_assertion"
    }
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products and all("HIGHEST" in line for line in products)


@pytest.mark.parametrize(
    ("name", "load"), [("policy_jax.npz", xla_artifact.load), ("policy_numpy.npz", numpy_archive.load)]
)
def test_a_damaged_artefact_is_refused_or_read_as_what_it_was(name, load, saved, tmp_path):
    whole = (saved[2] / name).read_bytes()
    path, rng, refused = tmp_path / name, np.random.default_rng(0), 0
    positions = rng.integers(0, len(whole), 40)
    for position in positions:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 64]) + whole[position + 1 :])
        try:
            load(path)
        except CheckpointError:
            refused += 1
    assert refused > len(positions) / 2
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="write it again"):
        load(path)


def rewritten(path, target, change):
    """A copy of an archive with another `about`."""
    with np.load(path) as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    change(about)
    arrays["about"] = np.asarray(json.dumps(about))
    np.savez(target, **arrays)


def step(k, **changes):
    return lambda about: about["program"][k].update(changes)


def also(**changes):
    return lambda about: about.update(changes)


FAULTY = {
    "of another format": also(format=2),
    "without a program": lambda about: about.pop("program"),
    "with an empty program": also(program=[]),
    "with a program of numbers": also(program=[1]),
    "with an unknown operation": step(-1, name="sort"),
    "that reads itself": step(-1, inputs=[10**6]),
    "that reads what is not there yet": lambda about: about["program"][1].update(inputs=[1]),
    "that reads nothing": step(-1, inputs=[]),
    "with two observations": step(1, name="input", inputs=[]),
    "with another number of connections": step(1, connections=1),
    "with more connections than places": step(1, connections=10**12),
    "with other inputs": step(1, **{"from": 7}),
    "with a huge layer": step(1, size=1 << 16),
    "of a size below 0": step(1, size=-1),
    "with fewer names": lambda about: about["observation_names"].pop(),
    "with no names": also(action_names=None),
    "with names of two lines": also(action_names=["a\nb", "c", "d"]),
    "with limits that are upside down": also(action_low=[1, 1, 1], action_high=[-1, -1, -1]),
    "with infinite limits": also(action_high=[float("inf")] * 3),
    "with a provenance of numbers": also(provenance={"env": 3}),
}


@pytest.mark.parametrize("change", FAULTY.values(), ids=FAULTY)
def test_an_archive_that_is_not_what_it_says_is_refused(change, saved, tmp_path):
    rewritten(saved[2] / "policy_numpy.npz", tmp_path / "a.npz", change)
    with pytest.raises(CheckpointError, match=r"^the archive .*\.$"):
        numpy_archive.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("member", "values", "said"),
    [
        ("1/indices", lambda x: x + 1000, "reads what is not there"),
        ("1/indices", lambda x: x - 1000, "reads what is not there"),
        ("1/starts", lambda x: x[::-1], "not in order"),
        ("1/values", lambda x: x * np.float32("nan"), "not finite"),
        ("1/values", lambda x: x.astype(np.float64), "float64"),
    ],
)
def test_an_archive_with_impossible_connections_is_refused(member, values, said, saved, tmp_path):
    with np.load(saved[2] / "policy_numpy.npz") as file:
        arrays = dict(file)
    arrays[member] = values(arrays[member])
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CheckpointError, match=said):
        numpy_archive.load(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (also(sizes=[12, 3]), "of other sizes"),
        (also(sizes=[11, 2]), "of other sizes"),
        (also(bytes=5), "function is uint8"),
        (also(bytes=-5), "impossible shapes"),
        (also(name=3), "name=3"),
    ],
)
def test_a_jax_artefact_that_is_not_what_it_says_is_refused(change, said, saved, tmp_path):
    rewritten(saved[2] / "policy_jax.npz", tmp_path / "a.npz", change)
    with pytest.raises(CheckpointError, match=said):
        xla_artifact.load(tmp_path / "a.npz")


def test_bytes_that_are_no_function_are_refused(saved, tmp_path):
    def shorter(about):
        about["bytes"] = 100

    rewritten(saved[2] / "policy_jax.npz", tmp_path / "a.npz", shorter)
    with np.load(tmp_path / "a.npz") as file:
        arrays = dict(file) | {"function": np.arange(100, dtype=np.uint8)}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(CheckpointError, match="cannot be used"):
        xla_artifact.load(tmp_path / "a.npz")
    with pytest.raises(ConfigError, match="onnxruntime has no use"):
        onnx_graph.load(b"nothing")


def test_an_artefact_that_acts_otherwise_is_an_error(saved, monkeypatch, tmp_path):
    policy, written, _ = saved
    slightly = (*written.program[:-1], Operation("sin", written.program[-1].inputs, 3))
    monkeypatch.setattr(artifacts.compaction, "compact", lambda program_: slightly)
    with pytest.raises(ConfigError, match=r"policy_numpy.npz would deviate from the policy by .*, more than 1e-05"):
        export.save(policy, tmp_path, ["numpy"])
    assert not list(tmp_path.iterdir())


def test_where_rounding_matters_more_than_usual_an_artefact_may_deviate_as_much_and_no_more(monkeypatch, tmp_path):
    policy = untrained(tmp_path / "run", "td3", sparsity=0.0, hidden=(256, 256))
    steep = jax.tree.map(np.array, policy.params)
    # Halves of a layer that are alike, and are subtracted: what is left has the rounding of large numbers.
    for leaf in steep["Dense_1"].values():
        leaf[..., 128:] = leaf[..., :128]
    large = 1000 * np.random.default_rng(0).normal(size=(128, 3)).astype(np.float32)
    steep["Dense_2"]["kernel"] += np.concatenate((large, -large))
    policy = policy._replace(params=steep)
    written = export.save(policy, tmp_path / "export", ("c", "onnx", "numpy"))
    assert max(artifact.deviation for artifact in written.artifacts) > artifacts.TOLERANCE
    compact = artifacts.compaction.compact

    def coarse(whole):
        """The same in half precision."""
        half = lambda weight: None if weight is None else weight.astype(np.float16).astype(np.float32)
        return tuple(dataclasses.replace(o, weight=half(o.weight)) for o in compact(whole))

    monkeypatch.setattr(artifacts.compaction, "compact", coarse)
    with pytest.raises(ConfigError, match="deviate"):
        export.save(policy, tmp_path / "other", ["numpy"])


def test_a_network_that_no_program_can_hold_goes_as_jax_alone(tmp_path):
    policy = untrained(tmp_path / "run", network=f"{__name__}:ordered", sparsity=0.5)
    with pytest.raises(ConfigError, match=r"\(sort\); use --format=jax"):
        export.save(policy, tmp_path / "out", FORMATS)
    assert not (tmp_path / "out").exists()
    written = export.save(policy, tmp_path / "out", ["jax"])
    assert (written.sizes, written.program) == (None, None)
    assert written.artifacts[0].deviation == 0
    done = launch_here("export.py", "--workdir=run", "--format=numpy", cwd=tmp_path)
    assert_refused(done, "(sort); use --format=jax")


def test_what_is_written_is_an_error_where_it_cannot_be(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        export.save(saved[0], tmp_path / "file", ["numpy"])


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """The directory of a run on InvertedPendulum-v4 that has learned nothing."""
    path = tmp_path_factory.mktemp("pendulum")
    untrained(path / "run", hidden=(16, 16), env="InvertedPendulum-v4", sparsity=0.6)
    return path


def test_the_launcher_writes_what_it_says(pendulum):
    done = launch("export.py", "--workdir=run", "--format=numpy,c,onnx,numpy", "--output=out", cached(), cwd=pendulum)
    assert done.returncode == 0, done.stderr
    assert "widths" in done.stdout and "connections" in done.stdout and "inputs that nothing reads: " in done.stdout
    assert {p.name for p in (pendulum / "out").iterdir()} == {
        "policy.c",
        "policy.h",
        "policy.onnx",
        "policy_numpy.npz",
        "policy.py",
        "export.json",
    }
    assert done.stdout.count("deviates from the policy by ") == 3
    found = numpy_archive.load(pendulum / "out" / "policy_numpy.npz").description
    assert (found.action_names, found.action_low, found.action_high) == (("slide",), (-3.0,), (3.0,))


def test_episodes_that_begin_alike_end_alike_through_each_format(pendulum):
    done = launch_here(
        "export.py", "--workdir=run", f"--format={','.join(FORMATS)}", "--check", "--episodes=4", cached(), cwd=pendulum
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((pendulum / "run" / "export" / "export.json").read_text())["check"]
    expected = found["returns"].pop("policy")
    assert len(expected) == 4 and min(expected) > 1
    for name in FORMATS:
        assert found["deviation"][name] < 1e-5
        # A step more or less is what rounding may make of a fall.
        np.testing.assert_allclose(found["returns"][name], expected, atol=1)


REFUSED = {
    "--format=pdf": "unknown format 'pdf'; valid: c, onnx, jax, numpy.",
    "--policy=worst": "unknown policy 'worst'; valid: last, best.",
    "--policy=best": "no policy at run/policy_best.npz",
    "--workdir=nowhere": "nowhere holds no run",
    "--workdir=": "flag --workdir=: name a path",
    "--output=/proc/nowhere": "/proc/nowhere cannot be written",
    "--format=numpy --tanh=approximate": "tanh=approximate is for the format c; name it with --format.",
    "--format=numpy --int8": "int8 is for the format c; name it with --format.",
    "--episodes=0": "episodes=0: use at least 1.",
    "--tanh=fast": "flag --tanh=fast",
    "--check --episodes=2000000000": "2,000,000,000 episodes at once need",
}


@pytest.mark.parametrize("flag", REFUSED)
def test_an_export_that_cannot_be_is_refused_and_writes_nothing(flag, pendulum):
    before = sorted(pendulum.rglob("*"))
    assert_refused(launch_here("export.py", "--workdir=run", *flag.split(), cwd=pendulum), REFUSED[flag])
    assert sorted(pendulum.rglob("*")) == before


def test_an_export_needs_a_run(tmp_path):
    assert_refused(launch_here("export.py", cwd=tmp_path), "no workdir given")


def test_a_format_whose_package_is_missing_is_refused_by_its_extra_and_left_out_by_default(pendulum, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnx" else there(name, *more))
    assert "onnx" not in export.available() and {"jax", "numpy"} < set(export.available())
    done = launch_here("export.py", "--workdir=run", "--format=numpy,onnx", cwd=pendulum)
    assert_refused(done, "pip install 'rlx2-jax[onnx]'")
    with pytest.raises(ConfigError, match=r"rlx2-jax\[onnx\]"):
        export.save(policies.load(pendulum / "run"), pendulum / "not", ["onnx"])


def test_files_of_archives_hold_no_pickles(saved):
    for name in ("policy_jax.npz", "policy_numpy.npz"):
        with zipfile.ZipFile(saved[2] / name) as archive, np.load(saved[2] / name, allow_pickle=False) as file:
            assert archive.testzip() is None
            assert all(file[member].dtype != object for member in file.files)

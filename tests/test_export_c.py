"""Policies in C: they compute what their programs do, wherever they are compiled, and nothing else."""

import dataclasses
import re
import shutil
import subprocess

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rlx2_jax.errors import ConfigError
from rlx2_jax.export import c_formulas, c_layout, c_matrices, c_source, compaction, program, tracing
from rlx2_jax.export.program import Operation

from . import c_builds, random_programs
from .c_builds import COMPILERS
from .test_export_program import INPUTS, OUTPUTS, sparse_network

LIBM = {"tanhf", "expf", "expm1f", "logf", "log1pf", "sqrtf", "sinf", "cosf", "powf"}

NETWORKS = [(name, density) for name in ("mlp", "layernorm", "simba") for density in (0.1, 0.02)]

SEEDS = range(24)


def network_program(name: str, density: float) -> program.Program:
    return compaction.compact(tracing.program_of(sparse_network(name, 1, density, (64, 64)), INPUTS))


def layer(weight: np.ndarray, then: str = "") -> program.Program:
    """One matrix, and what is made of its outputs."""
    inputs, outputs = weight.shape
    bias = np.linspace(-1, 1, outputs).astype(np.float32)
    linear = Operation("linear", (0,), outputs, weight=weight.astype(np.float32), bias=bias)
    return (Operation("input", (), inputs), linear, *[Operation(then, (1,), outputs)][: bool(then)])


def exact(program_: program.Program, observation: np.ndarray) -> np.ndarray:
    """The action in double precision."""
    values: list[np.ndarray] = []
    for operation in program_:
        inputs = [values[i] for i in operation.inputs]
        values.append(observation.astype(float) if operation.name == "input" else program.evaluate(operation, inputs))
    return values[-1]


def allowed(program_: program.Program, observations: np.ndarray) -> np.ndarray:
    """Differences from the interpreter, which itself is off where a program is ill conditioned."""
    rounding = [np.abs(program.run(program_, o) - exact(program_, o)) for o in observations]
    return 1e-5 + 10 * np.stack(rounding)


def run_all(program_: program.Program, observations: np.ndarray) -> np.ndarray:
    return np.stack([program.run(program_, observation) for observation in observations])


def write(program_: program.Program, **options) -> c_source.CSource:
    return c_source.write(program_, c_builds.describe(program_), **options)


def test_the_random_programs_need_every_operation():
    needed = set()
    for seed in SEEDS:
        made = random_programs.random_program(seed)
        layout = c_layout.lay_out(made)
        needed |= {made[k].name for k in (*layout.steps, *layout.expanded)}
    assert needed >= {*random_programs.ALL} - {"constant"}


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("seed", SEEDS)
def test_random_programs_are_computed_as_the_interpreter_does(seed, compiler, tmp_path):
    made = random_programs.random_program(seed)
    library = c_builds.Library(write(made), tmp_path, compiler)
    observations = np.random.default_rng(seed).normal(size=(100, made[0].size)).astype(np.float32)
    status, actions = library.act(observations, made[-1].size)
    expected = run_all(made, observations)
    assert not status.any()
    assert (np.abs(actions - expected) <= allowed(made, observations)).all()
    assert library.self_test() == 0


@pytest.mark.parametrize(("name", "density"), NETWORKS)
def test_sparse_networks_act_as_their_programs_on_any_observation(name, density, tmp_path):
    made = network_program(name, density)
    library = c_builds.Library(write(made), tmp_path)
    rng = np.random.default_rng(0)
    scales = np.repeat([0, 1e-40, 1e-6, 1, 1, 1, 30, 1e4], 150)[:, None]
    observations = (rng.normal(size=(len(scales), INPUTS)) * scales).astype(np.float32)
    status, actions = library.act(observations, OUTPUTS)
    expected = run_all(made, observations)
    assert not status.any()
    assert (np.abs(actions - expected) <= allowed(made, observations)).all()
    ordinary = (scales <= 1)[:, 0]
    assert np.abs(actions - expected)[ordinary].max() <= 1e-5
    assert np.median(np.abs(actions - expected)[ordinary]) <= 2**-23
    # In the actuators' units.
    description = c_builds.describe(made)
    low, high = np.float32(description.action_low), np.float32(description.action_high)
    status, scaled = library.act(observations, OUTPUTS, "act_scaled")
    assert not status.any()
    assert ((scaled >= low) & (scaled <= high)).all()
    np.testing.assert_allclose(scaled, low + (actions + 1) / 2 * (high - low), rtol=0, atol=2e-6)


@pytest.mark.parametrize("then", ["", "tanh"])
def test_what_is_not_finite_gives_zero_and_says_so(then, tmp_path):
    made = layer(np.random.default_rng(0).normal(size=(4, 3)) * 4, then)
    description = c_builds.describe(made)
    library = c_builds.Library(c_source.write(made, description), tmp_path)
    observations = np.ones((12, 4), np.float32)
    for row, value in enumerate((np.nan, np.inf, -np.inf)):
        for column in range(4):
            observations[4 * row + column, column] = value
    status, actions = library.act(observations, 3)
    assert status.all() and not actions.any()
    status, actions = library.act(observations, 3, "act_scaled")
    middle = (np.float32(description.action_low) + np.float32(description.action_high)) / 2
    assert status.all() and (actions == middle).all()
    # Finite, but too large for sums of float32.
    status, actions = library.act(np.array([[3e38, 3e38, 3e38, 3e38], [3e38, -3e38, 3e38, -3e38]]), 3)
    assert np.isfinite(actions).all()
    assert not actions[status == 1].any()
    assert (np.abs(actions[status == 0]) == 1).all() if then else status.all()


def test_a_program_without_operations_hands_over_what_there_is(tmp_path):
    data = np.array([0.25, -0.5], np.float32)
    whole = (Operation("input", (), 2),)
    library = c_builds.Library(write(whole), tmp_path / "input")
    assert library.act(data[None], 2)[1].tolist() == [data.tolist()]
    for data in (np.array([0.25, -0.5], np.float32), np.full(2, -0.5, np.float32)):
        library = c_builds.Library(
            write((*whole, Operation("constant", (), 2, data=data))), tmp_path / f"constant{data[0]}"
        )
        assert library.act(np.ones((1, 2)), 2)[1].tolist() == [data.tolist()]


@pytest.mark.parametrize(
    ("inputs", "index"),
    [(256, "uint8_t"), (257, "uint16_t"), (65536, "uint16_t"), (65537, "uint32_t")],
)
def test_indices_and_counts_are_of_the_smallest_type_that_fits(inputs, index, tmp_path):
    rng = np.random.default_rng(0)
    weight = np.zeros((inputs, 3))
    weight[inputs - 1, 0] = 2
    weight[rng.integers(0, inputs, 7), 1] = 3
    observations = rng.normal(size=(3, inputs)).astype(np.float32)
    source = write(layer(weight, "tanh"), self_test=observations[:1])
    assert f"static const {index} index_1[" in source.source
    assert "static const uint8_t count_1[3]" in source.source
    library = c_builds.Library(source, tmp_path)
    np.testing.assert_allclose(
        library.act(observations, 3)[1], run_all(layer(weight, "tanh"), observations), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("links", "count"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32)]
)
def test_counts_of_links_are_of_the_smallest_type_that_fits(links, count):
    weight = np.zeros((200_000, 2), np.float32)
    weight[:links, 0] = 1
    stored = c_matrices.store(weight, int8=False)
    assert stored.counts is not None and stored.counts.dtype == count
    assert stored.counts.tolist() == [links, 0]


@hypothesis.given(
    seed=st.integers(0, 2**31),
    density=st.floats(0, 1),
    sides=st.tuples(st.integers(1, 400), st.integers(1, 40)),
    int8=st.booleans(),
)
def test_a_matrix_is_stored_whole_and_in_the_smaller_form(seed, density, sides, int8):
    rng = np.random.default_rng(seed)
    weight = np.where(rng.random(sides) < density, rng.normal(size=sides), 0).astype(np.float32)
    stored = c_matrices.store(weight, int8=int8)
    values = c_matrices.quantise(weight)[0] if int8 else weight
    links = np.count_nonzero(values)
    sparse_bytes = links * (values.itemsize + (1 if sides[0] <= 256 else 2))
    assert sum(a.nbytes for name, a in stored.arrays().items() if name != "scale") <= min(
        values.nbytes, sparse_bytes + 2 * sides[1]
    )
    if stored.sparse:
        found = np.zeros_like(values)
        found[stored.indices, np.repeat(np.arange(sides[1]), stored.counts)] = stored.values
        np.testing.assert_array_equal(found, values)
    else:
        np.testing.assert_array_equal(stored.values.reshape(sides), values)


@pytest.mark.parametrize("density", [0.05, 1.0])
def test_int8_weights_are_off_by_half_a_scale_at_most(density, tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(50, 20)) * np.exp(rng.normal(size=20)) * (rng.random((50, 20)) < density)
    weight[:, 3] = 0
    made = layer(weight)
    observations = rng.normal(size=(200, 50)).astype(np.float32)
    library = c_builds.Library(write(made, int8=True, self_test=observations[:9]), tmp_path)
    actions, expected = library.act(observations, 20)[1], run_all(made, observations)
    scale = np.abs(weight).max(0) / 127
    bound = np.abs(observations).sum(1, keepdims=True) * scale / 2
    difference = np.abs(actions - expected)
    assert (difference <= bound + 1e-5 * (1 + np.abs(expected))).all()
    assert (difference[:, np.arange(20) != 3] > 0).any()
    assert c_source.int8_error(made, observations) == pytest.approx(difference.max(), rel=1e-3)
    np.testing.assert_allclose(actions, run_all(c_matrices.quantised(made), observations), rtol=1e-5, atol=1e-5)
    assert library.self_test() == 0


@pytest.mark.parametrize(("name", "density"), NETWORKS[::2])
def test_int8_networks_compute_their_rounded_weights(name, density, tmp_path):
    made = network_program(name, density)
    library = c_builds.Library(write(made, int8=True), tmp_path)
    observations = np.random.default_rng(0).normal(size=(300, INPUTS)).astype(np.float32)
    actions = library.act(observations, OUTPUTS)[1]
    np.testing.assert_allclose(actions, run_all(c_matrices.quantised(made), observations), rtol=0, atol=1e-5)
    error = c_source.int8_error(made, observations)
    assert np.abs(actions - run_all(made, observations)).max() == pytest.approx(error, abs=1e-5)


def test_the_approximate_tanh_is_as_near_as_it_says(tmp_path):
    size = 1 << 14
    made = (Operation("input", (), size), Operation("tanh", (0,), size))
    library = c_builds.Library(write(made, tanh="approximate"), tmp_path)
    bits = np.random.default_rng(0).integers(0, 2**32, 30 * size, np.uint32).view(np.float32)
    spread = np.linspace(-10, 10, 60 * size, dtype=np.float32)
    x = np.concatenate([np.where(np.isfinite(bits), bits, 0), spread]).reshape(-1, size)
    status, y = library.act(x, size)
    assert not status.any()
    assert np.abs(y - np.tanh(x.astype(float))).max() < c_formulas.TANH_ERROR
    assert np.abs(y).max() == 1
    np.testing.assert_array_equal(library.act(-x, size)[1], -y)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(("tanh", "int8"), [("libm", False), ("approximate", True), ("approximate", False)])
def test_nothing_is_needed_but_functions_of_libm(compiler, tanh, int8, tmp_path):
    for made in (network_program("simba", 0.1), random_programs.random_program(0)):
        path = c_builds.save(write(made, tanh=tanh, int8=int8), tmp_path)
        c_builds.compile_with(compiler, *c_builds.STRICT, "-ffreestanding", "-c", path, "-o", path.with_suffix(".o"))
        symbols = subprocess.run(["nm", path.with_suffix(".o")], capture_output=True, text=True, check=True).stdout
        undefined = set(re.findall(r"^\s+U (\w+)", symbols, re.MULTILINE))
        assert undefined <= LIBM | {"memcpy", "memset"}
        assert ("tanhf" in undefined) == (tanh == "libm" and any(o.name == "tanh" for o in made))
        # Nothing that can change: no data, and no zeros that are filled in later.
        assert not re.findall(r"^\w+ [dDbBC] ", symbols, re.MULTILINE)
        public = set(re.findall(r"^\w+ [TR] (\w+)", symbols, re.MULTILINE))
        assert public == {"policy_act", "policy_act_scaled", "policy_action_low", "policy_action_high"}


def test_a_perceptron_with_the_own_tanh_needs_nothing(tmp_path):
    path = c_builds.save(write(network_program("mlp", 0.1), tanh="approximate"), tmp_path)
    c_builds.compile_with("gcc", *c_builds.STRICT, "-ffreestanding", "-c", path, "-o", path.with_suffix(".o"))
    symbols = subprocess.run(["nm", "-u", path.with_suffix(".o")], capture_output=True, text=True, check=True).stdout
    assert set(symbols.split()) - {"U"} <= {"memcpy", "memset"}


def test_the_self_test_finds_a_weight_that_was_altered(tmp_path):
    source = write(network_program("mlp", 0.1))
    assert c_builds.Library(source, tmp_path / "whole").self_test() == 0
    start = source.source.index("float bias_")
    number = re.compile(r"-?\d\S*f").search(source.source, source.source.index("{", start))
    assert number
    altered = source.source[: number.start()] + "5.0f" + source.source[number.end() :]
    assert c_builds.Library(dataclasses.replace(source, source=altered), tmp_path / "altered").self_test() > 0


def test_a_self_test_of_what_is_not_finite_is_refused():
    policy = network_program("mlp", 0.1)
    with pytest.raises(ConfigError, match="self_test: a number in the observations is not finite"):
        write(policy, self_test=np.full((1, policy[0].size), np.nan))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_no_observation_makes_undefined_behaviour(compiler, tmp_path):
    if c_builds.lacks_sanitizers(compiler, tmp_path):
        pytest.skip(f"the sanitizers of {compiler} are not installed")
    made = network_program("layernorm", 0.1)
    c_builds.save(write(made), tmp_path)
    rng = np.random.default_rng(0)
    observations = rng.integers(0, 2**32, (400, INPUTS), np.uint32).view(np.float32)
    observations[:100] = rng.choice(np.float32([np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 0]), (100, INPUTS))
    c_builds.save_observations(observations, tmp_path)
    lines = c_builds.process(tmp_path, compiler, *c_builds.SANITIZERS).splitlines()
    assert lines.pop() == "0 mismatches"
    status = np.array([int(line[0]) for line in lines[::2]])
    words = [[int(word, 16) for word in line.split()[1:]] for line in lines[::2]]
    actions = np.array(words, np.uint32).view(np.float32)
    assert (np.abs(actions) <= 1).all()
    assert status[~np.isfinite(observations).all(1)].all()
    assert not actions[status == 1].any()


@pytest.mark.skipif(
    not (shutil.which("arm-none-eabi-gcc") and shutil.which("qemu-system-arm")),
    reason="arm-none-eabi-gcc or qemu-system-arm is not installed",
)
@pytest.mark.parametrize(("name", "int8"), [("mlp", False), ("mlp", True), ("simba", False)])
def test_a_cortex_m4_computes_the_same_bits(name, int8, tmp_path, record_property):
    # Square roots are exact everywhere; tanh is our own.
    path = c_builds.save(write(network_program(name, 0.1), tanh="approximate", int8=int8), tmp_path)
    rng = np.random.default_rng(0)
    scales = np.repeat([1e-40, 1, 100, 1e30], 16)[:, None]
    observations = (rng.normal(size=(len(scales), INPUTS)) * scales).astype(np.float32)
    observations[::7, 2] = np.inf
    c_builds.save_observations(observations, tmp_path)
    target = c_builds.cortex_m4(tmp_path)
    assert target == c_builds.process(tmp_path, "gcc", "-ffp-contract=off")
    assert target.endswith("0 mismatches\n")
    flags = (*c_builds.STRICT, *c_builds.CORTEX_M4)
    c_builds.compile_with("arm-none-eabi-gcc", *flags, "-c", path, "-o", path.with_suffix(".o"))
    command = ["arm-none-eabi-size", "-A", path.with_suffix(".o")]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code, constants = (
        sum(map(int, re.findall(rf"^\.{section}\S*\s+(\d+)", listed, re.MULTILINE))) for section in ("text", "rodata")
    )
    assert 0 < code < 4096
    form = f"{name}, {'int8' if int8 else 'float32'}"
    record_property("told", f"C for a Cortex-M4, {form}: {code} bytes of code, {constants} of constants")


@pytest.mark.parametrize("seed", range(5))
def test_the_text_is_the_same_each_time(seed):
    assert write(random_programs.random_program(seed)) == write(random_programs.random_program(seed))


@hypothesis.given(seed=st.integers(0, 2**31))
def test_no_value_in_memory_is_replaced_before_its_last_reader(seed):
    made = random_programs.random_program(seed, 25)
    layout = c_layout.lay_out(made)
    owners = np.full(layout.scratch, -1)

    def read(k: int, step: int) -> None:
        if k in layout.expanded:
            for i in made[k].inputs:
                read(i, step)
        elif made[k].name not in ("input", "constant"):
            place = slice(layout.offsets[k], layout.offsets[k] + made[k].size)
            assert (owners[place] == k).all(), f"value {k}, read by {step}"

    for step in layout.steps:
        for i in made[step].inputs:
            read(i, step)
        if step in layout.offsets:
            owners[layout.offsets[step] : layout.offsets[step] + made[step].size] = step


def test_a_long_chain_is_no_deep_expression(tmp_path):
    half = Operation("constant", (), 1, data=np.array([0.5], np.float32))
    names = ("multiply", "add", "negative") * 150
    chain = (Operation(name, (k + 2, 1)[: 1 if name == "negative" else 2], 3) for k, name in enumerate(names))
    made = (Operation("input", (), 3), half, Operation("add", (0, 1), 3), *chain)
    library = c_builds.Library(write(made), tmp_path)
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.testing.assert_array_equal(library.act(observations, 3)[1], run_all(made, observations))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1e-45, 3.4028235e38, 0.1])
def test_numbers_in_formulas_are_exact(value, tmp_path):
    same = Operation("constant", (), 1, data=np.array([value], np.float32))
    made = (Operation("input", (), 1), same, Operation("negative", (1,), 1), Operation("subtract", (0, 2), 1))
    library = c_builds.Library(write(made), tmp_path)
    zero = np.zeros((1, 1), np.float32)
    assert library.act(zero, 1)[1].tobytes() == run_all(made, zero).tobytes()


def test_a_perceptron_holds_two_layers_at_a_time():
    layout = c_layout.lay_out(tracing.program_of(sparse_network("mlp", 0, 0.5, (40, 30, 20)), INPUTS))
    assert layout.scratch == 40 + 30


def test_names_become_identifiers_each_once_and_texts_stay_in_their_comments(tmp_path):
    made = layer(np.ones((6, 2)))
    nasty = "*/ int x; /* \\\n??/ @ \u202e \x00 é"
    description = c_builds.describe(
        made,
        name=nasty,
        observation_names=("size", "a b", "a-b", "A_B_2", "", nasty),
        action_names=("int", "int"),
        provenance={nasty: nasty, "run": "OBSERVATION_NAMES ABOUT"},
    )
    source = c_source.write(made, description, name="Hopper")
    assert source.header.isascii() and source.source.isascii()
    names = re.findall(r"^    (HOPPER_\w+) = (\d+), ", source.header, re.MULTILINE)
    assert [int(number) for _, number in names] == [*range(6), *range(2)]
    assert [name.removeprefix("HOPPER_OBSERVATION_") for name, _ in names[:5]] == [
        *("SIZE_2", "A_B", "A_B_2", "A_B_2_2", "4"),
    ]
    assert len({name for name, _ in names}) == 8
    path = c_builds.save(source, tmp_path)
    c_builds.compile_with("gcc", *c_builds.STRICT, "-c", path, "-o", path.with_suffix(".o"))
    code = re.sub(r"/\*.*?\*/", "", source.header, flags=re.DOTALL)
    assert "int x" not in code and "OBSERVATION_NAMES ABOUT" not in code


def test_what_cannot_be_written_is_refused():
    made = layer(np.ones((2, 2)))
    for options in ({"name": "2x"}, {"name": "a b"}, {"name": "a;"}, {"name": "ä"}, {"tanh": "fast"}):
        with pytest.raises(ConfigError):
            write(made, **options)
    for changes in (
        {"observation_names": ("a",)},
        {"action_names": ("a", "b", "c")},
        {"action_low": (0.0,)},
        {"action_low": (-np.inf, 0.0)},
        {"action_high": (1.0, 1e39)},
        {"action_low": (3.0, 3.0), "action_high": (1.0, 1.0)},
    ):
        with pytest.raises(ConfigError):
            c_source.write(made, c_builds.describe(made, **changes))
    with pytest.raises(ConfigError, match="not finite"):
        write(layer(np.full((2, 2), np.inf)))

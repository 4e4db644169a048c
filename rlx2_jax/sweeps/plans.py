"""What a sweep is before anything starts: which runs there are, and which of them make one program.

    product   values of envs, agents, methods, sparsities, seeds and other fields -> configurations
    lay_out   configurations -> runs with names -> programs -> batches that fit the devices: a `Plan`

All of it is host arithmetic. Runs make one program when they differ in nothing but what is data there: `SHARED`. Data
are numbers, so the six methods, any sparsities and any seeds of one task and agent are one program.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlx2_jax import envs
from rlx2_jax.config import METHOD, OWN, VALUES, Config, RunConfig, Schedule, make_schedule, methods, presets, resolve
from rlx2_jax.errors import ConfigError, FileError, WorkdirError
from rlx2_jax.io import files
from rlx2_jax.networks.structure import structure
from rlx2_jax.policies import tickets
from rlx2_jax.runtime import memory
from rlx2_jax.training import workdirs
from rlx2_jax.training.programs import Program, make_program

PARALLEL = ("shard_map", "pmap", "processes")
"""Batches over a mesh of devices, the same by `jax.pmap`, or a process per run."""

SHARED = frozenset({*METHOD, *VALUES, *OWN})
"""Fields in which the runs of one batch may differ: data, or nothing that the program sees. A method of one's own is no
data."""

MEMORY_SHARE = 0.8
"""Share of a device's free memory for the states of runs; the rest is for what a program needs while it computes."""

LONGEST_NAME = 200
"""Bytes of a run's name; file systems take 255, and what stands aside while it is written has a longer one."""

MADE = ("sweep.csv", "sweep.json", "diverged.json", "batches")
"""What a sweep makes in its directory after its plan; each of its runs looks after its own."""

PRESET = "preset"
"""The sparsities of the paper's Table 2."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    """Name of its directory."""
    config: RunConfig
    """Its settings, with nothing left open."""


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Runs that are computed together."""

    name: str
    """Name of the directory of its checkpoint."""
    program: int
    """Batches of the same program and the same number of rows share one compilation."""
    runs: tuple[str, ...]
    """Names of its runs."""
    rows: int
    """At least as many as there are runs: a multiple of the number of devices; further rows are copies, thrown away."""
    bytes_per_row: int
    """Memory that one run takes."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep, laid out."""

    parallel: str
    """One of `PARALLEL`."""
    fields: tuple[str, ...]
    """Names of further fields that differ between runs: columns of the table."""
    runs: tuple[PlannedRun, ...]
    """Its runs, in the order of the table."""
    batches: tuple[PlannedBatch, ...]
    """Batches in the order in which they run; none where every run is a process."""
    devices: int
    """Devices in the mesh, over all hosts."""
    compiled: int = 0
    """Compilations of a batch that really happened, over all starts."""

    @property
    def compilations(self) -> int:
        """Compilations of a batch that one start needs at most."""
        return len({(batch.program, batch.rows) for batch in self.batches})

    def run(self, name: str) -> PlannedRun:
        """The run of a name."""
        return next(run for run in self.runs if run.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "parallel": self.parallel,
            "fields": list(self.fields),
            "devices": self.devices,
            "compilations": {"planned": self.compilations, "happened": self.compiled},
            "batches": [
                {
                    **dataclasses.asdict(batch),
                    "runs_per_device": batch.rows // self.devices,
                    "bytes_per_device": batch.rows // self.devices * batch.bytes_per_row,
                }
                for batch in self.batches
            ],
            "runs": {run.name: run.config.to_dict() for run in self.runs},
        }


def product(
    base: Config,
    *,
    envs: Sequence[str] = (),
    agents: Sequence[str] = (),
    methods: Sequence[str] = (),
    sparsities: Sequence[str | float | tuple[float, float]] = (),
    seeds: Sequence[int] = (),
    fields: Mapping[str, Sequence[Any]] | None = None,
) -> list[RunConfig]:
    """Every combination, resolved, without repetitions; an empty axis has the base's value.

    Args:
      base: all that does not vary, as it is written.
      envs: tasks.
      agents: algorithms.
      methods: training schemes.
      sparsities: `0.9` for both networks, `"0.98/0.95"` or `(0.98, 0.95)` for actor and critics, `"preset"` for the
        row of Table 2.
      seeds: of runs.
      fields: values of other fields by name.

    Raises:
      ConfigError: a combination that cannot be.
    """
    fields = dict(fields or {})
    if how := sorted(workdirs.HOW & set(fields)):
        raise ConfigError(f"sweep.{how[0]}: it says how runs are computed, not which; give one value, --{how[0]}=....")
    if unknown := sorted(set(fields) - {field.name for field in dataclasses.fields(Config)}):
        raise ConfigError(f"unknown setting {unknown[0]}; name fields of Config.")
    axes: dict[str, Sequence[Any]] = {"env": envs, "agent": agents, "method": methods, "seed": seeds, **fields}
    axes = {name: listed for name, values in axes.items() if (listed := _listed(name, values))}
    found: dict[str, RunConfig] = {}
    for values in itertools.product(*axes.values(), _listed("sparsities", sparsities) or (None,)):
        config = dataclasses.replace(base, **dict(zip(axes, values[:-1], strict=True)))
        if values[-1] is not None:
            actor, critic = _sparsity(values[-1], config)
            config = dataclasses.replace(config, actor_sparsity=actor, critic_sparsity=critic)
        resolved = resolve(config)
        # A dense run is the same at every sparsity.
        found.setdefault(_identity(resolved), resolved)
    return list(found.values())


def _listed(name: str, values: Any) -> list[Any]:
    """The values of an axis, which is anything that can be gone through, such as an array.

    Raises:
      ConfigError: it cannot.
    """
    if values is None:
        return []
    if isinstance(values, str) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) < 1:
        raise ConfigError(f"{name}={values!r:.40}: give several values, as in a list, or one in a list of one.")
    return [*values]


def _sparsity(value: str | float | tuple[float, float], config: Config) -> tuple[float, float]:
    text = "/".join(map(str, value)) if isinstance(value, tuple | list | np.ndarray) else str(value)
    if text == PRESET:
        row = presets.PRESETS.get(f"{config.agent}/{config.env}")
        if row is None:
            rows = ", ".join((*presets.ROWS, *presets.PAPER_ROWS))
            raise ConfigError(
                f"sparsities=preset: Table 2 has no row {config.agent}/{config.env}, only {rows}; name sparsities."
            )
        return row["actor_sparsity"], row["critic_sparsity"]
    try:
        actor, _, critic = text.partition("/")
        return float(actor), float(critic or actor)
    except ValueError:
        raise ConfigError(
            f"sparsities={text}: write 0.9 for both networks, 0.98/0.95 for actor and critics, or preset."
        ) from None


def lay_out(
    configs: Iterable[RunConfig],
    *,
    parallel: str = PARALLEL[0],
    fields: Sequence[str] = (),
    devices: int = 1,
    device_bytes: float | None = None,
    runs_per_device: int | None = None,
    pad: bool = True,
    held: Plan | None = None,
) -> Plan:
    """Names, programs and batches.

    Args:
      configs: of the runs.
      parallel: one of `PARALLEL`.
      fields: further fields that differ, to be named in the runs' names.
      devices: in the mesh.
      device_bytes: free memory of the smallest device; None if not known.
      runs_per_device: no more than this many at once, whatever the memory.
      pad: fill a batch that the devices do not divide with copies; refuse it otherwise.
      held: the plan that the workdir holds; its runs and batches stay as they are, and new runs come after them.

    Raises:
      ConfigError: a run that does not fit, or cannot be laid out so.
      WorkdirError: the plan held has runs that are not asked for, or was laid out in another way.
    """
    asked = _asked(configs, parallel)
    if held:
        _check_extends(held, asked, parallel, devices)
    # How they are computed may change between starts.
    runs = [PlannedRun(run.name, asked[_identity(run.config)]) for run in held.runs] if held else []
    added = _added(runs, asked, fields)
    batches = list(held.batches) if held else []
    if parallel == "processes":
        for group in _groups(added):
            build([run.config for run in group])  # Refuses what cannot be.
            envs.place_of(group[0].config.env)
            for run in group:
                _check_reachable(run.config)
    else:
        batches += _batches(added, len(batches), devices, device_bytes, runs_per_device, pad)
    return Plan(
        parallel=parallel,
        fields=tuple(dict.fromkeys([*(held.fields if held else ()), *fields])),
        runs=(*runs, *added),
        batches=tuple(batches),
        devices=devices,
        compiled=held.compiled if held else 0,
    )


def _check_reachable(config: RunConfig) -> None:
    """Refuse what a person wrote in a script or notebook, where a worker process cannot import it from."""
    for name, value in vars(config).items():
        if str(value).startswith("__main__:"):
            raise ConfigError(
                f"{name}={value} is known to this process alone, and workers are others: put it in a module, or use "
                "another --parallel than processes."
            )


def _asked(configs: Iterable[RunConfig], parallel: str) -> dict[str, RunConfig]:
    """Configurations by identity, each once; refuses what no sweep can run."""
    if parallel not in PARALLEL:
        raise ConfigError(f"unknown parallel {parallel!r}; valid: {', '.join(PARALLEL)}.")
    configs = list(configs)
    if shared := next((c.data_parallel for c in configs if c.data_parallel > 1), None):
        raise ConfigError(
            f"data_parallel={shared}: a sweep gives each run to one device; leave it out, or train that run alone with "
            "experiments/train.py."
        )
    asked = {_identity(config): config for config in configs}
    if not asked:
        raise ConfigError("a sweep without runs; name at least one value of everything.")
    return asked


def _added(runs: Sequence[PlannedRun], asked: Mapping[str, RunConfig], fields: Sequence[str]) -> list[PlannedRun]:
    """Runs that are asked for beyond those there are, under names that are not taken."""
    known = {_identity(run.config) for run in runs}
    taken = {run.name for run in runs}
    added = []
    for identity, config in asked.items():
        if identity not in known:
            run = PlannedRun(_unused(_name(config, fields), taken), config)
            taken.add(run.name)
            added.append(run)
    return added


def _check_extends(held: Plan, asked: Mapping[str, RunConfig], parallel: str, devices: int) -> None:
    missing = [run.name for run in held.runs if _identity(run.config) not in asked]
    if missing:
        raise WorkdirError(
            f"the workdir holds a sweep with {len(missing)} runs that these flags leave out ({missing[0]}, ...); "
            "name another --workdir, or ask for them too."
        )
    if held.parallel != parallel:
        raise WorkdirError(
            f"the workdir holds a sweep with --parallel={held.parallel}; continue it so, or name another --workdir."
        )
    for batch in held.batches:
        if batch.rows % devices:
            raise WorkdirError(
                f"the workdir holds a batch of {batch.rows} runs, which {devices} devices do not divide; continue it "
                f"on {held.devices} devices, or name another --workdir."
            )


def _groups(runs: Iterable[PlannedRun]) -> list[list[PlannedRun]]:
    """Runs that make one program."""
    groups: dict[str, list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault(_program_key(run.config), []).append(run)
    return list(groups.values())


def _batches(
    runs: Sequence[PlannedRun],
    count: int,
    devices: int,
    device_bytes: float | None,
    runs_per_device: int | None,
    pad: bool,
) -> list[PlannedBatch]:
    if any(run.config.compute == "packed" for run in runs):
        raise ConfigError(
            "compute=packed: the number of links is a shape there, and the runs of a batch share theirs; use "
            "--compute=masked, or --parallel=processes."
        )
    batches: list[PlannedBatch] = []
    for group in _groups(runs):
        program = build([run.config for run in group])
        state = jax.eval_shape(program.init, jax.random.PRNGKey(0), program.hparams)
        size = memory.tree_bytes(state)
        most = len(group) if runs_per_device is None else runs_per_device * devices
        if device_bytes is not None:
            fit = int(MEMORY_SHARE * device_bytes / size)
            if fit < 1:
                c = group[0].config
                raise ConfigError(
                    f"a run of {c.agent} on {c.env} needs {memory.format_bytes(size)}, over {MEMORY_SHARE:.0%} of the "
                    f"{memory.format_bytes(device_bytes)} a device has left; lower --buffer_max or --hidden."
                )
            most = min(most, fit * devices)
        if not pad and len(group) % devices:
            raise ConfigError(
                f"{devices} devices do not divide the {len(group)} runs of {group[0].config.agent} on "
                f"{group[0].config.env}; name a number of --devices that does, or none to fill up with copies."
            )
        parts = math.ceil(len(group) / most)
        share = math.ceil(len(group) / parts)
        rows = math.ceil(share / devices) * devices
        # Without copies a batch takes as many runs as it has rows, and the last one those that are left.
        share = share if pad else rows
        number = count + len(batches)
        for k in range(parts):
            names = tuple(run.name for run in group[k * share : (k + 1) * share])
            filled = rows if pad else len(names)
            batches.append(PlannedBatch(f"batch-{count + len(batches)}", number, names, filled, size))
    return batches


def build(configs: Sequence[RunConfig]) -> Program:
    """The program that all of these runs are data of, with room for the largest of their buffers.

    Raises:
      ConfigError: a configuration that cannot be.
    """
    largest = max(configs, key=lambda c: c.buffer_max)
    program = make_program(dataclasses.replace(largest, compute="masked"))
    for config in configs:
        structure(config, program.env.observation_size, program.env.action_size)
        tickets.load_for(config, program.env.observation_size, program.env.action_size)
    return program


def common_schedule(configs: Iterable[RunConfig]) -> Schedule:
    """When things happen in runs that are computed together."""
    # What a method never does is put beyond its end; what another does, does nothing to it: it moves no links (a
    # fraction of 0), and looks one step ahead (n_step of 1).
    return jax.tree.map(lambda *times: min(times, key=int), *map(make_schedule, configs))


def read(workdir: Path) -> Plan | None:
    """The plan that a directory holds, if it holds one.

    Raises:
      WorkdirError: it cannot be read, or the directory holds a single run, or something that a sweep would replace.
    """
    workdirs.require_folder(workdir)
    path = workdir / workdirs.PLAN
    values = files.read_json(path, None, mend=workdirs.ELSEWHERE)
    if values is None:
        if (workdir / "config.json").exists():
            raise WorkdirError(f"workdir {workdir} holds a single run, no sweep; name another --workdir.")
        if there := [name for name in MADE if os.path.lexists(workdir / name)]:
            raise WorkdirError(
                f"workdir {workdir} holds {there[0]}, which no sweep has left there; name another --workdir."
            )
        return None
    try:
        plan = _parse(values)
        _check_kinds(plan)
        return plan
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        why = str(error).partition(":")[0] if isinstance(error, ConfigError) else "not as a sweep left it"
        raise FileError(f"{path} is damaged ({why}); {workdirs.ELSEWHERE}.") from None


def _parse(values: Mapping[str, Any]) -> Plan:
    names = [field.name for field in dataclasses.fields(PlannedBatch)]
    batches = [{name: batch[name] for name in names} for batch in values["batches"]]
    return Plan(
        parallel=values["parallel"],
        fields=tuple(values["fields"]),
        runs=tuple(PlannedRun(name, RunConfig.from_dict(config)) for name, config in values["runs"].items()),
        batches=tuple(PlannedBatch(**{**batch, "runs": tuple(batch["runs"])}) for batch in batches),
        devices=values["devices"],
        compiled=values["compilations"]["happened"],
    )


def _check_kinds(plan: Plan) -> None:
    """Refuse what no sweep leaves: names that lead elsewhere, or to nothing, and numbers that are none."""
    runs = {run.name for run in plan.runs}
    counts = [plan.devices, *(count for b in plan.batches for count in (b.rows, b.bytes_per_row, len(b.runs)))]
    numbers = [plan.compiled, *(batch.program for batch in plan.batches)]
    names = (*runs, *(batch.name for batch in plan.batches))
    if not (
        runs
        and plan.parallel in PARALLEL
        and all(type(count) is int and count >= 1 for count in counts)
        and all(type(number) is int and number >= 0 for number in numbers)
        and all(hasattr(plan.runs[0].config, name) for name in plan.fields)
        and all(runs.issuperset(batch.runs) for batch in plan.batches)
        and all(Path(name).name == name for name in names)
    ):
        raise ValueError


def read_diverged(path: Path, within: str | None = None) -> dict[str, int]:
    """After how many steps which runs were no longer finite; none if there is no file.

    Args:
      path: of the file, such as a batch's done.json.
      within: the member of its object that says so, if not all of it does.

    Raises:
      FileError: it is damaged.
    """
    found = files.read_json(path, None, mend=workdirs.ELSEWHERE)
    if found is None:
        return {}
    if within is not None:
        found = found.get(within)
    if not isinstance(found, dict) or not all(type(steps) is int for steps in found.values()):
        raise FileError(f"{path} is damaged (not as a sweep left it); {workdirs.ELSEWHERE}.")
    return found


def write(workdir: Path, plan: Plan) -> None:
    """Replace plan.json."""
    files.write_json(workdir / workdirs.PLAN, plan.to_dict())


def count_compilation(plan: Plan) -> Plan:
    """The plan after one more compilation."""
    return dataclasses.replace(plan, compiled=plan.compiled + 1)


def describe(plan: Plan) -> list[str]:
    """Lines on a plan, for a person."""
    count = _plural(len(plan.runs), "run", "runs")
    if not plan.batches:
        return [f"{count}, each a process of its own"]
    lines = [
        f"{count}, {_plural(len(plan.batches), 'batch', 'batches')} on "
        f"{_plural(plan.devices, 'device', 'devices')} by {plan.parallel}, "
        f"{_plural(plan.compilations, 'compilation', 'compilations')}"
    ]
    for batch in plan.batches:
        config = plan.run(batch.runs[0]).config
        each = batch.rows // plan.devices
        methods = dict.fromkeys(plan.run(name).config.method for name in batch.runs)
        padding = (
            f" and {_plural(batch.rows - len(batch.runs), 'copy', 'copies')} to fill up"
            if batch.rows > len(batch.runs)
            else ""
        )
        lines.append(
            f"{batch.name} (program {batch.program}): {config.agent} on {config.env}, "
            f"{_plural(len(batch.runs), 'run', 'runs')}{padding} of {', '.join(methods)}; "
            f"{each} per device, {memory.format_bytes(each * batch.bytes_per_row)} per device"
        )
    return lines


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _identity(config: RunConfig) -> str:
    return json.dumps(workdirs.identity(config), sort_keys=True)


def _program_key(config: RunConfig) -> str:
    static = () if methods.own(config.method) is None else methods.STATIC
    fields = {k: v for k, v in config.to_dict().items() if k not in SHARED or k in static}
    return json.dumps(fields, sort_keys=True)


def _name(config: RunConfig, fields: Sequence[str]) -> str:
    c = config
    parts = [_short(value) for value in (c.agent, c.env, c.method)]
    if c.actor_sparsity or c.critic_sparsity:
        parts += [f"{c.actor_sparsity:g}", f"{c.critic_sparsity:g}"]
    parts += [f"{name}={_short(getattr(c, name))}" for name in fields]
    name = "-".join([*parts, f"seed{c.seed}"])
    if len(name.encode(errors="replace")) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(_identity(config).encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME // 4]}-{digest}-seed{c.seed}"  # A letter is four bytes at most.


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else workdirs.in_name(str(value))


def _unused(name: str, taken: set[str]) -> str:
    numbered = itertools.chain([name], (f"{name}-{k}" for k in itertools.count(2)))
    return next(candidate for candidate in numbered if candidate not in taken)

"""Train many runs: the product of environments, agents, methods, sparsities, seeds and any other setting.

python experiments/sweep.py --seeds=4 --methods=dense,rigl,rlx2 --workdir=runs/first
python experiments/sweep.py --envs=hopper,ant --agents=td3,sac --sparsities=preset --seeds=8 --dry_run
python experiments/sweep.py --sparsities=0.9,0.98/0.95 --sweep.gamma=0.98,0.99 --seeds=3,7
python experiments/sweep.py --seeds=4 --parallel=processes

The same command continues a sweep that was stopped or killed; one that asks for more runs extends it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from rlx2_jax.config import command_line
from rlx2_jax.errors import ConfigError
from rlx2_jax.sweeps import hosts, make_plan, plans, product, sweep

WORKDIR = command_line.define_path("workdir", "runs/sweep", "where the sweep leaves its files")
ENVS = flags.DEFINE_list("envs", [], "tasks (default: the one of --env)")
AGENTS = flags.DEFINE_list("agents", [], "algorithms")
METHODS = flags.DEFINE_list("methods", [], "training schemes")
SPARSITIES = flags.DEFINE_list(
    "sparsities", [], "0.9 for both networks, 0.98/0.95 for actor and critics, preset for the row of Table 2"
)
SEEDS = flags.DEFINE_string("seeds", None, "4 for the seeds 0 to 3; 3,7 for those two; 7, for that one")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the plan and stop")
PARALLEL = flags.DEFINE_string("parallel", plans.PARALLEL[0], "how: " + ", ".join(plans.PARALLEL))
DEVICES = flags.DEFINE_integer("devices", None, "devices to use, which must divide the runs (default: all of them)")
RUNS_PER_DEVICE = flags.DEFINE_integer("runs_per_device", None, "at most so many at once (default: what fits)")
WORKERS = flags.DEFINE_integer("workers", None, "processes at once, with --parallel=processes (default: one per core)")
MULTIHOST = flags.DEFINE_bool("multihost", False, "this process is one of several; start the same command on each host")
COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0 (default: found on a cluster)")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "processes in all (default: found on a cluster)")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "which one this is, from 0 (default: found on a cluster)")
TIMEOUT = flags.DEFINE_integer("initialization_timeout", 120, "seconds to wait for the other processes at the start")
HEARTBEAT = flags.DEFINE_integer("heartbeat_timeout", 30, "seconds after which a silent process counts as dead")
set_up_compilation = command_line.define_compilation_flags()

AXES: dict[str, flags.FlagHolder[Any]] = {"env": ENVS, "agent": AGENTS, "method": METHODS, "seed": SEEDS}
"""Fields with a flag of their own."""


def main(argv: Sequence[str]) -> int | None:
    """Sweep as the flags say."""
    del argv
    base = command_line.read_config()
    fields = command_line.read_swept()
    _check(fields)
    configs = product(
        base,
        envs=ENVS.value,
        agents=AGENTS.value,
        methods=METHODS.value,
        sparsities=SPARSITIES.value,
        seeds=command_line.parse_seeds(SEEDS.value),
        fields=fields,
    )
    with hosts.joined(_cluster()):
        set_up_compilation()
        workdir, options = WORKDIR.value, _options(fields)
        if DRY_RUN.value:
            planned = plans.describe(make_plan(configs, workdir, **options))
            if hosts.is_first():
                print(*planned, sep="\n", file=sys.stderr)
            return 0
        result = sweep(configs, workdir, **options)
        return 0 if result.finished else 1


def _options(fields: dict[str, list[Any]]) -> dict[str, Any]:
    return {
        "parallel": PARALLEL.value,
        "fields": tuple(fields),
        "devices": DEVICES.value,
        "runs_per_device": RUNS_PER_DEVICE.value,
        "worker_count": WORKERS.value,
    }


def _cluster() -> hosts.Cluster | None:
    if not MULTIHOST.value:
        for flag in (COORDINATOR, NUM_PROCESSES, PROCESS_ID, TIMEOUT, HEARTBEAT):
            if flag.present:
                raise ConfigError(f"{flag.name}={flag.value} says nothing to a single host; add --multihost.")
        return None
    return hosts.Cluster(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, TIMEOUT.value, HEARTBEAT.value)


def _check(fields: dict[str, list[Any]]) -> None:
    """Refuse flags that contradict each other."""
    own = {name: flag.name for name, flag in AXES.items()} | dict.fromkeys(
        ("actor_sparsity", "critic_sparsity"), SPARSITIES.name
    )
    for name, flag in own.items():
        swept = flags.FLAGS[flag].value
        if name in fields and name in AXES:
            raise ConfigError(f"--sweep.{name} has a flag of its own; use --{flag}.")
        if name in fields and swept:
            raise ConfigError(f"--sweep.{name} and --{flag} both say what {name} is; leave one out.")
        if swept and flags.FLAGS[name].value is not None:
            raise ConfigError(f"--{name} and --{flag} both say what {name} is; leave one out.")
    for name in fields:
        if flags.FLAGS[name].value is not None:
            raise ConfigError(f"--{name} and --sweep.{name} both say what {name} is; leave one out.")
    if MULTIHOST.value and PARALLEL.value != "shard_map":
        raise ConfigError(f"--parallel={PARALLEL.value} serves one host; use --parallel=shard_map with --multihost.")


if __name__ == "__main__":
    command_line.define_config_flags()
    command_line.define_sweep_flags()
    command_line.run(main)

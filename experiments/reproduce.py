"""Run a table or figure of the paper, and see our numbers beside its own.

python experiments/reproduce.py --study=table2 --smoke                                   every part of it, in small
python experiments/reproduce.py --study=table2 --rows=td3/hopper --seeds=4 --scale=0.1   a row, a tenth of its length
python experiments/reproduce.py --study=table2-mujoco --rows=td3/Hopper-v4               a row on the paper's own task
python experiments/reproduce.py --study=table2 --report_only                             the report again

Runs end up in <results>/<study>/runs.jsonl, and what they say in README.md beside it, with the commands that made them
at its end. The same command continues what was stopped; more rows, seeds or another length add to the same files. A run
that any study has recorded is not made again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from paper import STUDIES, Run, Study, plan, report, runner, store

from rlx2_jax.config import NEVER, PAPER_STEPS, command_line, presets
from rlx2_jax.errors import ConfigError
from rlx2_jax.sweeps import check_way

STUDY = flags.DEFINE_string("study", None, "which: " + ", ".join(STUDIES))
ROWS = flags.DEFINE_list("rows", [], "agent/env, such as td3/hopper,sac/ant (default: the study's)")
SEEDS = flags.DEFINE_string("seeds", None, "4 for the seeds 0 to 3; 3,7 for those two (default: the study's)")
ARMS = flags.DEFINE_list("arms", [], "of the study's arms, these alone")
SCALE = flags.DEFINE_float("scale", None, "length of the runs as a share of the paper's 3 million steps")
SMOKE = flags.DEFINE_bool("smoke", False, "tiny runs on a probe task: shows that all parts work, and nothing else")
RESULTS = command_line.define_path(
    "results", None, "where studies keep runs and reports (default: experiments/results, or runs/smoke with --smoke)"
)
WORKDIR = command_line.define_path("workdir", None, "where the runs leave their files (default: runs/<study>)")
PARALLEL = flags.DEFINE_string("parallel", None, "as of sweep.py (default: processes on a CPU, else shard_map)")
WORKERS = flags.DEFINE_integer("workers", None, "processes at once (default: one per core)")
REPORT_ONLY = flags.DEFINE_bool(
    "report_only", False, "train nothing: gather the runs asked for from the workdir, write the report"
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print what would be run, and stop")
set_up_compilation = command_line.define_compilation_flags()


def main(argv: Sequence[str]) -> int | None:
    """Reproduce as the flags say."""
    del argv
    if STUDY.value not in STUDIES:
        raise ConfigError(f"unknown study {STUDY.value!r}; valid: {', '.join(STUDIES)}.")
    study = STUDIES[STUDY.value]
    directory = (RESULTS.value or Path("runs/smoke" if SMOKE.value else "experiments/results")) / STUDY.value
    workdir = WORKDIR.value or Path(f"runs/{STUDY.value}")
    check_way(_parallel(), WORKERS.value)
    runs = _wanted(study)
    if not REPORT_ONLY.value:
        plan.check(runs)
    place = runner.Place(directory, workdir, _parallel(), WORKERS.value)
    if DRY_RUN.value:
        most = "at most " if study.search else ""
        missing = len(runner.missing(runs, place))
        print(f"{most}{len(runs)} runs, {missing} of them not recorded yet", file=sys.stderr)
        return 0
    finished = True
    try:
        if REPORT_ONLY.value:
            runner.gather(runs, place)
        else:
            command_line.check_writable(directory, RESULTS.name)
            set_up_compilation()
            finished = runner.run_study(study, runs, place, lambda line: print(line, file=sys.stderr))
    finally:
        # However it ends, the report is that of the runs there are.
        recorded = bool(store.read(directory))
        if recorded:
            report.write(directory, STUDY.value, study)
            print(f"report in {directory}/README.md", file=sys.stderr)
    if not recorded and REPORT_ONLY.value:
        raise ConfigError(f"{directory} holds no run yet; let one come to its end first.")
    return 0 if finished else 1


def _wanted(study: Study) -> list[Run]:
    """The runs that the flags ask for."""
    given = command_line.read_given()
    reading: dict[str, object] = {}
    for name in ("env", "agent", "seed"):
        if name in given:
            raise ConfigError(f"--{name} says nothing to a study; use --rows and --seeds.")
    for name in given.pop("preset", []):
        if name not in presets.READINGS:
            raise ConfigError(f"preset={name}: of presets a study takes {', '.join(presets.READINGS)}; use --rows.")
        reading |= presets.READINGS[name]
    if SCALE.value is not None:
        if "total_steps" in given or not 0 < SCALE.value * PAPER_STEPS <= NEVER:
            raise ConfigError(
                f"scale={SCALE.value}: a positive share of {PAPER_STEPS:,} steps, at most {NEVER:,} of them, without "
                "--total_steps."
            )
        given["total_steps"] = round(SCALE.value * PAPER_STEPS)
    rows = ROWS.value or study.rows
    seeds = command_line.parse_seeds(SEEDS.value) or list(range(study.seeds))
    if SMOKE.value:
        study = study._replace(settings={})  # Those are of long runs.
        given = {**plan.SMOKE, **given}
        rows, seeds = ROWS.value or [plan.SMOKE_ROW], command_line.parse_seeds(SEEDS.value) or [0, 1]
    return plan.runs(study, rows, seeds, given, ARMS.value, reading)


def _parallel() -> str:
    if PARALLEL.value is not None:
        return PARALLEL.value
    return "processes" if jax.default_backend() == "cpu" and not SMOKE.value else "shard_map"


if __name__ == "__main__":
    command_line.define_config_flags()
    command_line.run(main)

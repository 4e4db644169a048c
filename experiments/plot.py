"""Draw the learning curves of several runs in one picture.

python experiments/plot.py --workdirs=runs/hopper-rlx2,runs/hopper-dense --output=hopper.png
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from rlx2_jax import files
from rlx2_jax import flags as launcher
from rlx2_jax.errors import ConfigError, WorkdirError
from rlx2_jax.training import workdir as workdirs
from rlx2_jax.viz import curves

WORKDIRS = flags.DEFINE_list("workdirs", [], "directories of the runs")
OUTPUT = flags.DEFINE_string("output", None, "PNG file to write")
TITLE = flags.DEFINE_string("title", None, "heading (default: task and agent of the first run)")


def main(argv: Sequence[str]) -> int | None:
    """Draw as the flags say."""
    del argv
    if not WORKDIRS.value or not OUTPUT.value:
        raise ConfigError("nothing to draw; name runs with --workdirs and a PNG file with --output.")
    launcher.check_writable(Path(OUTPUT.value).parent, OUTPUT.name)
    runs = {}
    configs = [workdirs.read_config(Path(name)) for name in WORKDIRS.value]
    for name, config in zip(WORKDIRS.value, configs, strict=True):
        rows = files.read_json_lines(Path(name) / "metrics.jsonl")
        if not rows:
            raise WorkdirError(f"{name} holds no evaluation yet; let its run go on.")
        label = config["method"]
        if config["actor_sparsity"] or config["critic_sparsity"]:
            label += f", {100 * config['actor_sparsity']:.3g} % / {100 * config['critic_sparsity']:.3g} % sparse"
        label += f", seed {config['seed']}"
        # Runs that differ in something else are told apart by their directories.
        runs[label if label not in runs else f"{label} ({name})"] = rows
    heading = f"{configs[0]['agent'].upper()} on {configs[0]['env']} ({configs[0]['backend']})"
    curves.save(curves.draw_comparison(runs, TITLE.value or heading), Path(OUTPUT.value))
    return 0


if __name__ == "__main__":
    launcher.run(main)

"""Make a page of a run, report.html: curves, masks, sizes, time, settings, an episode, and how to use the policy.

python experiments/report.py --workdir=runs/hopper
python experiments/report.py --workdir=runs/hopper --norollout --output=hopper.html

The page is one file that needs no network and asks for none. Of a run that goes on, or was stopped, it shows what there
is.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from rlx2_jax.config import command_line
from rlx2_jax.errors import ConfigError
from rlx2_jax.io import files
from rlx2_jax.training import recorded

WORKDIR = command_line.define_path("workdir", None, "directory of the run")
OUTPUT = command_line.define_path("output", None, "file to write, which ends with .html (default: report.html there)")
ROLLOUT = flags.DEFINE_bool("rollout", True, "show an episode of the policy, which is played first")

set_up_compilation = command_line.define_compilation_flags()


def main(argv: Sequence[str]) -> int | None:
    """Write the page."""
    del argv
    if WORKDIR.value is None:
        raise ConfigError("no workdir given; name a run's directory with --workdir.")
    output = OUTPUT.value or WORKDIR.value / recorded.NAME
    command_line.check_output(output, OUTPUT.name, (".html",))
    set_up_compilation()
    content = recorded.page(WORKDIR.value, rollout=ROLLOUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(output, content)
    print(f"wrote {output} ({len(content):,} bytes)")
    return 0


if __name__ == "__main__":
    command_line.run(main)

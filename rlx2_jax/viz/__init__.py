"""Pictures of runs, studies and benchmarks."""

import logging

# Where Matplotlib keeps its fonts is nothing that a person who trains has to read.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

"""Files that are never half-written, checked when they are read."""

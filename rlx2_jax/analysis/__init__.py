"""What is known of a run without changing it: wiring and activity, sizes and FLOPs, estimates with intervals."""

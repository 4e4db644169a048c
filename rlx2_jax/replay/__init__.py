"""Experience on the device: the ring of transitions, n-step windows, dynamic capacity."""

"""Long mixed load with faults against a real service: `python -m soak --help`, `make soak`."""

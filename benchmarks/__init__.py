"""The benchmark suite: `python -m benchmarks`, or `make bench`. Ratios of two sides that are measured in turn, in one run."""

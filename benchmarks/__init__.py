"""The benchmark suite: `python -m benchmarks`, or `make bench`. Every figure is a ratio of two sides measured in turn, in one run."""

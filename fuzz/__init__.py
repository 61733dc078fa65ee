"""Mutation fuzzing of what cpstream reads, shared by `make fuzz` and tests/fuzz. `python -m fuzz --help` lists the options."""

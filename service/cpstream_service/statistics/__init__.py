"""What a split looks like in figures: numpy over the snapshot, in a process of its own, kept beside it."""

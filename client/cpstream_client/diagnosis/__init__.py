"""What limits a stream of batches: measured from both ends, and judged. `cpstream doctor` prints it."""

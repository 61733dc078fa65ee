import subprocess
import sys

IN_A_PROCESS_OF_ITS_OWN = """
import resource
import numpy as np
from cpstream_service.sources.collect import Collector
collector = Collector("train")
for number in range(128):
    collector.add_block([""] * 2048, [""] * 2048, np.full((2048, 256), number, np.float32), {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
split = collector.finish()
assert np.array_equal(np.asarray(split.embeddings)[::2048, 0], np.arange(128))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_rows_and_their_copy_never_both_take_the_memory_of_all() -> None:
    more_kb = int(
        subprocess.run([sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN], check=True, capture_output=True, text=True).stdout
    )
    assert more_kb * 1024 < 0.3 * 64 * 4096 * 256 * 4

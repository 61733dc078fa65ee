import subprocess
import sys

import numpy as np

from cpstream_service.sources.collect import Collector
from cpstream_service.sources.rows import Reason

BLOCKS, ROWS, DIM = 128, 2048, 256
IN_A_PROCESS_OF_ITS_OWN = f"""
import resource
import numpy as np
from cpstream_service.sources.collect import Collector
collector = Collector("train")
rows = np.empty(({ROWS}, {DIM}), np.float32)
rows.fill(0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range({BLOCKS}):
    rows.fill(number)
    collector.add_block("row", range({ROWS}), [""] * {ROWS}, rows, {{}})
split = collector.finish()
assert np.array_equal(split.embeddings[::{ROWS}, 0], np.arange({BLOCKS}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_rows_take_the_memory_of_what_they_hold() -> None:
    more_kb = int(
        subprocess.run([sys.executable, "-c", IN_A_PROCESS_OF_ITS_OWN], check=True, capture_output=True, text=True).stdout
    )
    assert more_kb * 1024 < 1.2 * BLOCKS * ROWS * DIM * 4


def test_rows_of_another_dimension_are_named_by_where_they_are() -> None:
    collector = Collector("train", ["cps"])
    collector.add_block("row", range(3), ["a", "b", "c"], np.zeros((3, 4), np.float32), {"cps": [1.0, 2.0, 3.0]})
    collector.add_block("row", [7, 9], ["h", "j"], np.ones((2, 5), np.float32), {"cps": [8.0, 10.0]})
    collector.add("file k", "k", np.full(6, 2.0), {"cps": 11.0})
    collector.add("file l", "l", np.full(4, 3.0), {"cps": 12.0})
    split = collector.finish()
    assert split.file_paths == ["a", "b", "c", "l"]
    assert split.columns == {"cps": [1.0, 2.0, 3.0, 12.0]}
    assert np.array_equal(split.embeddings, [[0] * 4] * 3 + [[3] * 4])
    assert [(problem.where, problem.file_path) for problem in split.problems] == [("row 7", "h"), ("row 9", "j"), ("file k", "k")]
    assert {problem.reason for problem in split.problems} == {Reason.WRONG_DIMENSION}
    assert split.problems[-1].detail == "the embedding has 6 numbers; most rows of 'train' have 4"

"""What an Arrow reply took, and how much of it has been sent: written once a chunk, read once a reply."""

import time
from bisect import bisect_right
from dataclasses import dataclass, field

clock = time.perf_counter


@dataclass(slots=True, eq=False)
class Account:
    """Of one reply. gather_s: of its chunks, the disk's part included; wait_s: for their turns; send_s: of handing them over.

    waits: chunks whose turn was another client's. Chunks that are gathered in threads are gathered while the last one is sent.
    """

    gather_s: float = 0.0
    wait_s: float = 0.0
    send_s: float = 0.0
    waits: int = 0
    _ends: list[int] = field(default_factory=list)  # of each chunk, in bytes from the reply's begin
    _whole: list[tuple[int, int]] = field(default_factory=list)  # samples and record batches that are whole by there

    def chunk(self, nbytes: int, samples: int, batches: int) -> None:
        """One chunk more is gathered, with the ends of so many batches, which hold so many samples."""
        end, (all_samples, all_batches) = (self._ends[-1], self._whole[-1]) if self._ends else (0, (0, 0))
        self._ends.append(end + nbytes)
        self._whole.append((all_samples + samples, all_batches + batches))

    def sent(self, nbytes: int) -> tuple[int, int]:
        """How many samples and record batches the first so many bytes hold whole, counted in chunks."""
        chunks = bisect_right(self._ends, nbytes)
        return self._whole[chunks - 1] if chunks else (0, 0)

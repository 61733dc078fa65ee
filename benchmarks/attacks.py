"""A good trainer beside one hostile client: what is left of its speed, whether the service still answers, and what memory it takes.

The attacker is a process that attacks as fast as it can, from another address. It takes CPU of this machine, which one elsewhere
would not: the speed beside it is compared with that beside a process that takes the same CPU and leaves the service alone (but for
memory's bandwidth and the processor's caches, which it does not touch). The trainer runs alone, attacked and beside that process,
in turn.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from .bench import Bench, Measurement
from .data import make_data
from .findings import Finding, Series, Skipped, at_least, at_most, ratio
from .processes import ChildFailed, ask, first_line, helper, talking
from .raw_stream import warm
from .servers.attacker import ATTACKS
from .service import Service, serving

BATCH, DIM = 256, 256
FEW_FILES = "open files limited to 1,024"
"""In the names of those."""
OPEN_FILES = 1024
NO_ANSWER_S = 30.0
_SAMPLE_S = 0.02
_LONGER_S = 3.0
"""The attack goes on for so long behind what is measured: at its end 1,500 threads wake up, and take both cores."""


@dataclass
class Rounds:
    """The figures of one attack, a value a round."""

    alone: list[float] = field(default_factory=list)
    attacked: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    share: list[float] = field(default_factory=list)
    burnt: list[float] = field(default_factory=list)
    livez_ms: list[float] = field(default_factory=list)
    livez_beside_ms: list[float] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    went_round: list[int] = field(default_factory=list)


def measure(bench: Bench) -> Iterator[Finding]:
    samples, seconds = bench.options.pick(200_000, 4_000), bench.options.pick(20, 5) / 10
    source = make_data(bench.folder / "attacked", samples, DIM).folder
    snapshots = bench.folder / "snapshots-attacked"
    words = bench.options.attacks
    attacks = [name for name in ATTACKS if not words or any(word in name for word in words)]
    if not attacks:
        raise Skipped(f"no attack is called like {', '.join(words)}; they are {'; '.join(ATTACKS)}")
    attacks = attacks[:: bench.options.pick(1, 7)]
    figures = {name: Rounds() for name in attacks}
    rounds = bench.options.pick(min(2, bench.options.rounds), 1)
    for number in range(1, rounds + 1):
        for open_files in (None, OPEN_FILES):
            names = [name for name in attacks if (FEW_FILES in name) == (open_files is not None)]
            if not names:
                continue
            for path in snapshots.glob("*/*/embeddings.float16.*"):
                path.unlink()
            with serving(source, snapshots, open_files=open_files) as service, training(service) as trainer:
                warm(service, snapshots)
                trainer.speed(0.2)
                for name in names:
                    bench.progress(f"round {number} of {rounds}, {name}")
                    _round(service, trainer, name, seconds, figures[name])
    for name, found in figures.items():
        yield from _findings(name, found)


def _round(service: Service, trainer: "Trainer", name: str, seconds: float, found: Rounds) -> None:
    host, port = service.address
    alone = trainer.speed(seconds / 2)
    idle = memory_of(service.pid)
    with ExitStack() as stack:
        attacker = stack.enter_context(helper("servers.attacker", host, str(port), name, str(seconds + _LONGER_S)))
        first_line(attacker)
        peak = stack.enter_context(Peak(service.pid))
        livez = stack.enter_context(probing(service, seconds))
        found.attacked.append(trainer.speed(seconds))
        told = json.loads(first_line(attacker))
    found.memory_mb.append((peak.nbytes - idle) / 1e6)
    found.livez_ms.append(livez.worst_ms)
    found.went_round.append(told["went_round"])
    found.share.append(told["cpu_s"] / (seconds + _LONGER_S))
    with ExitStack() as stack:
        spun = f"{seconds + _LONGER_S}/{found.share[-1]}"
        spinner = stack.enter_context(helper("servers.attacker", host, str(port), "spin", spun))
        first_line(spinner)
        livez = stack.enter_context(probing(service, seconds))
        found.beside.append(trainer.speed(seconds))
        found.burnt.append(json.loads(first_line(spinner))["cpu_s"] / (seconds + _LONGER_S))
    found.livez_beside_ms.append(livez.worst_ms)
    found.alone.append((alone + trainer.speed(seconds / 2)) / 2)


def _findings(name: str, found: Rounds) -> Iterator[Finding]:
    attacked = Series(f"trainer beside: {name}", found.attacked, "samples/s")
    beside = Series("beside as much CPU", found.beside, "samples/s")
    share = median(found.attacked) / median(found.alone)
    note = f"{share:.2f} of {median(found.alone):,.0f} samples/s alone; the attacker took {median(found.share):.2f} of a CPU"
    note += f" (what burnt as much: {median(found.burnt):.2f}) and went round {median(found.went_round):,.0f} times"
    yield ratio(f"{name}: speed of a trainer", attacked, beside, at_least(0.7), note)
    calm = f"beside as much CPU {median(found.livez_beside_ms):.0f} ms"
    yield Finding(what=f"{name}: /livez, worst", values=found.livez_ms, unit="ms", target=at_most(250), note=calm)
    yield Finding(what=f"{name}: memory over idle", values=found.memory_mb, unit="MB", target=at_most(300))


class Trainer:
    """A process that streams epochs, batch 256, as often as it is asked to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process, self._epoch = process, 0

    def speed(self, seconds: float) -> float:
        """Samples a second of whole epochs, for so long."""
        samples = took = 0.0
        while took < seconds:
            reply = ask(self._process, {"kind": "stream", "batch_size": BATCH, "epoch": self._epoch})
            self._epoch += 1
            samples, took = samples + reply["samples"], took + reply["seconds"]
        return samples / took


@contextmanager
def training(service: Service) -> Iterator[Trainer]:
    with talking([sys.executable, "benchmarks/trainer.py", service.url]) as process:
        yield Trainer(process)


@dataclass
class Livez:
    worst_ms: float = NO_ANSWER_S * 1e3
    """That, where an answer took longer than a probe waits."""


@contextmanager
def probing(service: Service, seconds: float) -> Iterator[Livez]:
    """Ask /livez on a new connection every few milliseconds."""
    livez = Livez()
    with helper("servers.livez", service.address[0], str(service.address[1]), str(seconds)) as probe:
        first_line(probe)
        yield livez
        with suppress(ChildFailed):
            livez.worst_ms = max(json.loads(first_line(probe))) * 1e3


class Peak:
    """The most memory that a process had of its own while the block ran."""

    def __init__(self, pid: int) -> None:
        self._pid, self._stop, self.nbytes = pid, threading.Event(), 0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            self.nbytes = max(self.nbytes, memory_of(self._pid))


def memory_of(pid: int) -> int:
    """Pages of a process in memory that no file holds."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


MEASUREMENTS = (Measurement("attacks", measure),)

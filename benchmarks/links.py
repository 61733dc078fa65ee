"""Two network namespaces and a long line between them: the service at one end, a trainer at the other."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any

from .findings import Skipped
from .processes import answer, ask, first_line, helper, running, wait_for
from .service import listening_at

DATA, TRAINER = f"cpstream-data-{os.getpid()}", f"cpstream-trainer-{os.getpid()}"
DATA_ADDRESS, TRAINER_ADDRESS = "10.99.7.1", "10.99.7.2"


@dataclass(frozen=True)
class Line:
    """rate_mbit each way; loss: of each packet, in percent."""

    rate_mbit: int
    round_trip_ms: int
    loss_percent: float = 0.0

    def __str__(self) -> str:
        loss = f", {self.loss_percent:g} % loss" if self.loss_percent else ""
        return f"{self.rate_mbit:,} Mbit/s, {self.round_trip_ms} ms{loss}"


class FarTrainer:
    """servers/far_trainer.py at the far end."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, **wish: Any) -> Any:
        return ask(self._process, wish, timeout_s=600)


@contextmanager
def far(line: Line, source: Path, snapshots: Path, log: Path) -> Iterator[FarTrainer]:
    """A trainer's process at one end of the line, raw TCP and a service of the source at the other. Raises Skipped."""
    check()
    with ExitStack() as stack:
        for name in (DATA, TRAINER):
            answer(["ip", "netns", "add", name])
            stack.callback(subprocess.run, ["ip", "netns", "del", name], check=False, capture_output=True)
        device = f"cps{os.getpid()}"
        ends = [f"{device}a"[-15:], f"{device}b"[-15:]]
        wanted = map(str, (line.rate_mbit, line.round_trip_ms, line.loss_percent))
        link = stack.enter_context(helper("servers.link", *wanted, *ends))
        first_line(link)
        for interface, name, address in zip(ends, (DATA, TRAINER), (DATA_ADDRESS, TRAINER_ADDRESS), strict=True):
            answer(["ip", "link", "set", interface, "netns", name])
            answer(["ip", "-n", name, "addr", "add", f"{address}/30", "dev", interface])
            answer(["ip", "-n", name, "link", "set", interface, "mtu", "1500", "txqueuelen", "10000", "up"])
            answer(["ip", "-n", name, "link", "set", "lo", "up"])
        raw = stack.enter_context(helper("servers.raw_tcp", DATA_ADDRESS, namespace=DATA))
        raw_port = first_line(raw)
        command = ["ip", "netns", "exec", DATA, sys.executable, "-m", "cpstream_service", "serve", "--host", DATA_ADDRESS]
        command += ["--port", "0", "--source-path", str(source), "--snapshot-dir", str(snapshots)]
        service = stack.enter_context(running(command, log))
        url = wait_for(lambda: listening_at(log), service, log)
        trainer = stack.enter_context(helper("servers.far_trainer", DATA_ADDRESS, raw_port, url, namespace=TRAINER))
        first_line(trainer)
        yield FarTrainer(trainer)


def check() -> None:
    """Raises Skipped where there can be no namespaces or lines between them."""
    if sys.platform != "linux" or os.geteuid() or not which("ip"):
        raise Skipped("network namespaces take Linux, root and the command ip (iproute2)")
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise Skipped("there is no /dev/net/tun, over which the line goes")
    made = subprocess.run(["ip", "netns", "add", DATA], check=False, capture_output=True, text=True)
    if made.returncode:
        raise Skipped(f"no network namespace can be made: {made.stderr.strip()}")
    subprocess.run(["ip", "netns", "del", DATA], check=False, capture_output=True)

"""`python -m soak.swarm`: deploy/swarm/ on two engines in two network namespaces, while two trainers share an epoch.

As root, on Linux with Docker's daemon. Images come from the engine that answers. In mid-epoch two replicas are added and taken
away again, and all are replaced, one by one; then the cable of the second engine is pulled. Fails where a batch is not the one that
torch has there, to the bit.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .engine import ROOT, EngineError, answers, has_engine, is_ready, output, wait_until
from .trainers import Size, Trainers, lines_of

STACK = ROOT / "deploy" / "swarm" / "stack.yml"
PROXY = "haproxy:3.2.22"
NETWORK, SWITCH = "10.88.57", "cpstream-switch"
END_S = 60.0


def can_run() -> bool:
    return os.geteuid() == 0 and has_engine() and answers(["dockerd", "--version"]) and answers(["ip", "-Version"])


class Engine:
    """A Docker daemon with a machine's worth of network to itself: address, a cable to the switch, and all else its own."""

    def __init__(self, number: int, folder: Path) -> None:
        self.address, self.name = f"{NETWORK}.{number}", f"cpstream-{number}"
        self._cable, self._folder = f"cpstream{number}", folder / self.name
        self._socket = f"unix://{self._folder}/docker.sock"
        self._daemon: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._folder.mkdir()
        plug_in(self.name, self._cable, self.address)
        folders = ("--data-root", str(self._folder / "data"), "--exec-root", str(self._folder / "run"))
        command = ["dockerd", *folders, "--pidfile", str(self._folder / "pid"), "--host", self._socket]
        with (self._folder / "log").open("wb") as log:
            # Not `ip netns exec`, which hides the control groups.
            self._daemon = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.name}", *command], stdout=log, stderr=log, start_new_session=True
            )
        wait_until(lambda: answers(["docker", "--host", self._socket, "info"]), f"answering: {self.name}")

    def docker(self, *arguments: str, **variables: str) -> str:
        return output("docker", "--host", self._socket, *arguments, **variables)

    def pull_the_cable(self) -> None:
        output("ip", "-n", SWITCH, "link", "set", self._cable, "down")

    def stop(self) -> None:
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(END_S)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        subprocess.run(["ip", "netns", "del", self.name], check=False, capture_output=True)
        for mount in reversed(Path("/proc/mounts").read_text().splitlines()):
            if (where := mount.split()[1]).startswith(str(self._folder)):
                subprocess.run(["umount", "--lazy", where], check=False)
        shutil.rmtree(self._folder, ignore_errors=True)


def plug_in(name: str, cable: str, address: str) -> None:
    """A namespace with this address, on the switch."""
    output("ip", "netns", "add", name)
    output("ip", "-n", name, "link", "set", "lo", "up")
    output("ip", "-n", SWITCH, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
    _attach(cable)
    output("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
    output("ip", "-n", name, "link", "set", "eth0", "up")


def _attach(cable: str) -> None:
    output("ip", "-n", SWITCH, "link", "set", cable, "master", "bridge", "up")


@contextmanager
def switch() -> Iterator[None]:
    """A bridge in a namespace of its own, where no firewall of this machine is in the way; this machine is on it, too."""
    try:
        output("ip", "netns", "add", SWITCH)
        output("ip", "-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        output("ip", "-n", SWITCH, "link", "set", "bridge", "up")
        output("ip", "link", "add", "cpstream-in", "type", "veth", "peer", "name", "cpstream-out", "netns", SWITCH)
        _attach("cpstream-out")
        output("ip", "addr", "add", f"{NETWORK}.254/24", "dev", "cpstream-in")
        output("ip", "link", "set", "cpstream-in", "up")
        yield
    finally:
        subprocess.run(["ip", "netns", "del", SWITCH], check=False, capture_output=True)


@contextmanager
def swarm(image: str, source: Path, folder: Path) -> Iterator[tuple[list[Engine], list[str]]]:
    """The stack on two engines, and the URL of each."""
    with ExitStack() as stack:
        stack.enter_context(switch())
        engines = [Engine(number, folder) for number in (1, 2)]
        images = str(folder / "images.tar")
        output("docker", "save", "--output", images, image, PROXY)
        for engine in engines:
            stack.callback(engine.stop)
            engine.start()
            engine.docker("load", "--input", images)
        Path(images).unlink()
        first, second = engines
        first.docker("swarm", "init", "--advertise-addr", first.address)
        token = first.docker("swarm", "join-token", "--quiet", "worker").strip()
        second.docker("swarm", "join", "--advertise-addr", second.address, "--token", token, f"{first.address}:2377")
        variables = {"DATA": str(source), "IMAGE": image}
        first.docker("stack", "deploy", "--resolve-image", "never", "--compose-file", str(STACK), "cpstream", **variables)
        urls = [f"http://{engine.address}:8000" for engine in engines]
        for url in urls:
            wait_until(lambda url=url: is_ready(url), f"ready at {url}", 300)
        yield engines, urls


def scale(engine: Engine, trainers: Trainers, replicas: int) -> None:
    """More replicas, or fewer. Raises EngineError where the trainers were done before."""
    engine.docker("service", "scale", "--detach", f"cpstream_replica={replicas}")
    listed = ("service", "ls", "--filter", "name=cpstream_replica", "--format", "{{.Replicas}}")
    wait_until(lambda: trainers.done or engine.docker(*listed).strip() == f"{replicas}/{replicas}", "scaled", 300)
    _check_goes_on(trainers, "scaled")


def replace_all(engine: Engine, trainers: Trainers) -> int:
    """A rolling update. Returns how many replicas were replaced. Raises EngineError where the trainers were done before."""
    before = tasks(engine)
    engine.docker("service", "update", "--detach", "--env-add", "CPSTREAM_LOG_LEVEL=warning", "cpstream_replica")
    state = ("service", "inspect", "cpstream_replica", "--format", "{{.UpdateStatus.State}}")
    wait_until(lambda: trainers.done or engine.docker(*state).strip() == "completed", "updated", 300)
    _check_goes_on(trainers, "updated")
    return len(before - tasks(engine))


def _check_goes_on(trainers: Trainers, what: str) -> None:
    if trainers.done:
        raise EngineError(f"the epoch was over before the service was {what}; make it longer with --seconds")


def tasks(engine: Engine) -> set[str]:
    listed = engine.docker("service", "ps", "cpstream_replica", "--quiet", "--filter", "desired-state=running")
    return set(listed.split())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m soak.swarm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=180, help="how long the epoch lasts (180)")
    parser.add_argument("--samples", type=int, default=80_000, help="of the split (80000)")
    parser.add_argument("--dim", type=int, default=768, help="numbers of an embedding (768)")
    parser.add_argument("--image", default="cpstream", help="the image of the service (cpstream)")
    given = parser.parse_args(arguments)
    if not can_run():
        print("this needs root, ip, dockerd, and a Docker Engine that answers and holds the images", file=sys.stderr)
        return 1
    size = Size(given.samples, given.dim)
    with tempfile.TemporaryDirectory(prefix="cpstream-swarm-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        size.write(folder / "source")
        try:
            with (
                swarm(given.image, folder / "source", folder) as (engines, urls),
                Trainers(urls, size, given.seconds) as trainers,
            ):
                time.sleep(given.seconds / 10)
                for replicas in (6, 4):
                    scale(engines[0], trainers, replicas)
                    print(f"scaled to {replicas} replicas", flush=True)
                replaced = replace_all(engines[0], trainers)
                print(f"{replaced} replicas replaced by a rolling update", flush=True)
                engines[1].pull_the_cable()
                print(f"the cable of {engines[1].name} pulled", flush=True)
                print("\n".join(lines_of(trainers.results())), flush=True)
        except EngineError as error:
            print(f"soak.swarm: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m soak.replicas`: three replicas behind HAProxy, one killed every few seconds while two trainers share an epoch.

It runs the profile `replicas` of docker-compose.yml on data of its own, and takes all of it away again. Fails where a batch
is not the one that torch has there, to the bit. The image must be there: make image.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

from cpstream_client import CpstreamError

from .engine import ROOT, EngineError, compose_command, has_engine, is_ready, output, wait_until
from .trainers import Size, Trainers, lines_of
from .truth import WrongBatch

DOWN_S = 1.0
"""How long a killed replica stays down before it is started again."""


class Replicas:
    """The profile, running. url: of the proxy."""

    def __init__(self, project: str, source: Path, image: str, override: Path) -> None:
        mounted = {"volumes": [f"{source}:/data:ro"]}
        override.write_text(json.dumps({"services": {"prepare": mounted, "replica": mounted}}))
        files = ("--file", str(ROOT / "docker-compose.yml"), "--file", str(override))
        self._command = (*compose_command(), *files, "--project-name", project, "--profile", "replicas")
        self._variables = {"PORT": "0", "REPLICAS_PORT": "0", "IMAGE": image}
        self.url = ""

    def start(self) -> None:
        self._compose("up", "--detach", "proxy")
        self.url = f"http://127.0.0.1:{self._compose('port', 'proxy', '8000').strip().rpartition(':')[2]}"
        wait_until(lambda: is_ready(self.url), f"ready at {self.url}")

    def stop(self) -> None:
        self._compose("down", "--volumes")

    def log(self) -> str:
        """The last of what the proxy said."""
        return self._compose("logs", "--tail", "40", "proxy")

    def containers(self) -> list[str]:
        return self._compose("ps", "--quiet", "replica").split()

    def _compose(self, *arguments: str) -> str:
        return output(*self._command, *arguments, **self._variables)


@contextmanager
def running(project: str, source: Path, image: str) -> Iterator[Replicas]:
    """The profile on this source, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="cpstream-") as folder:
        replicas = Replicas(project, source, image, Path(folder) / "override.yml")
        try:
            replicas.start()
            yield replicas
        finally:
            replicas.stop()


def kill_in_turn(containers: Sequence[str], trainers: Trainers, every_s: float) -> int:
    """SIGKILL to one after the other, each started again after DOWN_S, until the trainers are done. Returns how many.

    Never the last one: it waits until another serves, which on a busy machine takes longer than every_s to start.
    """
    kills = 0
    for container in cycle(containers):
        others = [other for other in containers if other != container]
        until = time.monotonic() + every_s
        while not trainers.done and (time.monotonic() < until or not any(map(is_healthy, others))):
            time.sleep(0.05)
        if trainers.done:
            return kills
        output("docker", "kill", container)
        kills += 1
        time.sleep(DOWN_S)
        output("docker", "start", container)
    return kills


def is_healthy(container: str) -> bool:
    return output("docker", "inspect", "--format", "{{.State.Health.Status}}", container).strip() == "healthy"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m soak.replicas", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long the epoch lasts (60)")
    parser.add_argument("--every", type=float, default=4, help="seconds between two kills (4)")
    parser.add_argument("--samples", type=int, default=80_000, help="of the split (80000)")
    parser.add_argument("--dim", type=int, default=768, help="numbers of an embedding (768)")
    parser.add_argument("--image", default="cpstream", help="the image of the service (cpstream)")
    given = parser.parse_args(arguments)
    if not has_engine() or not compose_command():
        print("no Docker Engine with Compose answers", file=sys.stderr)
        return 1
    size = Size(given.samples, given.dim)
    with tempfile.TemporaryDirectory(prefix="cpstream-source-") as folder:
        source = Path(folder)
        source.chmod(0o755)
        size.write(source / "data")
        try:
            with running("cpstream-soak", source / "data", given.image) as replicas:
                try:
                    with Trainers(replicas.url, size, given.seconds) as trainers:
                        kills = kill_in_turn(replicas.containers(), trainers, given.every)
                        epochs = trainers.results()
                except (WrongBatch, CpstreamError):
                    print(replicas.log(), file=sys.stderr)
                    raise
        except (EngineError, WrongBatch, CpstreamError) as error:
            print(f"soak.replicas: {error}", file=sys.stderr)
            return 1
    print(f"{kills} replicas killed by SIGKILL")
    print("\n".join(lines_of(epochs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A hostile client: `python -m benchmarks.servers.attacker HOST PORT NAME SECONDS` attacks as fast as one process can.

It comes from an address of its own, as another machine would. Says "ready", and at the end, as JSON, how often it went round and
what CPU it took. `spin` leaves the service alone and takes a share of the machine's CPU: its SECONDS are SECONDS/SHARE.
"""

import contextlib
import json
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

ADDRESS = "127.0.0.2"
BATCHES, TAKE = "/v1/splits/train/batches", "/v1/splits/train/take"
HUGE = 400_000_000
"""Samples in a batch of whoever wants "all in one"."""
TAKEN = 690_000
HELD_BYTES, REFUSED_BYTES, JSON_BYTES = 64 * 1024**2, 100_000_000, 15_000_000
_PIECE = bytes(256 * 1024)
_COUNTED = 0.9
"""Of the time: at its end a thousand threads wake up at once, which is no attack."""


class Attacker:
    """Where to attack, and until when. went_round: how many requests or connections were made."""

    def __init__(self, host: str, port: int, seconds: float) -> None:
        self.target, self.deadline, self.went_round = (host, port), time.monotonic() + seconds, 0
        self.buffer = bytearray(1024**2)

    def is_on(self) -> bool:
        return time.monotonic() < self.deadline

    def connect(self, receive_bytes: int = 0) -> socket.socket:
        sock = socket.socket()
        if receive_bytes:  # so that the kernel does not read on in our stead
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.bind((ADDRESS, 0))
        sock.settimeout(max(0.1, self.deadline - time.monotonic()))
        sock.connect(self.target)
        return sock

    def head(self, method: str, target: str, length: int = 0, kind: str = "application/octet-stream") -> bytes:
        body = f"Content-Type: {kind}\r\nContent-Length: {length}\r\n" if length else ""
        return f"{method} {target} HTTP/1.1\r\nHost: a\r\n{body}\r\n".encode()

    def again(self, once: Callable[[socket.socket], None]) -> Iterator[None]:
        """Do it once more on the same connection, on a new one where that was closed."""
        while self.is_on():
            with contextlib.suppress(OSError), self.connect() as sock:
                while self.is_on():
                    once(sock)
                    self.went_round += 1
                    yield
            yield

    def take_reply(self, sock: socket.socket, *, is_head: bool = False) -> None:
        """Read a reply to its end and throw it away."""
        seen = b""
        while b"\r\n\r\n" not in seen:
            piece = sock.recv(65536)
            if not piece:
                raise ConnectionError
            seen += piece
        head, _, body = seen.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        left = 0 if is_head else int(fields.get(b"content-length", 0)) - len(body)
        while left > 0:
            count = sock.recv_into(self.buffer)
            if not count:
                raise ConnectionError
            left -= count


def requests(*made: bytes, is_head: bool = False) -> Callable[[Attacker], Iterator[None]]:
    """The same requests over and over."""

    def attack(attacker: Attacker) -> Iterator[None]:
        def once(sock: socket.socket) -> None:
            for request in made:
                sock.sendall(request)
                attacker.take_reply(sock, is_head=is_head)

        return attacker.again(once)

    return attack


def query(method: str, parameters: str, is_head: bool = False) -> Callable[[Attacker], Iterator[None]]:
    return requests(f"{method} {BATCHES}?{parameters} HTTP/1.1\r\nHost: a\r\n\r\n".encode(), is_head=is_head)


def posts(body: Callable[[], bytes], kind: str = "application/octet-stream") -> Callable[[Attacker], Iterator[None]]:
    def attack(attacker: Attacker) -> Iterator[None]:
        content = body()
        return requests(attacker.head("POST", TAKE, len(content), kind) + content)(attacker)

    return attack


def endless_header(attacker: Attacker) -> Iterator[None]:
    def once(sock: socket.socket) -> None:
        sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        while attacker.is_on():
            sock.sendall(b"a" * 65536)

    return attacker.again(once)


def large_body(attacker: Attacker) -> Iterator[None]:
    def once(sock: socket.socket) -> None:
        sock.sendall(attacker.head("POST", TAKE, REFUSED_BYTES))
        for _ in range(REFUSED_BYTES // len(_PIECE)):
            sock.sendall(_PIECE)
        attacker.take_reply(sock)

    return attacker.again(once)


def in_threads(count: int, hold: Callable[[Attacker, socket.socket], None], receive_bytes: int = 0) -> "Attack":
    """So many connections at once, each opened anew when it is closed."""

    def attack(attacker: Attacker) -> Iterator[None]:
        def one() -> None:
            while attacker.is_on():
                with contextlib.suppress(OSError), attacker.connect(receive_bytes) as sock:
                    attacker.went_round += 1
                    hold(attacker, sock)

        for _ in range(count):
            threading.Thread(target=one, daemon=True).start()
        while attacker.is_on():
            time.sleep(0.05)
            yield

    return attack


def all_but_the_end(attacker: Attacker, sock: socket.socket) -> None:
    sock.sendall(attacker.head("POST", TAKE, HELD_BYTES))
    for _ in range(HELD_BYTES // len(_PIECE) - 1):
        sock.sendall(_PIECE)
    sock.recv(1)


def a_byte_a_second(attacker: Attacker, sock: socket.socket) -> None:
    sock.sendall(attacker.head("GET", BATCHES))
    while attacker.is_on() and sock.recv(1):
        time.sleep(1)


def nothing(attacker: Attacker, sock: socket.socket) -> None:
    sock.recv(1)


def a_letter(attacker: Attacker, sock: socket.socket) -> None:
    sock.sendall(b"G")
    sock.recv(1)


def half_once(attacker: Attacker, sock: socket.socket) -> None:
    """A batch: whole epochs would be one more good trainer."""
    sock.sendall(attacker.head("GET", f"{BATCHES}?dtype=float16&limit=1"))
    attacker.take_reply(sock)
    sock.recv(1)


def no_more(attacker: Attacker, sock: socket.socket) -> None:
    sock.sendall(attacker.head("GET", BATCHES))
    sock.recv(12)
    time.sleep(max(0.0, attacker.deadline - time.monotonic()))


def indices() -> bytes:
    return bytes(8 * TAKEN)


def numbers() -> bytes:
    return b'{"indices": [' + b"1, " * (JSON_BYTES // 3) + b"1]}"


Attack = Callable[[Attacker], Iterator[None]]
ATTACKS: dict[str, Attack] = {
    f"batches?batch_size={HUGE}&columns=cps": query("GET", f"batch_size={HUGE}&columns=cps"),
    "batches?columns=file_path&batch_size=1": query("GET", "columns=file_path&batch_size=1"),
    "batches?columns=cps&batch_size=1": query("GET", "columns=cps&batch_size=1"),
    f"HEAD batches?batch_size={HUGE}": query("HEAD", f"batch_size={HUGE}", is_head=True),
    f"take of {TAKEN:,} rows": posts(indices),
    "35 held bodies of 64 MiB": in_threads(35, all_but_the_end),
    "refused JSON bodies of 15 MB": posts(numbers, "application/json"),
    "bodies of 100 MB": large_body,
    "a header line without end": endless_header,
    "10,000 header lines": requests(b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000 + b"\r\n"),
    "500 silent connections": in_threads(500, nothing),
    "100 readers of a byte a second": in_threads(100, a_byte_a_second, 4096),
    "256 readers that stop": in_threads(256, no_more, 4096),
    "1,500 connections, open files limited to 1,024": in_threads(1500, nothing),
    "1,500 heads begun, open files limited to 1,024": in_threads(1500, a_letter),
    "float16, first time": in_threads(1, half_once),
    "float16, a batch a request": query("GET", "dtype=float16&limit=1"),
}


def spin(seconds: float, share: float) -> None:
    """Take that share of a CPU, by the clock by which the attacker's was counted: more than one by two processes."""
    child = os.fork() if share > 1 else None
    mine = share if child is None else share / 2
    began, slice_s = time.monotonic(), 0.01
    while (now := time.monotonic() - began) < seconds:
        while time.process_time() < now * mine and time.monotonic() - began < seconds:
            pass
        time.sleep(slice_s * max(0.0, 1 - mine))
    if child == 0:
        os._exit(0)
    if child is not None:
        os.waitpid(child, 0)


def main() -> None:
    host, port, name, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    print("ready", flush=True)
    if name == "spin":
        seconds, _, share = seconds.partition("/")
        spin(float(seconds), float(share))
        print(json.dumps({"cpu_s": sum(os.times()[:4])}), flush=True)
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attacker = Attacker(host, port, float(seconds))
    taken: list[float] = []
    began, counted_s = time.process_time(), _COUNTED * float(seconds)
    timer = threading.Timer(counted_s, lambda: taken.append(time.process_time() - began))
    timer.start()
    for _ in ATTACKS[name](attacker):
        pass
    timer.join()
    print(json.dumps({"went_round": attacker.went_round, "cpu_s": taken[0] / _COUNTED}), flush=True)


if __name__ == "__main__":
    main()

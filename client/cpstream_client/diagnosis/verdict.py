"""From the figures to a sentence: which of network, server, client and training loop is the limit, and what to change.

A stream is as fast as its slowest part. A part that could do several times as much by itself is not the limit; where neither end
explains the speed, the network does. Pure arithmetic.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .measure import Figures

Limit = Literal["network", "server", "client", "loop"]
EXPLAINS = 3.0
"""An end that could do up to so many times what the stream did is the limit: it has less to do when it is measured by itself."""
HALF = 0.5
ALLOWED = 0.7
"""A stream that has so much of what its token may be sent is held up by that, and not by the path."""
NEAR_S = 0.002
"""A round trip of no more is of one machine, or one room: nearer would not help."""
STOPPED = 0.05
"""A quota that stops a process for so much of the time is worth naming."""


class StatsError(ValueError):
    """What `stats` names is no figures of a loop."""


@dataclass(frozen=True, slots=True)
class Loop:
    """A training loop. step_s: what a step takes by itself; waited_s: what it waited for a batch, None where nobody knows."""

    step_s: float
    waited_s: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """limit: what the stream is held up by, or `loop` where the loop takes less than the stream gives.

    is_bound: whether the loop waits for its data, None where nothing is known of the loop. sentence: all of it, for people.
    """

    limit: Limit
    is_bound: bool | None
    sentence: str


def read_stats(path: Path) -> Loop:
    """The loop that wrote `json.dumps(loader.stats())` to the file. Raises StatsError."""
    try:
        stats: Any = json.loads(path.read_text())
        steps, loop_ms, waited_ms = stats["steps"], float(stats["loop_ms"]["mean"]), float(stats["exposed_ms"]["mean"])
    except OSError as error:
        raise StatsError(f"stats is {str(path)!r}: {error.strerror}; give the file that the training wrote") from None
    except (ValueError, TypeError, KeyError):
        raise StatsError(
            f"stats is {str(path)!r}, which does not hold a loop's figures; write it by json.dumps(loader.stats())"
        ) from None
    if not steps:
        raise StatsError(f"stats is {str(path)!r}, of a loop without a step; write it after some, by json.dumps(loader.stats())")
    return Loop(max(loop_ms, 1e-6) / 1e3, waited_ms / 1e3)


def judge(figures: Figures, loop: Loop | None) -> Verdict:
    """What the figures say."""
    part, reason, remedy = _slowest(figures)
    stream = figures.stream.samples_per_s
    if loop is None:
        return Verdict(
            part,
            None,
            f"{reason}; {remedy}. Whether the training loop is slower than that cannot be said without --step-ms or --stats.",
        )
    wanted = figures.batch_size / loop.step_s
    takes = f"it takes {_ms(loop.step_s)} a step by itself ({wanted:,.0f} samples/s in batches of {figures.batch_size})"
    if stream >= wanted:
        waits = "" if loop.waited_s is None else f" and waits {_ms(loop.waited_s)} for its batch"
        sentence = (
            f"The training loop is the limit: {takes}{waits}, and the stream gives {stream:,.0f}, "
            f"{_times(stream / wanted)} as many; "
            "no faster data helps, a faster step does (a larger batch, mixed precision, a faster device)."
        )
        if loop.waited_s is not None and loop.waited_s > loop.step_s / 4:
            sentence += (
                " That it waited all the same when its stats were written is not explained by what was measured now: compare "
                "under the same load, and see that the loop leaves a CPU to its fetching thread."
            )
        return Verdict("loop", False, sentence)
    return Verdict(part, True, f"{reason}; the training loop waits for data: {takes}. To change it, {remedy}.")


def _slowest(figures: Figures) -> tuple[Limit, str, str]:
    """The part that holds up the stream, why, and what to change."""
    stream, server, client = figures.stream, figures.server, figures.client
    of_server, of_client = figures.serving * server.samples / server.seconds, client.samples_per_s
    given = f"the stream gives {stream.samples_per_s:,.0f} samples/s ({_mb(stream.bytes_per_s)})"
    by = f" by {figures.serving} workers" if figures.serving > 1 else ""
    alone = f"the server alone could do {of_server:,.0f}{by}, this client alone {of_client:,.0f}"
    allowed = server.allowed_bytes_per_second
    if allowed is not None and stream.bytes_per_s > ALLOWED * allowed:
        return (
            "server",
            f"The token's limit is the limit: {given}, and {alone}",
            f"raise max_bytes_per_s of the token, now {_mb(allowed)}",
        )
    by_server = of_server <= EXPLAINS * stream.samples_per_s
    by_client = of_client <= EXPLAINS * stream.samples_per_s or _could_not_run(figures)
    if by_server and (of_server <= of_client or not by_client):
        return "server", f"The server is the limit: {given}, and {alone}", _for_the_server(figures)
    if by_client:
        return "client", f"The client is the limit: {given}, and {alone}", _for_the_client(figures)
    return "network", f"The network is the limit: {given}, and {alone}", _for_the_network(figures)


def _could_not_run(figures: Figures) -> bool:
    return figures.stream.stopped_s > HALF * figures.stream.seconds


def _for_the_network(figures: Figures) -> str:
    half = "" if figures.dtype == "float16" else "dtype='float16' halves the bytes, "
    cached = f"{half}a cache makes later epochs local (cache='memory' or a directory)"
    round_trip_s = figures.round_trip_s
    if round_trip_s is not None and round_trip_s <= NEAR_S:
        return f"{cached}, or look at what is in between: a proxy, a slow link, or other programs that leave either end no CPU"
    far = (
        ""
        if round_trip_s is None
        else f" (a packet takes {_ms(round_trip_s)} there and back, over {figures.connections} connections at most)"
    )
    return f"{cached}, or move the trainer closer{far}"


def _for_the_server(figures: Figures) -> str:
    server = figures.server
    if server.throttled_seconds is not None and server.throttled_seconds > STOPPED * server.seconds:
        stopped = f"which stopped it for {server.throttled_seconds:.2f} s of {server.seconds:.2f}"
        return f"raise the CPU limit of the service, now {server.cpus:g} CPUs, {stopped}"
    if not server.in_memory:
        return "give it more memory, or ask for shuffle='blocks': its data does not fit, and is read from the disk"
    if server.wait_seconds > server.seconds / 2 and server.other_streams:
        return f"serve by more workers or replicas: {server.other_streams} other streams take their turns in the same one"
    if server.cpu_seconds < server.seconds / 2:
        return f"give it CPU: it got {server.cpu_seconds / server.seconds:.0%} of one, and something else on its machine the rest"
    return "serve by more workers or replicas, on a machine whose CPUs have less to do"


def _for_the_client(figures: Figures) -> str:
    stream = figures.stream
    if stream.throttled_s is not None and stream.throttled_s > STOPPED * stream.seconds:
        stopped = f"which stopped it for {stream.throttled_s:.2f} s of {stream.seconds:.2f}"
        return f"raise the CPU limit of the trainer, now {figures.cpus:g} CPUs, {stopped}"
    if _could_not_run(figures):
        stopped = f"for {stream.stopped_s:.2f} s of {stream.seconds:.2f} it wanted to run and did not"
        return f"give it CPU: {stopped}, since something else on its machine, or a limit, kept it from that"
    busy = figures.client.cpu_s / figures.client.seconds
    if busy < HALF:
        return f"give it CPU: it got {busy:.0%} of one, and something else on its machine the rest"
    half = "" if figures.dtype == "float16" else ", ask for dtype='float16'"
    return f"take several DataLoader workers{half}, or keep the split (cache='memory'), which is verified once"


def _ms(seconds: float) -> str:
    return f"{_short(seconds * 1e3)} ms"


def _mb(bytes_per_s: float) -> str:
    return f"{_short(bytes_per_s / 1e6)} MB/s"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(ratio: float) -> str:
    return f"{ratio:,.1f} times" if ratio < 10 else f"{ratio:,.0f} times"

"""cpstream doctor: why a training is slow, seen from the machine that trains. It needs the client, and cpstream[cli]."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

from cpstream_client import BatchQuery, Client, SplitInfo
from cpstream_client.contract.plan import Shuffle
from cpstream_client.contract.wire import Dtype
from cpstream_client.diagnosis.measure import Figures, measure
from cpstream_client.diagnosis.verdict import Loop, StatsError, Verdict, judge, read_stats

from ..setting_errors import SettingsError
from .ask import print_json
from .common import AsJson, console, others, table_of
from .way import Way, client_of


def doctor(
    url: str,
    *,
    split: str | None = None,
    batch_size: int = 256,
    shuffle: Shuffle = "uniform",
    dtype: Dtype = "float32",
    seconds: Annotated[float, Parameter(show_env_var=False)] = 3.0,
    step_ms: Annotated[float | None, Parameter(show_env_var=False)] = None,
    stats: Annotated[Path | None, Parameter(show_env_var=False)] = None,
    as_json: AsJson = False,
    way: Way = None,
) -> int:
    """Say why a training is slow: is the network the limit, the server, this client, or the training loop?

    Run it on the machine that trains, with what the training script gives to its dataset.

    **Examples**

    ```
    cpstream doctor http://data:8000
    cpstream doctor http://data:8000 --split train --batch-size 32 --step-ms 45
    cpstream doctor http://data:8000 --stats stats.json --json
    ```

    Parameters
    ----------
    url
        Where the service is.
    split
        Name of the split; the largest one when not given.
    batch_size
        Samples in a batch of the training loop.
    shuffle
        Order of the epoch: none, uniform (what shuffle=True is in Python), or blocks.
    dtype
        Of the embeddings: float32 or float16.
    seconds
        How long to stream.
    step_ms
        What a step of the training loop takes by itself, in milliseconds.
    stats
        File of what loader.stats() said in the training: Path(...).write_text(json.dumps(loader.stats())).
    as_json
        Print a JSON object instead.
    """
    loop = _loop(step_ms, stats)
    if not 0 < seconds <= 600:
        raise SettingsError(f"seconds is {seconds:g}; it must be above 0 and at most 600 (--seconds)")
    try:
        query = BatchQuery(batch_size=batch_size, shuffle=shuffle, dtype=dtype)
        query.plan(1)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    with client_of(url, way) as client:
        figures = measure(client, _split(client, split), query, seconds)
    verdict = judge(figures, loop)
    if as_json:
        print_json(
            {
                "limit": verdict.limit,
                "data_bound": verdict.is_bound,
                "sentence": verdict.sentence,
                "figures": _members(figures, loop),
            }
        )
    else:
        print_figures(figures, loop, verdict, console())
    return 0


def print_figures(figures: Figures, loop: Loop | None, verdict: Verdict, to: Console) -> None:
    """A row for each part of the way, with what it could do by itself, and the sentence below."""
    server = figures.server
    title = f"{others(figures.split)}, batches of {figures.batch_size}, {figures.dtype}"
    table = table_of(title, "measured", "samples/s", "MB/s", "CPU", "throttled")
    for name, samples, nbytes, seconds, cpu_s, stopped in (
        ("stream", figures.stream.samples, figures.stream.nbytes, *_times_of(figures.stream)),
        (
            "server alone" if figures.serving == 1 else f"{figures.serving} x one worker alone",
            server.samples * figures.serving,
            server.bytes * figures.serving,
            server.seconds,
            server.cpu_seconds,
            server.throttled_seconds,
        ),
        ("client alone", figures.client.samples, figures.client.nbytes, *_times_of(figures.client)),
    ):
        table.add_row(
            name,
            f"{samples / seconds:,.0f}",
            f"{nbytes / seconds / 1e6:,.1f}",
            f"{cpu_s / seconds:.0%}",
            "" if stopped is None else f"{stopped / seconds:.0%}",
        )
    if loop is not None:
        table.add_row("training loop", f"{figures.batch_size / loop.step_s:,.0f}", "", "", "")
    to.print(table)
    path = [f"first batch after {figures.first_batch_s * 1e3:,.1f} ms", f"small request {figures.answer_s * 1e3:,.1f} ms"]
    if figures.round_trip_s is not None:
        path.append(f"round trip {figures.round_trip_s * 1e3:,.2f} ms")
    path.append(f"{figures.connections} connection{'s' * (figures.connections > 1)}")
    to.print(Text(", ".join(path)))
    to.print(Text(verdict.sentence), style="bold")


def _times_of(rate: object) -> tuple[float, float, float | None]:
    return rate.seconds, rate.cpu_s, rate.throttled_s  # type: ignore[attr-defined]


def _loop(step_ms: float | None, stats: Path | None) -> Loop | None:
    if step_ms is not None and stats is not None:
        raise SettingsError("step_ms and stats are both given; leave one out (--step-ms, --stats)")
    if stats is not None:
        try:
            return read_stats(stats)
        except StatsError as error:
            raise SettingsError(f"{error} (--stats)") from None
    if step_ms is None:
        return None
    if not 0 < step_ms < float("inf"):
        raise SettingsError(f"step_ms is {step_ms:g}; it must be more than 0 milliseconds (--step-ms)")
    return Loop(step_ms / 1e3)


def _split(client: Client, name: str | None) -> SplitInfo:
    if name is not None:
        return client.split(name)
    return max(client.splits(), key=lambda info: info.num_samples)


def _members(figures: Figures, loop: Loop | None) -> dict[str, object]:
    """As JSON has them."""
    server = figures.server.model_dump(mode="json")
    members = {**asdict(figures), "server": server}  # asdict leaves the body as it is
    for name in ("stream", "client"):
        rate = getattr(figures, name)
        members[name] = {**asdict(rate), "samples_per_s": rate.samples_per_s, "bytes_per_s": rate.bytes_per_s}
    server["samples_per_s"] = figures.server.samples / figures.server.seconds
    server["bytes_per_s"] = figures.server.bytes / figures.server.seconds
    members["loop"] = None if loop is None else asdict(loop)
    return members

"""Train a speech-rate regressor from a running cpstream service, or from local files; stop it and resume it anywhere.

It reads from top to bottom, and is meant to be copied and changed. Where the samples come from is in samples.py, the model in
model.py, and what several processes or a stop need in ranks.py.
"""

import dataclasses
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
import pandas as pd
import torch
from cyclopts import Parameter
from model import Moments, Score, SpeechRateMLP
from ranks import Ranks, write_atomically
from samples import DataOptions, Samples, open_samples
from torch import nn
from tqdm import tqdm

from cpstream_client import CpstreamError
from cpstream_service.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What is trained, and how."""

    out: Path = Path("runs/speech-rate")
    """Folder for checkpoint.pt, metrics.json, predictions.csv and predictions.png."""
    resume: bool = False
    """Go on from the checkpoint in --out; begin anew where there is none, so that a job can always be given it."""
    epochs: int = 40
    """Passes over train. The learning rate falls along a cosine until the last."""
    batch_size: int = 64
    """Samples a step and process."""
    lr: float = 1e-3
    """Learning rate of AdamW at the beginning."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    hidden: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (256, 128, 64)
    """Widths of the hidden layers."""
    dropout: float = 0.3
    """Share of the activations left out while training."""
    seed: int = 0
    """Of the first weights, the order of the samples, and dropout."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model is. Under torchrun with cuda, each process takes the GPU of its local rank."""
    threads: int = 1
    """CPU threads. More of them help wide layers only, and may change the last bits of every sum."""
    checkpoint_every: int = 200
    """Steps between checkpoints, besides those at the end of every epoch."""
    predict: str = "test"
    """Split whose predictions are written at the end."""
    publish: str | None = None
    """Name under which the service keeps these predictions, too, beside those of other runs; it needs --state-dir."""


_TRAIN, _DATA = TrainOptions(), DataOptions()
app = cyclopts.App(name="train_model.py", help_format="markdown", default_parameter=Parameter(negative=()))


@app.default
def main(
    *,
    options: Annotated[TrainOptions, Parameter(name="*", group="Training")] = _TRAIN,
    data: Annotated[DataOptions, Parameter(name="*", group="Data")] = _DATA,
) -> int:
    """Train an MLP that tells the speech rate (CPS, characters per second) from an embedding.

    Ctrl-C or SIGTERM finishes the step, writes a checkpoint and says how to resume. A run that was stopped, or killed, and resumed
    ends with the same weights as one that was not, to the bit.

    **Examples**

    ```
    python examples/train_model.py --url http://localhost:8000
    python examples/train_model.py --url http://data1:8000 --url http://data2:8000 --out runs/a --resume
    python examples/train_model.py --local --source-path examples/speech/data
    torchrun --nproc-per-node 2 examples/train_model.py --hidden 512 256
    ```
    """
    samples = open_samples(data)
    ranks = Ranks.join(options.device)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "checkpoint.pt"

    # The model, which standardises by the mean and deviation of train, and the samples that it learns from.
    moments = Moments(samples.batches("train", ranks.rank, ranks.world_size))
    moments.sums = ranks.sum(moments.sums)
    torch.manual_seed(options.seed)
    model = SpeechRateMLP(moments.embedding_dim, options.hidden, options.dropout)
    model.standardise_by(*moments.mean_and_std())
    model.to(ranks.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    loader = samples.train_loader(options.batch_size, options.seed, ranks.rank, ranks.world_size)
    torch.manual_seed(options.seed + 1_000_003 * ranks.rank)  # the same weights on every rank, but other dropout
    history: list[dict[str, float]] = []
    so_far = torch.zeros(3, dtype=torch.float64)  # of the epoch under way: loss x samples, samples, seconds

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "loader": loader.state_dict(),
            "history": history,
            "options": {name: value if name != "out" else str(value) for name, value in dataclasses.asdict(options).items()},
        }
        ranks.save(checkpoint, state, {"so_far": so_far})

    if options.resume and checkpoint.exists():
        state, parts = ranks.load(checkpoint)
        for name in ("hidden", "seed"):
            if state["options"][name] != getattr(options, name):
                raise ValueError(
                    f"{checkpoint} was made with --{name} {state['options'][name]}; resume with it, or take another --out"
                )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])  # refuses other data
        history = state["history"]
        if len(parts) == ranks.world_size:
            so_far = parts[ranks.rank]["so_far"]
        elif ranks.rank == 0:  # there are more or fewer ranks now: one of them goes on with the sums of all
            so_far = torch.stack([part["so_far"] for part in parts]).sum(0)

    for epoch in range(loader.state_dict()["epoch"], options.epochs):
        loader.set_epoch(epoch)
        for group in optimizer.param_groups:
            group["lr"] = options.lr * (1 + math.cos(math.pi * epoch / options.epochs)) / 2
        model.train()
        loss_of = nn.MSELoss()
        steps = len(loader)
        first_step = steps - loader.steps_left  # 0, but where an epoch goes on
        bar = tqdm(loader, f"epoch {epoch + 1}", steps, initial=first_step, leave=False, disable=ranks.rank > 0 or None)
        time_s = time.perf_counter()
        for step, (embeddings, cps) in enumerate(bar, first_step + 1):
            embeddings, cps = embeddings.to(ranks.device), cps.to(ranks.device)  # (B, D) float32, (B,) float32
            optimizer.zero_grad()
            loss = loss_of(model(embeddings), model.standardise(cps))
            loss.backward()
            stop = ranks.average_gradients(model)
            optimizer.step()
            now_s = time.perf_counter()
            so_far += torch.tensor([loss.item() * len(cps), len(cps), now_s - time_s], dtype=torch.float64)
            time_s = now_s
            if step < steps and (stop or step % options.checkpoint_every == 0):
                save()
                if stop:
                    return ranks.say_how_to_resume()

        dev = evaluate(model, samples, "dev", ranks)
        loss_sum, num_samples = ranks.sum(so_far)[:2].tolist()
        record = {
            "epoch": epoch + 1,
            "lr": optimizer.param_groups[0]["lr"],
            "train_loss": loss_sum / num_samples,
            "dev_r2": dev.r2,
            "dev_mae": dev.mae,
            "samples": int(num_samples),
            "samples_per_s": round(num_samples / float(so_far[2]), 1),
        }
        history.append(record)
        so_far.zero_()
        save()
        if ranks.rank == 0:
            write_atomically(options.out / "metrics.json", json.dumps(history, indent=2).encode())
            figures = f"train loss {record['train_loss']:.5f}  dev R2 {dev.r2:.4f}  dev MAE {dev.mae:.3f}"
            print(f"epoch {epoch + 1:3d}  {figures}  {record['samples_per_s']:7,.0f} samples/s", flush=True)

    if ranks.rank == 0:
        write_predictions(model, samples, options)
    ranks.leave()
    return 0


def evaluate(model: SpeechRateMLP, samples: Samples, split: str, ranks: Ranks) -> Score:
    """How well the model does on a split, each sample counted once, whatever the number of ranks."""
    model.eval()
    score = Score()
    for embeddings, cps, _ in samples.batches(split, ranks.rank, ranks.world_size):
        score.add(cps, model.predict(embeddings.to(ranks.device)))
    score.sums = ranks.sum(score.sums)
    return score


def write_predictions(model: SpeechRateMLP, samples: Samples, options: TrainOptions) -> None:
    """predictions.csv and predictions.png of a whole split."""
    from plots import plot_predictions

    model.eval()
    score, parts = Score(), []
    for embeddings, cps, file_paths in samples.batches(options.predict):
        predicted = model.predict(embeddings.to(model.cps_mean.device)).cpu()
        score.add(cps, predicted)
        parts.append(pd.DataFrame({"file_path": file_paths, "predicted": predicted.double().numpy()}))
    table = samples.join(options.predict, pd.concat(parts))  # with the true rates, and a row for each sample, or it says which not
    table["error"] = table["predicted"] - table["cps"].astype("float64")
    write_atomically(options.out / "predictions.csv", table.to_csv(index=False, float_format="%.4f").encode())
    if options.publish:
        samples.publish(options.predict, options.publish, table)
    plot_predictions(table, score, options.predict, options.out / "predictions.png")
    print(
        f"{options.predict}: R2 {score.r2:.4f}, MAE {score.mae:.3f} characters/s, {score.n} samples; all files are in {options.out}"
    )


if __name__ == "__main__":
    try:
        app()
    except (CpstreamError, DataError, ValueError) as error:
        sys.exit(f"train_model.py: {error}")

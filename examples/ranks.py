"""What several processes, a signal or a lost machine add to a training loop: sums over ranks, stopping, checkpoints."""

import io
import os
import shlex
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass
class Ranks:
    """This process among those that torchrun started; alone, where none did. received: signals that told it to stop."""

    rank: int
    world_size: int
    device: torch.device
    received: list[int] = field(default_factory=list)

    @classmethod
    def join(cls, device: str) -> "Ranks":
        """Rank and world size from torchrun's environment; from here on a signal asks to stop instead of killing."""
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        place = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" else "cpu")
        if place.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
            torch.cuda.set_device(place)
        if world_size > 1:
            dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        ranks = cls(rank, world_size, place)
        signal.signal(signal.SIGINT, ranks._receive)
        signal.signal(signal.SIGTERM, ranks._receive)
        return ranks

    def leave(self) -> None:
        if self.world_size > 1:
            dist.destroy_process_group()

    def _receive(self, signum: int, _: object) -> None:
        self.received.append(signum)
        if self.world_size == 1:  # torchrun passes on the Ctrl-C that the ranks have had already
            signal.signal(signum, signal.SIG_DFL)  # the second one ends the process at once

    def sum(self, values: Tensor) -> Tensor:
        """The sums of `values` over the ranks, on every rank."""
        if self.world_size == 1:
            return values
        total = values.to(self.device)
        dist.all_reduce(total)
        return total.to(values.device)

    def average_gradients(self, model: nn.Module) -> bool:
        """Give every rank the mean gradient, and say whether any of them was told to stop: one message for both.

        For a model that takes long to send, use DistributedDataParallel, which sends while it still computes.
        """
        if self.world_size == 1:
            return bool(self.received)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        stop = torch.tensor([float(bool(self.received))], device=self.device)
        flat = torch.cat([gradient.flatten() for gradient in gradients] + [stop])
        dist.all_reduce(flat)
        flat /= self.world_size
        for gradient, mean in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients] + [1]), strict=False):
            gradient.copy_(mean.view_as(gradient))
        return bool(flat[-1] > 0)

    def save(self, path: Path, state: dict[str, Any], own: dict[str, Any]) -> None:
        """Write a checkpoint: the state that is the same on all ranks, and of each rank its own part and its random generators.

        All ranks call it and rank 0 writes. A reader finds the old file or the new one, whenever the machine stops.
        """
        own = own | {"rng": torch.get_rng_state()}
        if self.device.type == "cuda":
            own["cuda_rng"] = torch.cuda.get_rng_state()
        of_ranks: list[Any] = [own]
        if self.world_size > 1:
            of_ranks = [None] * self.world_size
            dist.all_gather_object(of_ranks, own)
        if self.rank == 0:
            buffer = io.BytesIO()
            torch.save(state | {"ranks": of_ranks}, buffer)
            write_atomically(path, buffer.getvalue())

    def load(self, path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What `save` was given: the state, and of every rank of then its own part. Sets the random generators back."""
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        of_ranks: list[dict[str, Any]] = state.pop("ranks")
        if self.rank < len(of_ranks):
            torch.set_rng_state(of_ranks[self.rank]["rng"])
            if self.device.type == "cuda" and "cuda_rng" in of_ranks[self.rank]:
                torch.cuda.set_rng_state(of_ranks[self.rank]["cuda_rng"])
        return state, of_ranks

    def say_how_to_resume(self) -> int:
        """Print the command that goes on, and return the exit code that shells give to what a signal ended."""
        if self.rank == 0:
            launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(self.world_size)] if self.world_size > 1 else []
            arguments = [argument for argument in sys.argv if argument != "--resume"]
            command = shlex.join([os.path.relpath(sys.executable), *launcher, *arguments, "--resume"])
            print(f"stopped after a checkpoint; to go on: {command}", file=sys.stderr)
        return 128 + (self.received or [signal.SIGTERM])[0]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file by a whole new one, on disk before it has the name."""
    beside = path.with_name(path.name + ".new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)

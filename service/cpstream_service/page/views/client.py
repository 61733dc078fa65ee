"""The code that reads a split of this very service, and the line that installs its client."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """url: of the service, as whoever looks reached it. The browser puts its own in, which a proxy may have hidden from us."""

    url: str
    split: str
    dimension: int
    wheel: str | None
    sha256: str | None
    has_tokens: bool

    @property
    def pip(self) -> str:
        """Without a wheel of the service's own, the client is to be had where the service was."""
        if self.wheel is None:
            return "pip install 'cpstream[torch]'"
        return f"pip install 'cpstream[torch] @ {self.url}/{self.wheel}#sha256={self.sha256}'"

    @property
    def python(self) -> str:
        return f"""\
from cpstream_client.torch import StreamingEmbeddingsDataset, loader

dataset = StreamingEmbeddingsDataset("{self.url}", {literal(self.split)}, batch_size=256, shuffle=True, seed=0)
train = loader(dataset)
for epoch in range(3):
    for embeddings, cps in train:  # (256, {self.dimension}) float32, (256,) float32
        ...  # your training step
"""


def literal(text: str) -> str:
    """As Python has it, in double quotes where that needs no escapes."""
    quoted = repr(text)
    return f'"{text}"' if quoted == f"'{text}'" and '"' not in text else quoted

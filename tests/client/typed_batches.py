"""What a type checker makes of loops over batches: `make lint` asks it. What is ignored must be an error, or mypy complains."""

from typing import Any, assert_type

from torch import Tensor

from cpstream_client.torch import Loader, StreamingEmbeddingsDataset, loader

train = StreamingEmbeddingsDataset("http://data:8000", "train", batch_size=32, shuffle="blocks")
for batch in train:
    assert_type(batch, tuple[Tensor, Tensor])
for batch in loader(train, num_workers=2):
    assert_type(batch, tuple[Tensor, Tensor])

chosen = StreamingEmbeddingsDataset(["http://a:8000", "http://b:8000"], "train", columns=("embedding", "cps", "file_path"), seed=1)
for embeddings, cps, file_paths in loader(chosen):
    assert_type((embeddings, cps, file_paths), tuple[Any, Any, Any])


def train_on(dataset: StreamingEmbeddingsDataset) -> Loader:
    """Without a type of its items."""
    return loader(dataset)


StreamingEmbeddingsDataset("http://data:8000", "train", batch_sise=32)  # type: ignore[call-overload]
StreamingEmbeddingsDataset("http://data:8000", "train", shuffle="yes")  # type: ignore[call-overload]

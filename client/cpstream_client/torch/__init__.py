"""Datasets for torch.utils.data.DataLoader, filled over HTTP.

StreamingEmbeddingsDataset yields ready batches of a planned epoch and is what training loops want; loader makes a DataLoader of it
whose state can be saved, and which takes any sampler. RemoteEmbeddingsDataset is map-style: any sample at any time. Both deliver
what the local RegressionEmbeddingsDataset would, bit for bit.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("cpstream_client.torch needs PyTorch: pip install 'cpstream[torch]'", name="torch") from error

from .loader import Loader
from .make_loader import loader
from .remote import RemoteEmbeddingsDataset
from .streaming import StreamingEmbeddingsDataset
from .weights import inverse_density_weights

__all__ = ["Loader", "RemoteEmbeddingsDataset", "StreamingEmbeddingsDataset", "inverse_density_weights", "loader"]

"""What people may build on: names of the packages, commands, paths of the API. A change here is one for CHANGELOG.md."""

from importlib import import_module
from importlib.metadata import version
from inspect import Parameter, signature
from types import ModuleType

import pytest

import cpstream_client
import cpstream_client.torch
import cpstream_service
import cpstream_service.dataset
from cpstream_client.torch import StreamingEmbeddingsDataset
from cpstream_client.torch.items import StreamingOptions
from cpstream_client.transport.options import ClientOptions
from cpstream_service.app import create_app
from cpstream_service.cli.app import app
from cpstream_service.settings import ServeSettings
from cpstream_service.snapshot.store import Snapshot

CLIENT = """
    AlignmentReport Batch BatchQuery Client ContractMismatch CorruptedError CpsStats CpstreamError DatasetChanged Dropped
    ForeignReplyError ForgottenError InvalidRequestError NotFoundError Plan PlanStep RankSamples Retry Rows Sample ServiceError
    SplitInfo StateMismatch TransportError UnauthorizedError UnavailableError UnmatchedError UnreachableError __version__
"""
TORCH = "Loader RemoteEmbeddingsDataset StreamingEmbeddingsDataset inverse_density_weights loader"
DATASET = "BaseDataset RegressionEmbeddingsDataset"
COMMANDS = "check doctor info ingest plan prepare serve"
PATHS = """
    /client /client/{name} /livez /metrics /problems/{code} /readyz /v1/reload /v1/splits /v1/splits/{split}
    /v1/splits/{split}/alignment /v1/splits/{split}/batches /v1/splits/{split}/cps.npy /v1/splits/{split}/data.parquet
    /v1/splits/{split}/diff /v1/splits/{split}/embeddings.npy /v1/splits/{split}/file_paths.json /v1/splits/{split}/measure
    /v1/splits/{split}/dropped.csv
    /v1/splits/{split}/neighbours /v1/splits/{split}/plan /v1/splits/{split}/predictions /v1/splits/{split}/predictions/{name}
    /v1/splits/{split}/predictions/{name}/points /v1/splits/{split}/projection /v1/splits/{split}/rows
    /v1/splits/{split}/statistics /v1/splits/{split}/take /v1/versions
"""


@pytest.mark.parametrize(("module", "names"), [(cpstream_client, CLIENT), (cpstream_client.torch, TORCH)])
def test_names_of_the_client(module: ModuleType, names: str) -> None:
    assert module.__all__ == sorted(names.split())
    assert all(hasattr(module, name) for name in module.__all__)


def test_type_checkers_know_all_options_of_the_dataset() -> None:
    parameters = signature(StreamingEmbeddingsDataset.__init__).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind == Parameter.KEYWORD_ONLY}
    assert StreamingOptions.__annotations__.keys() == named - {"columns"} | ClientOptions.__annotations__.keys()


def test_names_of_the_local_twin() -> None:
    module = cpstream_service.dataset
    own = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__ and name[0] != "_"}
    assert own == set(DATASET.split())


def test_commands() -> None:
    assert {name for name in app if not name.startswith("-")} == set(COMMANDS.split())


def test_paths_of_the_api(snapshot: Snapshot) -> None:
    assert set(create_app(snapshot, ServeSettings()).openapi()["paths"]) == set(PATHS.split())


@pytest.mark.parametrize("package", ["cpstream_client", "cpstream_service"])
def test_packages_know_their_version(package: str) -> None:
    assert import_module(package).__version__ == version("cpstream")
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        import_module(package).nothing  # noqa: B018

"""The code that the page offers is what reads this very service."""

import httpx
import pytest
from conftest import Server

from cpstream_client.contract.bodies import ClientInfo, SplitInfo
from cpstream_service.page.views.client import Code, code, literal


def of(server: Server, client: ClientInfo) -> Code:
    info = SplitInfo.model_validate(httpx.get(f"{server.url}/v1/splits/dev").json())
    return code(server.url, info, client, has_tokens=False)


def test_it_runs_as_it_stands(server: Server) -> None:
    offered = of(server, ClientInfo(contract=1, version=None, wheel=None, sha256=None))
    assert offered.pip == "pip install 'cpstream[torch]'"
    assert "(256, 154) float32" in offered.python
    shapes: list[tuple[int, ...]] = []
    exec(offered.python.replace("...", "shapes.append((*embeddings.shape, *cps.shape))"), {"shapes": shapes})
    assert shapes == [(256, 154, 256), (44, 154, 44)] * 3


def test_pip_takes_the_wheel_of_the_service(server: Server) -> None:
    wheel = "client/cpstream-0.1.0+g1a2b3c-py3-none-any.whl"
    offered = of(server, ClientInfo(contract=1, version="0.1.0", wheel=wheel, sha256="6f0c"))
    assert offered.pip == f"pip install 'cpstream[torch] @ {server.url}/{wheel}#sha256=6f0c'"


@pytest.mark.parametrize("name", ["train", 'a"b', "it's", "<b>", "\u202e", "a\\b", "line\nend"])
def test_a_split_of_any_name_is_named_right(name: str) -> None:
    assert eval(literal(name)) == name
    assert literal(name).isprintable()

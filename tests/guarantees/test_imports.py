"""What an import loads, seen from a fresh interpreter: the client stays light, and the service never needs torch."""

import subprocess
import sys

HEAVY = ("torch", "pandas", "fastapi", "starlette", "uvicorn", "chromadb", "httpx", "cpstream_service")


def all_loaded_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter has after the statement."""
    program = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def loaded_by(statement: str) -> set[str]:
    """The same, top-level ones."""
    return {name.partition(".")[0] for name in all_loaded_by(statement)}


def test_the_client_is_light() -> None:
    modules = loaded_by("import cpstream_client; cpstream_client.Client('http://localhost:1')")
    assert "cpstream_client" in modules
    assert not modules & set(HEAVY)


def test_torch_is_loaded_where_it_is_asked_for_and_nothing_of_the_service() -> None:
    modules = loaded_by("import cpstream_client.torch")
    assert "torch" in modules
    assert not modules & {"fastapi", "starlette", "uvicorn", "chromadb", "cpstream_service"}


def test_the_service_loads_neither_torch_nor_pandas_nor_chromadb() -> None:
    modules = loaded_by("import cpstream_service.__main__, cpstream_service.cli.app, cpstream_service.serve")
    assert not modules & {"torch", "pandas", "chromadb"}


def test_a_process_of_the_service_loads_no_client_and_one_that_reads_a_table_no_pydantic() -> None:
    processes = "cpstream_service.app, cpstream_service.versions.child, cpstream_service.statistics.worker"
    assert "cpstream_client.client" not in all_loaded_by(f"import {processes}")
    assert not loaded_by("import cpstream_service.statistics.predictions.table") & {"pydantic", "tqdm"}


def test_the_hot_path_loads_no_web_framework() -> None:
    modules = loaded_by("import cpstream_service.batches.server")
    assert "cpstream_service" in modules
    assert not modules & {"fastapi", "starlette", "uvicorn", "prometheus_client"}


def test_a_running_command_line_has_not_loaded_chromadb() -> None:
    run = "from cpstream_service.cli.app import app; app(['serve', '--help'], result_action='return_none')"
    program = f"import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()): exec({run!r})"
    assert not loaded_by(program) & {"torch", "pandas", "chromadb", "fastapi"}


def test_importing_configures_no_logging() -> None:
    check = "import logging; assert not logging.root.handlers and logging.getLogger('cpstream').level == 0"
    loaded_by(f"import cpstream_client, cpstream_service.app, cpstream_service.serve; {check}")


def test_a_missing_torch_says_what_to_install() -> None:
    program = "import sys; sys.modules['torch'] = None; import cpstream_client.torch"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode != 0
    assert "cpstream[torch]" in done.stderr.splitlines()[-1]

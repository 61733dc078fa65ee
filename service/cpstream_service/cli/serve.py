"""cpstream serve: align the data and serve it."""

from ..errors import AlignmentError
from ..settings import ServeSettings
from .check import print_reports
from .common import Data, Folder, Serve, console, data_of, failed


def serve(folder: Folder = None, /, *, data: Data = None, settings: Serve = None) -> int:
    """Align the data, then serve it over HTTP until SIGTERM or Ctrl-C.

    Bad data stops the start with a message and exit code 1, an address in use with exit code 3.

    **Examples**

    ```
    cpstream serve data/processed/embeddings
    cpstream serve data --cps-csv 'tables/{split}.csv' --path-column path --workers 2
    cpstream serve --source-type chromadb --chroma-host chroma --cps-csv 'data/{split}_cps.csv'
    CPSTREAM_TOKEN_FILE=/run/secrets/token CPSTREAM_PORT=9000 cpstream serve data --splits train dev
    ```
    """
    from ..serve import CANNOT_START, CannotStart
    from ..serve import serve as serve_until_signal

    try:
        return serve_until_signal(data_of(folder, data), settings or ServeSettings())
    except CannotStart as error:
        return failed(error, CANNOT_START)
    except AlignmentError as error:
        print_reports(error.reports, console(stderr=True))
        return failed(error)

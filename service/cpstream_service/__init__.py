"""The cpstream service. `create_app` is in .app, the command line in .cli, the local torch dataset in .dataset."""

from typing import TYPE_CHECKING

__version__: str

if not TYPE_CHECKING:  # for a type checker, a module with __getattr__ has every name

    def __getattr__(name: str) -> str:
        """Of the installed package; looked up when asked for, since that reads files."""
        if name == "__version__":
            from importlib.metadata import version

            return version("cpstream")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

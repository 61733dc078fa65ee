"""What can be wrong with the data or the settings, as exceptions.

    DataError                   bad input data or settings; the command line prints it as one line and exits non-zero
    ├── AlignmentError          a split without aligned samples, or strict with something dropped; .reports say what and why
    └── SourceUnavailableError  the source cannot be reached now; the last good snapshot may serve instead

Each message names the file, the row or key, and the remedy.
"""

from cpstream_client.wire import AlignmentReport


class DataError(Exception):
    """Bad input data or settings. The message names the file, the row or key, and the remedy."""


class AlignmentError(DataError):
    """The alignment is not good enough to serve. reports: one for each split."""

    def __init__(self, message: str, reports: tuple[AlignmentReport, ...] = ()) -> None:
        super().__init__(message)
        self.reports = reports

    def __reduce__(self) -> tuple[type["AlignmentError"], tuple[str, tuple[AlignmentReport, ...]]]:
        return type(self), (str(self), self.reports)


class SourceUnavailableError(DataError):
    """The source cannot be reached now."""

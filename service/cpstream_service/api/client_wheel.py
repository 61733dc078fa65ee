"""The client that fits this service, as a wheel: built with the image, and by `make serve` in a checkout.

It lies where the installation keeps its data, <prefix>/share/cpstream/. A service installed from a package index has none: there,
the client of the same version is to be had, too.
"""

import sys
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

FOLDER = Path(sys.prefix, "share", "cpstream")


@dataclass(frozen=True)
class Wheel:
    """A wheel, whole: it is a few hundred KB."""

    name: str
    content: bytes

    @property
    def version(self) -> str:
        return self.name.split("-")[1]

    @property
    def sha256(self) -> str:
        """In hexadecimal, as pip wants it."""
        return sha256(self.content).hexdigest()


@lru_cache(maxsize=1)
def find_wheel() -> Wheel | None:
    """The wheel of this installation; None where there is none, or several, so that nobody can say which one fits."""
    paths = list(FOLDER.glob("cpstream-*.whl"))
    return Wheel(paths[0].name, paths[0].read_bytes()) if len(paths) == 1 else None

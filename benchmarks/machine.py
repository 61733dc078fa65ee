"""Where a run took place."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "cpstream",
    "torch",
    "numpy",
    "pyarrow",
    "uvicorn",
    "uvloop",
    "httptools",
    "chromadb",
    "datasets",
    "litdata",
    "mosaicml-streaming",
    "pylance",
    "webdataset",
)


def machine() -> dict[str, Any]:
    """Hardware, kernel and versions. load_average: how busy it was before the run."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch_threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def slug(where: dict[str, Any]) -> str:
    """A short name of the machine for a file: 2-core-intel-xeon-processor."""
    cpu = re.sub(r"\((r|tm)\)|cpu|@.*", "", where["cpu"].lower())
    return "-".join([f"{where['cores']}-core", *re.findall(r"[a-z0-9.]+", cpu)])


def _field(path: str, name: str) -> str | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

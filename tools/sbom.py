"""What a wheel or an image is made of, as CycloneDX JSON on stdout.

    python tools/sbom.py wheel dist/cpstream-0.1.0-py3-none-any.whl     itself, and all that requirements/service.txt pins for it
    python tools/sbom.py image cpstream                                 every Python package and every Debian package in it

Of the wheel, hashes are those of the lock file; of the image, versions are those that lie in it. `make sbom` writes both to dist/.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable
from email import message_from_string
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "service.txt"
PIN = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>.+?))?(?P<hashes>(?: \\\n    --hash=sha256:[0-9a-f]{64})+)", re.M
)
IN_IMAGE = """
import importlib.metadata, json
print(json.dumps([[d.name, d.version, d.metadata.get("License-Expression") or ""] for d in importlib.metadata.distributions()]))
"""


def of_wheel(wheel: Path) -> Bom:
    with ZipFile(wheel) as files:
        (about,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(files.read(about).decode())
    root = python_package(metadata["Name"], metadata["Version"], metadata["License-Expression"] or "", ComponentType.APPLICATION)
    root.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=sha256(wheel.read_bytes()).hexdigest()))
    found = []
    for pin in PIN.finditer(LOCK.read_text()):
        component = python_package(pin["name"], pin["version"])
        component.properties.update(
            Property(name="cpstream:sha256", value=text) for text in re.findall(r"sha256:(\w+)", pin["hashes"])
        )
        if pin["marker"]:
            component.properties.add(Property(name="cpstream:marker", value=pin["marker"]))
        found.append(component)
    return bom_of(root, found)


def of_image(image: str) -> Bom:
    """Raises CalledProcessError where no engine answers, or none holds the image."""
    (about,) = json.loads(_output("docker", "image", "inspect", image))
    labels = about["Config"].get("Labels") or {}
    root = Component(
        type=ComponentType.CONTAINER,
        name=image,
        bom_ref=f"image:{about['Id']}",
        version=labels.get("org.opencontainers.image.version"),
        properties=[Property(name="docker:id", value=about["Id"]), *(Property(name=n, value=v) for n, v in sorted(labels.items()))],
    )
    inside = ("docker", "run", "--rm", "--network", "none", "--entrypoint")
    found = [python_package(*row) for row in json.loads(_output(*inside, "python", image, "-c", IN_IMAGE))]
    listed = _output(*inside, "dpkg-query", image, "--show", "--showformat", "${Package} ${Version} ${Architecture}\\n")
    found += [debian_package(*line.split(" ")) for line in listed.splitlines()]
    return bom_of(root, found)


def python_package(name: str, version: str, license: str = "", kind: ComponentType = ComponentType.LIBRARY) -> Component:
    name = re.sub(r"[-_.]+", "-", name).lower()
    purl = PackageURL("pypi", None, name, version)
    return Component(
        type=kind,
        name=name,
        version=version,
        purl=purl,
        bom_ref=str(purl),
        licenses=[DisjunctiveLicense(name=license)] if license else None,
    )


def debian_package(name: str, version: str, architecture: str) -> Component:
    purl = PackageURL("deb", "debian", name, version, {"arch": architecture})
    return Component(type=ComponentType.LIBRARY, name=name, version=version, purl=purl, bom_ref=str(purl))


def bom_of(root: Component, components: Iterable[Component]) -> Bom:
    bom = Bom()
    bom.metadata.component = root
    bom.components.update(component for component in components if component.bom_ref != root.bom_ref)
    bom.register_dependency(root, bom.components)
    return bom


def text_of(bom: Bom) -> str:
    """Raises ValueError where the schema does not hold."""
    text: str = JsonV1Dot6(bom).output_as_string(indent=2)
    if (wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is not None:
        raise ValueError(f"no CycloneDX 1.6: {wrong}")
    return text


def _output(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main() -> None:
    match sys.argv[1:]:
        case ["wheel", path]:
            bom = of_wheel(Path(path))
        case ["image", image]:
            bom = of_image(image)
        case _:
            sys.exit(__doc__)
    print(text_of(bom))


if __name__ == "__main__":
    main()

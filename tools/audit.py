"""pip-audit over the lock files: fails where a pinned version is known to be vulnerable.

Where its data cannot be reached, one line says so, within seconds; so it does where only part of it was there, for pip-audit itself
would call that part sound.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCKS = sorted((Path(__file__).parents[1] / "requirements").glob("*.txt"))
NO_LOCK = {"helm.txt", "without-torch.txt"}
PROBE = "idna==3.10\n"
TIMEOUT_S = 5


def audit(*files: Path, hashed: bool = True) -> list[dict[str, Any]] | None:
    """Each package with `vulns`, or with why it was skipped. None: nothing could be asked."""
    arguments = [word for file in files for word in ("--requirement", str(file))]
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    command += ["--timeout", str(TIMEOUT_S), "--require-hashes" if hashed else "--no-deps", *arguments]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=600)
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return None
    return found


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.txt"
        probe.write_text(PROBE)
        asked = audit(probe, hashed=False)
    if asked is None or "skip_reason" in asked[0]:
        print("pip-audit: skipped, its data cannot be reached from here")
        return 0
    found = audit(*(lock for lock in LOCKS if lock.name not in NO_LOCK))
    if found is None:
        print("pip-audit: skipped, its data could not be read")
        return 0
    return report(found)


def report(found: list[dict[str, Any]]) -> int:
    """Prints what is known of each package. Returns the exit code."""
    bad = [(package, known) for package in found for known in package.get("vulns", ())]
    for package, known in bad:
        fixed = ", ".join(known["fix_versions"]) or "no version yet"
        print(f"pip-audit: {package['name']} {package['version']}: {known['id']}, fixed in {fixed}")
    skipped = [package["name"] for package in found if "skip_reason" in package]
    if skipped:
        print(f"pip-audit: nothing is known of {len(skipped)} of {len(found)} packages: {', '.join(skipped[:5])}")
    if not bad:
        print(f"pip-audit: {len(found) - len(skipped)} packages, none known to be vulnerable")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""A folder of a pinned sdist: tests and examples that no wheel has.

Owns the download, the check of its hash and the unpacking, below .cache of the checkout. Only the
named folder is unpacked: the package beside it cannot be imported by accident.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def unpacked(lock: Path, package: str, folder: str) -> tuple[str, Path]:
    """The release of *package* that *lock* pins by a hash, and the directory that holds *folder*.

    :raises SystemExit: the sdist is not the pinned one, or none is pinned.
    """
    pin = re.compile(rf"^{package}==(\S+) --hash=sha256:(\w+)$", re.MULTILINE)
    match = pin.search(lock.read_text())
    if match is None:
        raise SystemExit(f"{lock} does not pin {package} with a hash")
    version, digest = match.groups()
    target = REPOSITORY / ".cache" / f"{package}-{version}"
    complete = target / f"complete-{folder}"
    if complete.exists():
        return version, target
    target.mkdir(parents=True, exist_ok=True)
    archive = target / f"{package}-{version}.tar.gz"
    if not archive.exists():
        subprocess.run(
            [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet",
             "--no-deps", "--no-binary", package, "--dest", str(target), f"{package}=={version}"],
            check=True,
        )  # fmt: skip
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != digest:
        archive.unlink()
        raise SystemExit(f"{archive.name} has the hash {found}, expected {digest}")
    prefix = f"{package}-{version}/"
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if member.name.startswith(f"{prefix}{folder}/"):
                member.name = member.name.removeprefix(prefix)
                tar.extract(member, target, filter="data")
    complete.touch()
    return version, target

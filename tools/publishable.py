"""What is still missing before the files of a release may be published.

Owns the list: addresses in pyproject.toml, a dated section of CHANGELOG.md, and files of this
version in dist/. Looks, and changes nothing; the steps are in RELEASING.md.

    tools/publishable.py                 one line for each thing; exit status 1 when there is any
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESSES = ("Homepage", "Documentation", "Source", "Issues", "Changelog")
"""Labels that package indexes know (well-known project URLs)."""
FILES = ("-*-manylinux*.whl", "-*-musllinux*.whl", ".tar.gz", "+vendored.tar.gz")


def missing(root: Path) -> Iterator[str]:
    """Each thing that is missing in the checkout *root*, with the remedy."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = [label for label in ADDRESSES if label not in project.get("urls", {})]
    if labels:
        yield f"pyproject.toml, [project.urls]: enter {', '.join(labels)}"

    cargo = tomllib.loads((root / "Cargo.toml").read_text(encoding="utf-8"))
    version = cargo["package"]["version"]
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## {re.escape(version)} - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE):
        yield f"CHANGELOG.md has no dated section {version}: date *Unreleased*"
    unreleased = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", changes, re.MULTILINE | re.DOTALL)
    if unreleased and unreleased[1].strip():
        yield f"CHANGELOG.md has changes under *Unreleased*: {version} has them, or a newer number"

    for pattern in FILES:
        name = f"osloxide-{version}{pattern}"
        if not any((root / "dist").glob(name)):
            yield f"dist/ has no {name}: make release"


def main() -> int:
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    found = list(missing(ROOT))
    for line in found:
        print(f"not to be published yet: {line}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

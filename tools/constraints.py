"""Write the upper constraints of an OpenStack series: the newest releases of its last day.

Owns requirements/openstack-*.txt. OpenStack keeps a file of its own for each series
(upper-constraints.txt of the project "requirements"); this is not that file but what the package
index had on the day of the release, resolved by pip for the services of the series. Where the
project's file is at hand, name it in UPPER_CONSTRAINTS_FILE: tox.ini and tools/pythons.py take it
instead. Asks the index through pip alone, and installs nothing.

    tools/constraints.py 2026.2 2026-10-01 nova==34.0.0 cinder==29.0.0 oslo.service oslo.messaging
"""

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def resolve(day: str, requirements: list[str]) -> dict[str, str]:
    """``{name: version}`` of what pip would install, had it been called at the begin of *day*."""
    with tempfile.TemporaryDirectory(prefix="osloxide-constraints-") as name:
        directory = Path(name)
        venv.create(directory / "venv", with_pip=True)
        python = str(directory / "venv" / "bin" / "python")
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        # --uploaded-prior-to came with pip 26.0.
        subprocess.run([*pip, "install", "--quiet", "pip>=26"], check=True)
        report = directory / "report.json"
        subprocess.run(
            [*pip, "install", "--quiet", "--dry-run", "--ignore-installed", f"--report={report}",
             f"--uploaded-prior-to={day}T00:00:00Z", *requirements],
            check=True,
        )  # fmt: skip
        found = json.loads(report.read_text())["install"]
    return {each["metadata"]["name"].lower(): each["metadata"]["version"] for each in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("series", help="2026.2")
    parser.add_argument("day", help="the day after its release, as 2026-10-01")
    parser.add_argument("requirements", nargs="+", help="what must be in it")
    arguments = parser.parse_args()
    versions = resolve(arguments.day, arguments.requirements)
    version = ".".join(map(str, sys.version_info[:2]))
    lines = [
        f"# What the index had before {arguments.day} for OpenStack {arguments.series}"
        f" ({' '.join(arguments.requirements)}),",
        f"# resolved by pip for CPython {version}: made by tools/constraints.py. OpenStack's own",
        "# upper-constraints.txt is another file; UPPER_CONSTRAINTS_FILE may name it instead.",
        *(f"{name}==={versions[name]}" for name in sorted(versions)),
    ]
    path = ROOT / "requirements" / f"openstack-{arguments.series}.txt"
    path.write_text("\n".join(lines) + "\n")
    print(f"{len(versions)} versions in {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

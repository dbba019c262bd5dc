"""A sandbox for one service: its own mounts, network and processes, gone with its first process.

Run by ``unshare --mount --net --pid --fork``, as root: lays an overlay over the whole file system,
puts the users, directories and files of a case there, changes into it and executes the driver. The
machine is not touched.

The application is a trivial one, or, where the case has ``real``, an API of tests/services; then
``real`` has its ``module`` and the ``prefix`` of the environment that it is installed in.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_BOUND = ("/dev", "/sys", "/tmp", "/work")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def enter(directory: Path) -> None:
    """Change into an overlay of the whole file system."""
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "tmpfs", str(directory))
    for name in ("upper", "work", "root"):
        (directory / name).mkdir()
    root = directory / "root"
    layers = f"lowerdir=/,upperdir={directory}/upper,workdir={directory}/work"
    mount("-t", "overlay", "overlay", "-o", layers, str(root))
    for place in _BOUND:
        if Path(place).is_dir():
            mount("--rbind", place, f"{root}{place}")
    mount("-t", "proc", "proc", f"{root}/proc")
    os.chroot(root)
    os.chdir("/")


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as interface:
        request = struct.pack("16sH14x", b"lo", _IFF_UP)
        fcntl.ioctl(interface, _SIOCSIFFLAGS, request)


def add_user(name: str, number: int) -> None:
    with open("/etc/passwd", "a") as file:
        file.write(f"{name}:x:{number}:{number}::/nonexistent:/bin/false\n")
    with open("/etc/group", "a") as file:
        file.write(f"{name}:x:{number}:\n")


def prepare(case: dict[str, object], text: str) -> None:
    """What the tool has prepared on the host before it starts the service."""
    names = sorted(set(re.findall(r"^[ug]id = (\w+)$", text, re.MULTILINE)))
    for index, name in enumerate(names):
        add_user(name, 42000 + index)
    # Services that are not root read the interpreter and the extension.
    places = [Path.home(), *Path(sys.executable).parents, *Path(__file__).parents]
    for place in case.get("readable", ()):  # type: ignore[attr-defined]
        places += [Path(place), *Path(place).parents]
    for place in places:
        place.chmod(place.stat().st_mode | 0o055)
    file = Path(str(case["path"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    arguments = " ".join(case["arguments"])  # type: ignore[arg-type]
    for option, place in re.findall(
        r"^(logto2?|chdir|socket|safe-pidfile|virtualenv|static-map) = (?:/static=)?(/\S+)$", text,
        re.MULTILINE,
    ):  # fmt: skip
        is_directory = option in ("chdir", "virtualenv", "static-map")
        directory = Path(place) if is_directory else Path(place).parent
        directory.mkdir(parents=True, exist_ok=True)
        if option == "virtualenv" and "real" in case:
            directory.rmdir()
            directory.symlink_to(str(case["real"]["prefix"]))  # type: ignore[index]
        elif option == "virtualenv":
            version = f"python{sys.version_info.major}.{sys.version_info.minor}"
            (directory / "lib" / version / "site-packages").mkdir(parents=True)
        if option == "static-map":
            (directory / "style.css").write_text("body {}\n")
    for certificate, key in re.findall(r",(/\S+\.pem),(/[^,\s]+)", f"{text}\n{arguments}"):
        for place in (certificate, key):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
        options = (
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
            "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 "
            f"-keyout {key} -out {certificate}"
        )
        subprocess.run(["openssl", *options.split()], check=True, capture_output=True)
    if "real" in case:
        # As Debian's packages have them.
        script = f"from {case['real']['module']} import application\n"  # type: ignore[index]
        for path in re.findall(r"^wsgi-file = (/\S+)$", text, re.MULTILINE):
            Path(path).write_text("#!/usr/bin/python3\n" + script)
    else:
        prepare_trivial(text)


def prepare_trivial(text: str) -> None:
    """An application that tells what it finds, under each name that *text* has."""
    left = Path("/sandbox/left")
    left.mkdir(parents=True)
    left.chmod(0o777)
    application = Path(__file__).with_name("application.py").read_text()
    for module in re.findall(r"^(?:module|wsgi) = ([\w.]+):application$", text, re.MULTILINE):
        place = Path("/sandbox", *module.split("."))
        place.parent.mkdir(parents=True, exist_ok=True)
        for parent in place.relative_to("/sandbox").parents:
            if parent.name:
                (Path("/sandbox") / parent / "__init__.py").touch()
        place.with_suffix(".py").write_text(application)
    for script in re.findall(r"^wsgi-file = (/\S+)$", text, re.MULTILINE):
        Path(script).write_text("#!/usr/bin/python3\n" + application)


def main() -> None:
    directory, case_file, text_file = map(Path, sys.argv[1:4])
    case, text = json.loads(case_file.read_text()), text_file.read_text()
    repository = Path(__file__).resolve().parents[2]
    kind = "services/sandboxed.py" if "real" in case else "deployments/driver.py"
    driver = [sys.executable, str(repository / "tests" / kind)]
    enter(directory)
    raise_loopback()
    prepare(case, text)
    os.execv(driver[0], [*driver, json.dumps(case)])


if __name__ == "__main__":
    main()

"""Build the files of a release: one wheel for each CPython named, and the source distribution.

Owns what a wheel has beside what maturin puts there: a manylinux or musllinux tag as low as the
Rust toolchain allows (zig links against that libc), a module without debug information (that goes
to a file of its own, which the module names), the licences of every crate that is linked in, and a
licence expression that covers them all. Never publishes anything. The rules: PEP 425, 600 and 656
for tags, PEP 427 and 376 for RECORD, PEP 639 for licences. docs/packaging.md has the decisions.

    tools/wheels.py --out dist python3.11 python3.12     wheels, rebuilt only after a change
    tools/wheels.py --out dist --musl python3.11         the same for musl, on a CPython of glibc
    tools/wheels.py --out dist --sdist [--vendor]        the source distribution
    tools/wheels.py --out dist --page FILE               enter what dist has in the table of a page
"""

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = "x86_64-unknown-linux-gnu"
"""What the licences are listed for; a crate of another platform is not in the wheel."""
OLDEST_GLIBC = "manylinux_2_17"
"""rustc's own floor for this platform (RHEL 7's glibc)."""
MUSL_TARGET = "x86_64-unknown-linux-musl"
OLDEST_MUSL = "musllinux_1_2"
"""rustc links against musl 1.2 (Alpine 3.13)."""
CARGO_DIRECTORY = ROOT / "target" / "wheels"
"""Shared by all CPythons: what does not depend on one, three crates of four, compiles once."""
UNOPTIMISED = ROOT / "target" / "wheels-unoptimised"
"""The same for wheels that are made to be tested and thrown away."""
INPUTS = ("Cargo.toml", "Cargo.lock", "pyproject.toml", "README.md", "LICENSE", "src", "python",
          "data")  # fmt: skip
PREFERRED = ("Apache-2.0", "MIT", "ISC", "BSD-3-Clause")
"""Where a crate offers a choice, the first of these that it offers."""
UNRELEASED = "cp313t"
"""Built for tests alone."""
RESULTS = "<!-- files: written by tools/wheels.py --page -->"
"""Stands before and after the table in a page."""
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def output_of(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


# The environment of this program has maturin and zig, whether or not it was activated.
# It is first on PATH: maturin looks for zig in the python3 that it finds there.
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"


def require(program: str, remedy: str) -> None:
    if shutil.which(program) is None:
        sys.exit(f"{program} is missing; {remedy}")


# ---- licences ------------------------------------------------------------------------------------


def chosen(expression: str) -> set[str]:
    """The licences that *expression* asks for once a choice is made, such as {'MIT', 'ISC'}.

    Understands what crates write: OR or ``/`` inside of AND, with or without parentheses.
    """
    terms: set[str] = set()
    for part in re.split(r"\s+AND\s+(?![^(]*\))", expression):
        offers = re.split(r"\s+OR\s+|/", part.strip().strip("()"))
        terms.add(next((name for name in PREFERRED if name in offers), offers[0]))
    return terms


def linked_crates() -> dict[str, str]:
    """``{"name version": licence expression}`` of the crates in the module, our own left out."""
    tree = output_of(
        "cargo", "tree", "--locked", "--edges=normal,no-proc-macro", f"--target={TARGET}",
        "--prefix=none", "--format={p}\t{l}",
    )  # fmt: skip
    crates = {}
    for line in tree.splitlines():
        package, _, licence = line.removesuffix(" (*)").partition("\t")
        name, version = package.split()[:2]
        if name != "osloxide":
            crates[f"{name} {version.removeprefix('v')}"] = licence
    return crates


def third_party() -> tuple[str, str]:
    """The licence expression of the whole module, and the texts of all crates as one file.

    Ends the program when a crate has neither a licence expression nor a text.
    """
    metadata = json.loads(output_of("cargo", "metadata", "--locked", "--format-version=1"))
    folders = {
        f"{package['name']} {package['version']}": Path(package["manifest_path"]).parent
        for package in metadata["packages"]
    }
    crates = linked_crates()
    terms = {"Apache-2.0"}
    texts = ["The crates that are linked into osloxide._native, and their licences.\n"]
    for crate, expression in sorted(crates.items()):
        if not expression:
            sys.exit(f"{crate} names no licence in its Cargo.toml")
        terms |= chosen(expression)
        entries = sorted(folders[crate].iterdir())
        files = [path for path in entries if LICENCE_FILE.match(path.name) and path.is_file()]
        texts.append(f"\n{'=' * 80}\n{crate}: {expression}\n")
        texts += [
            f"{'-' * 80}\n{path.name}\n\n{path.read_text(errors='replace')}\n" for path in files
        ]
        if not files:
            texts.append("This crate carries no file with the text.\n")
    texts.append(standard_library())
    return " AND ".join(sorted(terms)), "".join(texts)


def standard_library() -> str:
    """The licences of Rust's own library, which every module has parts of."""
    version = output_of("rustc", "--version").strip()
    folder = Path(output_of("rustc", "--print=sysroot").strip()) / "share" / "doc" / "rust"
    texts = [f"\n{'=' * 80}\nThe standard library of {version}: MIT OR Apache-2.0\n"]
    files = [folder / "licenses" / name for name in ("MIT.txt", "Apache-2.0.txt")]
    texts += [
        f"{'-' * 80}\n{path.name}\n\n{path.read_text()}\n" for path in files if path.is_file()
    ]
    return "".join(texts)


# ---- wheels --------------------------------------------------------------------------------------


def digest_of_inputs(interpreter: str) -> str:
    """Changes when anything does that a wheel is made of."""
    digest = hashlib.sha256(output_of(interpreter, "-c", "import sys; print(sys.version)").encode())
    for name in (*INPUTS, "tools/wheels.py"):
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix not in {".so", ".pyc"}:
                digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def tag_of(interpreter: str) -> str:
    """``cp312``; ``cp314t`` for a free-threaded CPython."""
    code = (
        "import sys, sysconfig; print('cp%d%d' % sys.version_info[:2]"
        " + ('t' if sysconfig.get_config_var('Py_GIL_DISABLED') else ''))"
    )
    return output_of(interpreter, "-c", code).strip()


def checkout_for(tag: str) -> Path:
    """The checkout, or for a CPython that PyO3 refuses a copy in which it does not.

    PyO3 names 3.14 as the first free-threaded CPython, since 3.13's was an experiment, and has the
    layouts of 3.13's objects all the same. A wheel for it is good to run the tests on the one
    free-threaded CPython whose source there may be, and is never released.
    """
    if tag != UNRELEASED:
        return ROOT
    copy = ROOT / "target" / "unreleased"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in INPUTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("*.so", "*.pyc"))
        else:
            shutil.copy2(source, copy / name)
    metadata = json.loads(output_of("cargo", "metadata", "--locked", "--format-version=1"))
    (manifest,) = (p["manifest_path"] for p in metadata["packages"] if p["name"] == "pyo3-ffi")
    crate = copy / "vendor" / "pyo3-ffi"
    shutil.copytree(Path(manifest).parent, crate)
    build = crate / "build.rs"
    text, changed = re.subn(
        r"(const MIN_FREE_THREADED_VERSION: PythonVersion =) PY_3_14;",
        r"\1 PythonVersion { major: 3, minor: 13 };",
        build.read_text(),
    )
    if changed != 1:
        sys.exit(f"{build} names no oldest free-threaded CPython; look how PyO3 does it now")
    build.write_text(text)
    with (copy / "Cargo.toml").open("a") as own:
        own.write('\n[patch.crates-io]\npyo3-ffi = { path = "vendor/pyo3-ffi" }\n')
    subprocess.run(["cargo", "update", "--quiet", "--offline", "pyo3-ffi"], cwd=copy, check=True)
    return copy


def add_musl() -> None:
    """Have rustup bring what links against musl, unless it is there."""
    sysroot = Path(output_of("rustc", "--print=sysroot").strip())
    if not (sysroot / "lib" / "rustlib" / MUSL_TARGET).exists():
        require("rustup", f"or install rustc's libraries for {MUSL_TARGET}")
        subprocess.run(["rustup", "target", "add", MUSL_TARGET], cwd=ROOT, check=True)


def unwinder() -> str:
    """Where the compiler has libgcc_s, with which the C library ends a thread frame by frame.

    zig puts a copy of LLVM's unwinder into the module otherwise. Up to CPython 3.13 the end of the
    interpreter ends threads inside functions in Rust (``pthread_exit``), whose frames would ask
    that copy about frames of libgcc_s: a crash.
    """
    return output_of("cc", "-print-file-name=libgcc_s.so.1").strip()


def compile_wheel(interpreter: str, out: Path, unoptimised: bool, musl: bool) -> Path:
    """What maturin makes of the checkout for *interpreter*, in the folder *out*."""
    checkout = checkout_for(tag_of(interpreter))
    tag = [f"--compatibility={OLDEST_GLIBC}"]
    # musl has no such end of a thread.
    flags = {} if musl else {"CARGO_ENCODED_RUSTFLAGS": f"-Clink-arg={unwinder()}"}
    if musl:
        add_musl()
        tag = [f"--compatibility={OLDEST_MUSL}", f"--target={MUSL_TARGET}"]
        # maturin knows the CPythons of other platforms by their names alone.
        interpreter = f"python3.{tag_of(interpreter).removeprefix('cp3')}"
    fast = {"CARGO_PROFILE_RELEASE_LTO": "off", "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
            "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1"}  # fmt: skip
    subprocess.run(
        [
            "maturin", "build", "--release", "--locked", "--quiet", "--zig",
            *tag, f"--interpreter={interpreter}", f"--out={out}",
        ],
        cwd=checkout,
        check=True,
        env={
            **{k: v for k, v in os.environ.items() if k not in ("PYO3_PYTHON", "VIRTUAL_ENV")},
            "CARGO_TARGET_DIR": str(UNOPTIMISED if unoptimised else CARGO_DIRECTORY),
            "CARGO_PROFILE_RELEASE_STRIP": "none",
            **flags,
            **(fast if unoptimised else {}),
        },
    )  # fmt: skip
    (wheel,) = out.glob("*.whl")
    return wheel


def separate_debug_information(module: Path, debug: Path) -> None:
    """Move what only a debugger reads from *module* to *debug*, and name *debug* in *module*."""
    require("objcopy", "install binutils")
    debug.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["objcopy", "--only-keep-debug", module, debug], check=True)
    # --strip-unneeded keeps what is exported; the link has the file's name and its checksum.
    link = f"--add-gnu-debuglink={debug}"
    command: list[str | Path] = ["objcopy", "--strip-unneeded", link, module]
    subprocess.run(command, check=True)


def record(root: Path, own: Path) -> str:
    """The text of RECORD for the files below *root*; *own* is RECORD itself."""
    lines = []
    for path in sorted(root.rglob("*")):
        if path.is_file() and path != own:
            data = path.read_bytes()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{path.relative_to(root)},sha256={digest},{len(data)}")
    return "\n".join([*lines, f"{own.relative_to(root)},,", ""])


def mode_of(path: Path) -> int:
    """The mode of a file of a wheel: the native module and programs may be executed."""
    is_program = path.parent.name == "scripts" and path.parents[1].name.endswith(".data")
    return 0o755 if is_program or path.match("osloxide/_native*.so") else 0o644


def finish(raw: Path, out: Path) -> Path:
    """Complete the wheel *raw* as *out*/its name; the debug information goes to *out*/debug."""
    expression, texts = third_party()
    with tempfile.TemporaryDirectory(prefix="osloxide-wheel-") as folder:
        root = Path(folder)
        with zipfile.ZipFile(raw) as archive:
            archive.extractall(root)  # noqa: S202 - made by maturin a moment ago
        (module,) = root.glob("osloxide/_native*.so")
        if "musllinux" in raw.name:
            # Named for the interpreter that it was built with; a CPython on musl looks for this.
            name = module.name.replace("-linux-gnu", "-linux-musl")
            module = module.rename(module.with_name(name))
        separate_debug_information(module, out / "debug" / f"{raw.stem}.debug")
        (info,) = root.glob("*.dist-info")
        licences = info / "licenses"
        licences.mkdir(exist_ok=True)
        (licences / "THIRD-PARTY.txt").write_text(texts)
        head, _, body = (info / "METADATA").read_text().partition("\n\n")
        head, changed = re.subn(
            r"(?m)^License-Expression: .*$", f"License-Expression: {expression}", head
        )
        if changed != 1:
            sys.exit(f"the metadata of {raw.name} has {changed} licence expressions, not one")
        head += "\nLicense-File: THIRD-PARTY.txt"
        (info / "METADATA").write_text(f"{head}\n\n{body}")
        (info / "RECORD").write_text(record(root, info / "RECORD"))
        wheel = out / raw.name
        # RECORD last (PEP 427); one fixed time, so that equal content makes an equal file.
        files = [path for path in sorted(root.rglob("*")) if path.is_file()]
        files.sort(key=lambda path: path.parent == info)
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in files:
                entry = zipfile.ZipInfo(str(path.relative_to(root)), (1980, 1, 1, 0, 0, 0))
                entry.external_attr = (0o100000 | mode_of(path.relative_to(root))) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
    return wheel


def wheel_for(interpreter: str, out: Path, unoptimised: bool = False, musl: bool = False) -> Path:
    """The finished wheel for *interpreter*, built only when *out* has none of the same inputs.

    :param musl: for a CPython of the same minor version that is linked against musl.
    :param unoptimised: compile in a third of the time; such a wheel is not for a release.
    """
    require("cargo", "install it from https://rustup.rs")
    tag, digest = tag_of(interpreter), digest_of_inputs(interpreter)
    stamps = (UNOPTIMISED if unoptimised else CARGO_DIRECTORY) / "stamps"
    stamp = stamps / f"{tag}{'-musl' if musl else ''}.json"
    if stamp.exists():
        known = json.loads(stamp.read_text())
        if known["digest"] == digest and (out / known["wheel"]).exists():
            return out / str(known["wheel"])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="osloxide-raw-") as name:
        wheel = finish(compile_wheel(interpreter, Path(name), unoptimised, musl), out)
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(json.dumps({"digest": digest, "wheel": wheel.name}))
    return wheel


# ---- the source distribution ---------------------------------------------------------------------


def source_distribution(out: Path, vendored: bool, effort: int = 9) -> Path:
    """The sdist; with *vendored* a second one beside it that has the sources of every crate.

    The second builds without a network: its ``.cargo/config.toml`` sends cargo to ``vendor/``.

    :param effort: gzip's, 1 to 9; the second file has 40 MB, and some callers unpack it at once.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.tar.gz"):
        old.unlink()
    output_of("maturin", "sdist", f"--out={out}")
    (plain,) = out.glob("*.tar.gz")
    if not vendored:
        return plain
    target = out / plain.name.replace(".tar.gz", "+vendored.tar.gz")
    with tempfile.TemporaryDirectory(prefix="osloxide-sdist-") as name:
        with tarfile.open(plain) as archive:
            archive.extractall(name, filter="data")
        (tree,) = Path(name).iterdir()
        # Its output is the configuration that makes cargo use the folder; --quiet would drop it.
        command = ["cargo", "vendor", "--locked", "vendor"]
        vendor = subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
        config = vendor.stdout
        if "[source.vendored-sources]" not in config:
            sys.exit(f"cargo vendor printed no configuration\n{vendor.stderr}")
        (tree / ".cargo").mkdir(exist_ok=True)
        (tree / ".cargo" / "config.toml").write_text(f"{config}\n[net]\noffline = true\n")
        with tarfile.open(target, "w:gz", compresslevel=effort) as archive:
            archive.add(tree, tree.name)
    return target


# ---- what was made -------------------------------------------------------------------------------


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def row(file: Path) -> str:
    """The row of one wheel or source distribution."""
    module = debug = ""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            (size,) = (
                entry.file_size
                for entry in archive.infolist()
                if re.match(r"osloxide/_native.*\.so$", entry.filename)
            )
        module = megabytes(size)
        debug = megabytes((file.parent / "debug" / f"{file.stem}.debug").stat().st_size)
    return f"| `{file.name}` | {megabytes(file.stat().st_size)} | {module} | {debug} |"


def enter(page: Path, marks: str, text: Callable[[str], str]) -> None:
    """Replace what stands between the two lines *marks* of *page*.

    :param text: what stands there from now on, made of what stood there.

    Ends the program when *page* has no two such lines.
    """
    parts = page.read_text().split(marks)
    if len(parts) != 3:
        sys.exit(f"{page} must have the line {marks} twice")
    page.write_text(f"{marks}\n\n{text(parts[1])}\n\n{marks}".join(parts[::2]))


def write_page(page: Path, out: Path) -> None:
    """Enter the files of a release in *out* between the two marks of *page*.

    Ends the program when *out* has none, or *page* has no two marks.
    """
    files = [*sorted(out.glob("*.whl")), *sorted(out.glob("*.tar.gz"))]
    if not files:
        sys.exit(f"{out} has neither a wheel nor a source distribution; make wheels first")
    head = ["| file | size | module in it | debug information beside it |", "|---|---|---|---|"]
    enter(page, RESULTS, lambda _: "\n".join([*head, *map(row, files)]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--sdist", action="store_true", help="the source distribution")
    parser.add_argument("--vendor", action="store_true", help="with the sources of all crates")
    parser.add_argument("--page", type=Path, help="a page whose table gets names and sizes")
    parser.add_argument("--musl", action="store_true", help="wheels for systems with musl")
    parser.add_argument("interpreters", nargs="*", help="CPythons to build a wheel for")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    made = [wheel_for(each, out, musl=arguments.musl) for each in arguments.interpreters]
    if arguments.sdist:
        made.append(source_distribution(out, arguments.vendor))
    for path in made:
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path.name}")
    if arguments.page:
        write_page(arguments.page, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

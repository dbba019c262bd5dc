"""How much of what is fuzzed the corpus reaches: lines and regions of each file, as a table.

Builds the fuzz tests with LLVM's source-based coverage, runs them twice (the corpus alone, then the
everyday run with its 20,000 mutated inputs for each target) and prints what was reached. Fails
where a test does, and reports instead of failing where LLVM's tools of this compiler are missing.

Rules: The rustc book, "Instrumentation-based Code Coverage"; llvm-cov(1).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
BUILD = REPOSITORY / "target" / "fuzz-coverage"
SUBJECTS = {
    "heads, framing": ("src/server/framing/head.rs", "src/server/framing/mod.rs"),
    "chunks": ("src/server/framing/chunked.rs",),
    "uwsgi packets": ("src/server/framing/uwsgi.rs",),
    "PROXY headers": ("src/server/proxy_header.rs",),
    "answers": ("src/wsgi/response.rs", "src/server/link/mod.rs", "src/server/link/outgoing.rs"),
    "environ": ("src/wsgi/environ.rs",),
    "log": ("src/wsgi/access_log/mod.rs",),
    "certificates": ("src/server/tls/files.rs", "src/server/tls/validity.rs"),
    "options: ciphers": ("src/server/tls/ciphers.rs",),
    "AMQP frames": ("src/amqp/frames.rs",),
    "AMQP client": (
        "src/amqp/client/assembler.rs",
        "src/amqp/client/methods.rs",
        "src/amqp/client/envelope.rs",
    ),
}
"""What is fuzzed, and the files that hold it. Tests of the crate are not compiled, nor counted."""


def tools() -> Path | None:
    """Where LLVM's tools of this compiler are, or None."""
    libraries = output("rustc", "--print", "target-libdir")
    found = Path(libraries).parent / "bin"
    return found if (found / "llvm-cov").exists() else None


def output(*command: str, **environ: str) -> str:
    """What *command* prints. Raises CalledProcessError when it fails."""
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def build() -> Path:
    """Compile the fuzz tests with counters; the program."""
    lines = output(
        *("cargo", "test", "--locked", "--no-run", "--test", "fuzz", "--message-format", "json"),
        *("--no-default-features", "--features", "fuzzing"),
        RUSTFLAGS="-C instrument-coverage",
        CARGO_TARGET_DIR=str(BUILD),
        LLVM_PROFILE_FILE="/dev/null",  # of macros and build scripts, which have counters as well
    )
    for line in lines.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "fuzz":
            return Path(message["executable"])
    raise SystemExit("cargo built no test called fuzz")


def reached(program: Path, llvm: Path, name: str, **environ: str) -> dict[str, Any]:
    """Run all targets; what llvm-cov says of each file, by its path in the repository."""
    raw, merged = BUILD / f"{name}.profraw", BUILD / f"{name}.profdata"
    output(str(program), "--quiet", LLVM_PROFILE_FILE=str(raw), **environ)
    output(str(llvm / "llvm-profdata"), "merge", "-sparse", str(raw), "-o", str(merged))
    text = output(
        *(str(llvm / "llvm-cov"), "export", "-summary-only", f"-instr-profile={merged}"),
        *(str(program), "-sources", str(REPOSITORY / "src")),
    )
    files = json.loads(text)["data"][0]["files"]
    return {str(Path(file["filename"]).relative_to(REPOSITORY)): file["summary"] for file in files}


def share(summaries: dict[str, Any], files: tuple[str, ...], kind: str) -> str:
    """``covered of count`` over *files*, with the percentage."""
    counts = [summaries[file][kind] for file in files]
    covered, count = (sum(each[key] for each in counts) for key in ("covered", "count"))
    return f"{covered:,} of {count:,} ({100 * covered / count:.0f} %)"


def main() -> int:
    llvm = tools()
    if llvm is None:
        print("skipped: no LLVM tools of this compiler (rustup component add llvm-tools)")
        return 0
    program = build()
    corpus = reached(program, llvm, "corpus", OSLOXIDE_FUZZ_SECONDS="0")
    everyday = reached(program, llvm, "everyday")
    print("| what | files | lines, corpus | lines, everyday run | regions, everyday run |")
    print("|---|---|---|---|---|")
    for what, files in SUBJECTS.items():
        names = ", ".join(f"`{file}`" for file in files)
        lines = share(corpus, files, "lines"), share(everyday, files, "lines")
        print(f"| {what} | {names} | {' | '.join(lines)} | {share(everyday, files, 'regions')} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/bin/sh
# Make .venv, with pip, from the first CPython >= 3.11 found; do nothing when it is there and works.
#
# PYTHON=... chooses the interpreter. Debian ships CPython without ensurepip unless python3-venv is
# installed: then that package is installed, or else virtualenv is used.
set -eu
cd "$(dirname "$0")/.."

if [ -x .venv/bin/python ] && .venv/bin/python -m pip --version >/dev/null 2>&1; then
    exit 0
fi
rm -rf .venv

command -v cargo >/dev/null || { echo "cargo is missing; install it from https://rustup.rs" >&2; exit 1; }
command -v cc >/dev/null || tools/debian.sh gcc libc6-dev

for python in ${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        chosen=$python
        break
    fi
done
[ -n "${chosen-}" ] || { echo "no CPython >= 3.11 found as ${PYTHON:-python3}; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }

has_venv() { "$chosen" -c 'import ensurepip, venv' 2>/dev/null; }
has_venv || tools/debian.sh python3-venv || true
if has_venv; then
    "$chosen" -m venv .venv
elif "$chosen" -m virtualenv --version >/dev/null 2>&1; then
    "$chosen" -m virtualenv -q .venv
elif "$chosen" -m pip install -q --target .cache/virtualenv virtualenv 2>/dev/null; then
    PYTHONPATH=.cache/virtualenv "$chosen" -m virtualenv -q .venv
else
    echo "$chosen has neither venv with ensurepip, virtualenv nor pip; install python3-venv" >&2
    exit 1
fi

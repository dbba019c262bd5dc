#!/bin/sh
# Build a free-threaded CPython from the source package of Debian sid, and print its path.
#
# The release sources come from Debian's archive, through the tree of tools/debian_tree.py; Debian's
# patches are not applied. It is configured with --disable-gil and without the long optimisations, and
# installed in the user's cache directory, where all checkouts find it. Does nothing when it is there.
# Needs root for the tree, a C compiler, and the headers of OpenSSL, libffi, zlib and SQLite.
set -eu
cd "$(dirname "$0")/.."
minor=${1:-3.14}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/osloxide
prefix=$cache/free-threaded-$minor

if [ ! -x "$prefix/bin/python${minor}t" ]; then
    tools/debian.sh gcc make libc6-dev libssl-dev libffi-dev zlib1g-dev libsqlite3-dev libbz2-dev liblzma-dev >&2
    mkdir -p "$cache"
    work=$(mktemp -d /tmp/osloxide-free-threaded.XXXXXX)  # the tree sees /tmp
    trap 'rm -rf "$work"' EXIT INT TERM
    python3 tools/debian_tree.py sid dpkg-dev >&2
    python3 tools/debian_tree.py sid --sources "python$minor" "$work" >&2
    mkdir "$work/source"
    tar -xf "$work"/*.orig.tar.* -C "$work/source" --strip-components=1
    cd "$work/source"
    ./configure -q --disable-gil --with-ensurepip=install --prefix="$prefix" >"$work/configure.log" 2>&1 ||
        { tail -20 "$work/configure.log" >&2; exit 1; }
    make -s -j2 >"$work/make.log" 2>&1 || { tail -20 "$work/make.log" >&2; exit 1; }
    make -s install >"$work/install.log" 2>&1 || { tail -20 "$work/install.log" >&2; exit 1; }
fi
echo "$prefix/bin/python${minor}t"

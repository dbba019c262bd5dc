#!/bin/sh
# Install the Debian packages named as arguments, without asking.
#
# Uses apt-get as root or through a password-less sudo; where neither is possible it says which
# command the reader has to run, and fails. Never starts a daemon by itself and never upgrades
# what is installed.
set -eu

for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="${missing-} $package"
done
[ -n "${missing-}" ] || exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif sudo -n true 2>/dev/null; then
    as_root="sudo -n"
else
    echo "missing Debian packages; install them and try again: sudo apt-get install$missing" >&2
    exit 1
fi
command -v apt-get >/dev/null || { echo "this is not Debian; install the like of:$missing" >&2; exit 1; }

echo "installing:$missing"
install() {
    # RUNLEVEL=1: installing a server must not start it; the tests start their own.
    $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -qq -y --no-install-recommends "$@" </dev/null >/dev/null
}
# shellcheck disable=SC2086  # a list of names
install $missing 2>/dev/null || { $as_root apt-get update -qq </dev/null; install $missing; }

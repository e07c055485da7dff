#!/bin/sh
# tools.sh PROGRAM:PACKAGE ... : installs the Debian packages of the programs that are missing, or says which.
set -eu
missing=
for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair#*:}"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "missing here, please install (names of Debian packages):$missing" >&2
    exit 1
fi
echo "installing:$missing"
apt-get update
# Word splitting is meant.
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing

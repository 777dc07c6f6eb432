#!/usr/bin/env bash
# The tests with Python 3.13 and the newest JAX that is supported, in a Debian 13 of their own:
#
#   sudo tests/debian13.sh                         # the whole suite
#   sudo tests/debian13.sh tests/models -k unet    # what pytest is given
#
# Makes the root once, with debootstrap, in $ROOT (/var/tmp/mvader-debian13), and installs JAX, Flax and this package
# with its test extra there, from wheels; later runs only bring the working tree up to date. Nothing outside $ROOT is
# changed. Takes 10 GB, of which PyTorch's CUDA libraries are half: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
# gets a build without them. MIRROR is Debian's, JAX and FLAX the versions.
set -euo pipefail

ROOT=${ROOT:-/var/tmp/mvader-debian13}
MIRROR=${MIRROR:-http://deb.debian.org/debian}
JAX=${JAX:-0.12.0.1}
FLAX=${FLAX:-0.12.12}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    echo "debian13: $*" >&2
    exit 1
}

# A command inside: its mounts end with it, and of the environment it sees what names a package index.
inside() {
    local names=(PIP_INDEX_URL PIP_EXTRA_INDEX_URL HTTP_PROXY HTTPS_PROXY http_proxy https_proxy) kept=() name
    for name in "${names[@]}"; do
        [ -z "${!name:-}" ] || kept+=("$name=${!name}")
    done
    # shellcheck disable=SC2016  # the inner shell expands them
    unshare --mount bash -c '
        mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount --rbind /sys "$0/sys" && exec chroot "$0" "$@"
    ' "$ROOT" env -i HOME=/root LANG=C.UTF-8 PATH=/venv/bin:/usr/bin:/bin "${kept[@]}" \
        PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "$@"
}

[ "$(id -u)" = 0 ] || fail "chroot and mounts need root: sudo tests/debian13.sh"
if [ ! -x "$ROOT/usr/bin/python3" ]; then
    command -v debootstrap >/dev/null || fail "debootstrap is missing: apt-get install debootstrap"
    mkdir -p "$ROOT"
    debootstrap --variant=minbase --include=python3,python3-venv,python3-dev,make,gcc,git,ca-certificates \
        trixie "$ROOT" "$MIRROR"
fi
# How this machine reaches the network.
cp -L /etc/resolv.conf /etc/hosts "$ROOT/etc/"
cp -L /etc/ssl/certs/ca-certificates.crt "$ROOT/etc/ssl/certs/"

rm -rf "$ROOT/src"
mkdir -p "$ROOT/src"
(cd "$here" && git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
    tar --null --no-recursion -T - -c) | tar -x -C "$ROOT/src" --no-same-owner

stamp="$ROOT/venv/.installed"
wanted=$(echo "$JAX $FLAX" | cat - "$here/pyproject.toml" | sha256sum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    [ -x "$ROOT/venv/bin/pip" ] || inside python3 -m venv /venv
    inside pip install --quiet --prefer-binary "jax[tpu]==$JAX" "flax==$FLAX" -e '/src[test]'
    inside pip install --quiet --prefer-binary --no-deps clip-anytorch==2.6.0
    echo "$wanted" >"$stamp"
fi
inside python -c 'import sys, jax, flax; print("Python", sys.version.split()[0], "JAX", jax.__version__, "Flax", flax.__version__)'
inside bash -c 'cd /src && exec python -m pytest "$@"' pytest "$@"

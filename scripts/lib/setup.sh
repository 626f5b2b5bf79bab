# Set-up shared by the scripts; sourced from the repository's root, not run.  Idempotent: a second run installs nothing.
#
# What stays on the machine: the Debian packages and the virtual environment .venv.
# PYTHON=/path/to/python3 chooses another interpreter (3.11 or later, with its headers).

PYTHON="${PYTHON:-/usr/bin/python3}"
VENV="$PWD/.venv"

say() { printf -- '- %s\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 3
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root for: $*"
    fi
}

# setup_packages NAME...: install the Debian packages that are missing.
setup_packages() {
    local name missing=()
    for name in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "apt-get install ${missing[*]}"
    as_root apt-get update -qq >&2
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >&2
}

# setup_package_lists: have the archive's lists, without which nothing can be downloaded from it.
setup_package_lists() {
    apt-cache show "$1" >/dev/null 2>&1 || as_root apt-get update -qq >&2
}

# make_venv: make the virtual environment.
make_venv() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$PYTHON is older than Python 3.11"
    [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
}

# setup_cpu_torch: install torch without CUDA, which would be gigabytes.  TORCH_VERSION=... chooses another one.
setup_cpu_torch() {
    local version="${TORCH_VERSION:-2.13.0}"
    make_venv
    ! "$VENV/bin/python" -c 'import torch' 2>/dev/null || return 0
    say "installing torch $version, CPU build, into $VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --retries 1 \
        --extra-index-url https://download.pytorch.org/whl/cpu "torch==$version+cpu"
}

# setup_venv EXTRA: make the virtual environment and install the package with an extra, once per pyproject.toml.
setup_venv() {
    local stamp="$VENV/installed-$1"
    [ ! "$stamp" -nt pyproject.toml ] || return 0
    make_venv
    say "installing fanoutfs[$1] into $VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
    touch "$stamp"
}

# need_fuse: stop where no file system can be mounted.
need_fuse() {
    [ -c /dev/fuse ] || die "/dev/fuse is missing: load the fuse module, or start the container with --device /dev/fuse"
}

# What building pyfuse3 and mounting as an ordinary user need.
RUN_PACKAGES=(fuse3 libfuse3-dev pkg-config gcc libc6-dev python3-dev python3-venv)

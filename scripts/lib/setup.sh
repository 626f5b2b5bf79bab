# Set-up shared by the scripts; sourced, not run.  Idempotent: a second run installs nothing and says nothing.

VENV="${FANOUTFS_VENV:-.venv}"

# setup_packages NAME...: install the Debian packages that are missing.
setup_packages() {
    local missing=()
    for name in "$@"; do
        dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'install ok installed' || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        echo "install these packages first: sudo apt-get install ${missing[*]}" >&2
        return 1
    fi
    echo "installing ${missing[*]}"
    DEBIAN_FRONTEND=noninteractive apt-get -qq update >&2
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y "${missing[@]}" >/dev/null
}

# setup_venv [EXTRA]: make the virtual environment and install the package (with an extra) into it, once per
# pyproject.toml.
setup_venv() {
    local extra="${1:+[$1]}" stamp
    stamp="$VENV/.installed${1:+-$1}"
    if [ ! -x "$VENV/bin/python" ]; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "Python 3.11 or later is needed" >&2
            return 1
        }
        python3 -m venv "$VENV"
    fi
    [ "$stamp" -nt pyproject.toml ] && return
    echo "installing fanoutfs$extra and its Python packages into $VENV"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".$extra"
    touch "$stamp"
}

# Sourced by scripts/quickstart and scripts/test: makes .venv once and activates it.
# usage: source scripts/setup.sh EXTRAS      (EXTRAS: "" or "[dev,track]")
# A second call starts at once; a changed pyproject.toml or constraints.txt installs again.

extras="${1:-}"

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "xcope needs Python 3.11, 3.12 or 3.13; none was found on the PATH." >&2
    return 1
}

if [ ! -x .venv/bin/python ]; then
    python="$(find_python)" || exit 2
    echo "Making .venv with $("$python" --version) …"
    if ! "$python" -m venv .venv; then
        rm -rf .venv
        echo "$python cannot make virtual environments; on Debian and Ubuntu:" \
            "apt-get install python3-venv" >&2
        exit 2
    fi
fi

source .venv/bin/activate
wanted="$extras $(cat pyproject.toml constraints.txt | cksum)"
stamp=".venv/installed${extras}"
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing xcope${extras} into .venv (once; PyTorch is large) …"
    python -m pip install -qq --disable-pip-version-check \
        --constraint constraints.txt --editable ".${extras}"
    echo "$wanted" >"$stamp"
fi

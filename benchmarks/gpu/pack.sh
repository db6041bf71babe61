#!/usr/bin/env bash
# Collect into FOLDER what a GPU host without a network needs besides this checkout, torch, torchaudio and CUDA: wheels
# of s3prl and of the dependencies, in the versions of constraints.txt.
#   benchmarks/gpu/pack.sh FOLDER [PYTHON_VERSION]        e.g. benchmarks/gpu/pack.sh .whl 3.12
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:?usage: pack.sh FOLDER [PYTHON_VERSION]}
version=${2:-3.12}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder"
rm -f "$folder"/*.whl

# What a CUDA image with PyTorch and transformers has, in versions that fit each other. Everything else travels.
heavy='^(nvidia|cuda)-|^(torch|torchaudio|triton|transformers|tokenizers|huggingface-hub|hf-xet|safetensors)='
heavy+='|^(numpy|scipy|pandas|scikit-learn|llvmlite|numba|matplotlib|pillow|onnx.*|ml-dtypes|flatbuffers|sympy|networkx)='
heavy+='|^(fonttools|kiwisolver|contourpy|mpmath|pygments|narwhals|regex|ruff|mypy|ast-serialize|librt|httpcore2|httpx2)='
grep -vE '^#' constraints.txt | cut -d';' -f1 | tr -d ' ' | grep -viE "$heavy" >"$folder/requirements.txt"
platforms=()
for platform in manylinux_2_39 manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${platform}_x86_64")
done
while read -r requirement; do
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version "$version" --implementation cp "${platforms[@]}" --dest "$folder" "$requirement" 2>/dev/null ||
    "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$folder" "$requirement"  # sdist only
done <"$folder/requirements.txt"
du -sh "$folder"

#!/usr/bin/env bash
# On the GPU host: install what pack.sh collected, run every test, then the main job on real speech in three precisions.
#   benchmarks/gpu/run.sh WHEELS SPEECH OUT [STEPS]
# SPEECH is a folder of manifests (pretrain/ asr/ sid/ er/); OUT receives logs, scores and the step benchmark as JSON.
set -euo pipefail
cd "$(dirname "$0")/../.."
wheels=${1:?usage: run.sh WHEELS SPEECH OUT [STEPS]} speech=$(realpath "${2:?SPEECH}") out=${3:?OUT} steps=${4:-1000}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(realpath "$out")

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
"$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$wheels"/*.whl
export PYTHONPATH=$site PATH=$site/bin:$PATH PYTHONUNBUFFERED=1
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/gpu.txt"

status=0  # a failed test must not keep the runs below from being made, nor be forgotten
S3PRL_EKD_SPEECH=$speech "$python" -m pytest -p no:cacheprovider -q >"$out/pytest.log" 2>&1 || status=$?
tail -n 3 "$out/pytest.log"
"$python" -m benchmarks --bench step --device cuda --json "$out/step.json" 2>&1 | tee "$out/step.log" | tail -n 25

work=$(mktemp -d)
cd "$work"
for set in pretrain asr sid er; do s3prl-ekd prepare --manifest "$speech/$set/manifest.tsv" --out data; done
"$python" - <<'PY'
from pathlib import Path
from s3prl_ekd.teachers.tiny import TINY, random_encoder, write_transformers
shape = TINY.with_(width=256, ffn_width=1024, heads=4)  # small, but enough work to tell precisions apart
write_transformers(random_encoder(shape, seed=1), Path("teachers/hubert"))
write_transformers(random_encoder(shape, seed=2), Path("teachers/robust_hubert"))
write_transformers(random_encoder(shape.with_(attention="gated_relative"), seed=3), Path("teachers/wavlm"), "wavlm")
PY
for precision in fp32 fp16 bf16; do
  fp16=False student=$precision
  if [ "$precision" = fp16 ]; then fp16=True student=fp32; fi
  cat >"$precision.yaml" <<YAML
base: config_model.yaml
ekd:
  precision: $student
  initialise_from: hubert
  teachers:
    - {name: hubert,        source: $work/teachers/hubert,        layers: [2, 4, 6]}
    - {name: robust_hubert, source: $work/teachers/robust_hubert, layers: [2, 4, 6]}
    - {name: wavlm,         source: $work/teachers/wavlm,         layers: [2, 4, 6]}
student: {width: 256, ffn_width: 1024, heads: 4, pos_conv_kernel: 32, pos_conv_groups: 8, conv_layers: [[64, 10, 5], [64, 3, 2], [64, 3, 2], [64, 3, 2], [64, 3, 2], [64, 2, 2], [64, 2, 2]]}
YAML
  run_pretrain.py -u ekd -n "$precision" -g "$precision.yaml" -c data/pretrain.yaml --device cuda \
    -o "config.runner.total_steps=$steps,,config.runner.save_step=$((steps / 4)),,config.runner.fp16=$fp16,,config.optimizer.lr=1.0e-3" \
    >"$out/pretrain-$precision.log" 2>&1
  cp "result/pretrain/$precision/metrics.jsonl" "$out/metrics-$precision.jsonl"
  s3prl-ekd evaluate --ckpt "result/pretrain/$precision" --data data --preset small --device cuda --out "scores-$precision"
  cp "scores-$precision/scores.json" "$out/scores-$precision.json"
done
s3prl-ekd report result/pretrain/* scores-* --out "$out/report.html"
exit "$status"

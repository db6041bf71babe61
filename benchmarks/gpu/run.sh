#!/usr/bin/env bash
# On the GPU host: install what pack.sh collected, then do some of these parts, each within ten minutes of an H200:
#   tests     every test, those marked gpu included
#   bench     each benchmark of `python -m benchmarks` as JSON, the profile of the step's kernels included
#   job       the main job on real speech: pretraining in fp32, fp16 and bf16, then four tasks, train and test
#   full      the paper's setting by the real command: three Base teachers (random weights), 24 x 15.6 s of audio a step
#   trouble   a killed run goes on and ends as one never killed
#   teachers  the three embedded teachers, trained again (recipes/tiny_teachers)
#   table     recipes/mini_superb, as far as ten minutes go; the same call again goes on
#
#   benchmarks/gpu/run.sh WHEELS SPEECH OUT PART...
#
# SPEECH is a folder of manifests (pretrain/ asr/ sid/ er/ noise/); OUT receives logs, scores and JSON. WORK (default: a new
# folder) keeps data and runs from one call to the next. DEVICE=cpu STEPS=4 tries the script itself out without a GPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
repository=$PWD
wheels=${1:?usage: run.sh WHEELS SPEECH OUT PART...} speech=$(realpath "${2:?SPEECH}") out=${3:?OUT}
shift 3
python=${PYTHON:-python3} device=${DEVICE:-cuda} steps=${STEPS:-1000}
mkdir -p "$out"
out=$(realpath "$out")
work=${WORK:-$(mktemp -d)}
mkdir -p "$work"

if [ "$wheels" != none ]; then # none: everything is installed already
  venv=$work/venv
  if [ ! -x "$venv/bin/s3prl-ekd" ]; then
    "$python" -m venv --without-pip "$venv"
    # What the host's Python has stands behind what was packed. Its path is said, for it may be a venv itself, and
    # --system-site-packages would reach past it.
    "$python" -c 'import site; print(*site.getsitepackages(), sep="\n")' >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/host.pth"
    install=("$python" -m pip --python "$venv/bin/python" install --quiet --no-index --no-deps --no-compile --no-cache-dir)
    "${install[@]}" "$wheels"/*.whl
    "${install[@]}" --no-build-isolation --editable "$repository"
    printf '#!%s\nfrom torch.distributed.run import main\n\nmain()\n' "$venv/bin/python" >"$venv/bin/torchrun"
    chmod +x "$venv/bin/torchrun"
  fi
  python=$venv/bin/python PATH=$venv/bin:$PATH
fi
export PYTHONUNBUFFERED=1
if [ "$device" != cpu ]; then nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/gpu.txt"; fi

data() { # what `prepare` makes of the speech, once
  [ -f "$work/data/.done" ] && return
  for set in pretrain asr sid er; do
    s3prl-ekd prepare --manifest "$speech/$set/manifest.tsv" --out "$work/data" >>"$out/prepare.log" 2>&1
  done
  touch "$work/data/.done"
}

model() { # NAME PRECISION: a student of the three embedded teachers
  cat >"$work/$1.yaml" <<YAML
base: embedded.yaml
ekd: {precision: $2}
task: {sequence_length: 250000} # of a GPU, not of a CPU
YAML
}

pretrain() { # NAME FOLDER STEPS FP16 [WORDS...]
  local name=$1 folder=$2 total=$3 fp16=$4
  shift 4
  run_pretrain.py -u ekd -a -p "$folder" -g "$work/$name.yaml" -c "$work/data/pretrain.yaml" --device "$device" \
    -o "config.runner.total_steps=$total,,config.runner.save_step=$((total / 4)),,config.runner.log_step=1,,config.runner.fp16=$fp16,,config.optimizer.lr=1.0e-3" "$@"
}

part_tests() {
  local status=0
  OMP_NUM_THREADS=1 S3PRL_EKD_SPEECH=$speech "$python" -m pytest -p no:cacheprovider -v -n "$(nproc)" --dist loadfile >"$out/pytest.log" 2>&1 || status=$?
  tail -n 3 "$out/pytest.log"
  return $status
}

part_bench() {
  for bench in ${BENCHES:-step step-default profile kernels optimizer teachers student memory growth data}; do
    local words=(--bench "${bench%-default}")
    case $bench in
      growth) words+=(--batch 6 --clip-seconds 3.9) ;; # it goes up to four times of both
      step-default) words+=(--precision fp32 --student-precision bf16) ;; # as a run without ekd.teacher_precision
    esac
    "$python" -m benchmarks "${words[@]}" --device "$device" --json "$out/$bench.json" 2>&1 | tee "$out/$bench.log" | tail -n 12
  done
}

part_job() {
  data
  for precision in fp32 fp16 bf16; do
    [ "$precision $device" = "fp16 cpu" ] && continue # the runner's fp16 is a GPU's
    if [ $precision = fp16 ]; then model $precision fp32; else model $precision $precision; fi
    pretrain $precision "$work/pretrain-$precision" "$steps" "$([ $precision = fp16 ] && echo True || echo False)" >"$out/pretrain-$precision.log" 2>&1
    cp "$work/pretrain-$precision/metrics.jsonl" "$out/metrics-$precision.jsonl"
  done
  s3prl-ekd evaluate --ckpt "$work/pretrain-bf16" --data "$work/data" --preset small --device "$device" --out "$work/scores" ${EVALUATE:-}
  cp "$work/scores/scores.json" "$out/scores.json"
  s3prl-ekd report "$work"/pretrain-* "$work/scores" --out "$out/report.html"
}

part_full() {
  data
  rm -rf "$work/full" # what is measured begins anew
  cat >"$work/full.yaml" <<YAML
base: config_model.yaml
ekd:
  precision: bf16
  teacher_precision: bf16
  teachers:
    - {name: hubert,        source: "random:hubert_base",            layers: [4, 8, 12]}
    - {name: robust_hubert, source: "random:hubert_base_robust_mgr", layers: [4, 8, 12]}
    - {name: wavlm,         source: "random:wavlm_base_plus",        layers: [4, 8, 12]}
YAML
  run_pretrain.py -u ekd -p "$work/full" -g "$work/full.yaml" -c "$work/data/pretrain.yaml" --device "$device" \
    -o "config.runner.total_steps=${FULL_STEPS:-300},,config.runner.save_step=$((${FULL_STEPS:-300} - 1)),,config.runner.log_step=10,,config.pretrain_expert.datarc.batch_seconds=${FULL_SECONDS:-374.4}" >"$out/full.log" 2>&1
  cp "$work/full/metrics.jsonl" "$out/metrics-full.jsonl"
  "$python" - "$out/metrics-full.jsonl" <<'PY'
import json, statistics, sys
lines = [json.loads(line) for line in open(sys.argv[1])]  # one for ten steps (of each ten, one takes the heads' gradients for the log: a recipe logs one of 50)
lines = lines[min(2, len(lines) // 2) :]  # the first hold the warm-up
rates = [line["audio_seconds_per_second"] for line in lines]
# the median: a step of a length that comes for the first time takes about 0.25 s more, and 200k steps have few of those
rate, all_of_them = statistics.median(rates), statistics.harmonic_mean(rates)
waited = statistics.mean(line["data_wait"] for line in lines)
print(f"{rate:.0f} audio seconds a second (median of {len(rates)} times ten steps; {all_of_them:.0f} with the lengths that are new), {waited:.1%}")
# the paper's 200k steps of 24 clips: LibriSpeech's, cropped to 15.6 s, are 12.2 s long on average
print(f"of the time waiting for data; 200k steps of 24 clips (16,270 h of audio): {16_270 / rate:.2f} h")
PY
}

part_trouble() {
  data
  model resumed bf16
  rm -rf "$work/whole" "$work/killed"
  pretrain resumed "$work/whole" 40 False >"$out/whole.log" 2>&1
  pretrain resumed "$work/killed" 40 False >"$out/killed.log" 2>&1 &
  local shell=$! lines=0
  while kill -0 $shell 2>/dev/null && [ "$lines" -lt 15 ]; do
    sleep 0.2
    lines=$(wc -l 2>/dev/null <"$work/killed/metrics.jsonl" || echo 0)
  done
  pkill -9 -P $shell || true # the command; its workers end with it
  wait $shell || true
  [ "$(wc -l <"$work/killed/metrics.jsonl")" -lt 40 ] || { echo "killed too late: nothing is shown"; return 1; }
  pretrain resumed "$work/killed" 40 False >>"$out/killed.log" 2>&1
  "$python" - "$work/whole/metrics.jsonl" "$work/killed/metrics.jsonl" <<'PY'
import json, sys
whole, killed = ([json.loads(line)["loss"] for line in open(file)] for file in sys.argv[1:])
assert len(whole) == len(killed) == 40, (len(whole), len(killed))
difference = max(abs(a - b) for a, b in zip(whole, killed))
print("killed and continued: largest difference of the loss", difference)
assert difference < 1e-3, "the continued run is another one"
PY
}

part_teachers() {
  data
  for name in tiny_hubert tiny_robust_hubert tiny_wavlm; do
    "$python" -m recipes.tiny_teachers $name --data "$work/data" --noise "$speech/noise" --out "$work/teachers" \
      --device "$device" --workers 8 2>&1 | tee -a "$out/$name.log" | tail -n 3
    tar -C "$work/teachers/$name" -cf "$out/$name.tar" teacher
  done
}

part_table() {
  local status=0
  timeout "${LIMIT:-560}" "$python" -m recipes.mini_superb --speech "$speech" --work "$work/table" --results "$out/results" \
    --device "$device" --parallel "${PARALLEL:-9}" --jobs 2 >>"$out/table.log" 2>&1 || status=$?
  tar -C "$out" -cf "$out/results.tar" results && tail -n 3 "$out/table.log"
  return $status
}

status=0 # a part that fails must not keep the others from being done, nor be forgotten
for part in "$@"; do
  echo "== $part"
  started=$SECONDS
  set +e # in `( ... ) || ...` bash would ignore -e inside as well
  (set -e && "part_$part")
  code=$?
  set -e
  echo "$part: exit $code, $((SECONDS - started)) s"
  [ $code = 0 ] || status=$code
done
exit $status

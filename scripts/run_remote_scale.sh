#!/usr/bin/env bash
# Hydrate published datasets on this machine and run all training stages on each.
#
#   WANDB_DATASETS="burgers1d_subset_v1 advection1d_subset_v1" bash scripts/run_remote_scale.sh train.steps=5000
#
# See --help. Run it again after a failure: what is finished is not done twice.
set -euo pipefail

readonly STAGES=(autoencoder latents train baseline evaluate)

usage() {
  cat <<'HELP'
usage: WANDB_DATASETS="NAME [NAME..]" bash scripts/run_remote_scale.sh [KEY=VALUE ...]

Hydrates each named dataset of docs/dataset_registry.yaml from the DVC remote, then runs
autoencoder, latents, train, baseline and evaluate on it. Exit status: that of the work.

arguments
  KEY=VALUE     override a knob of params.yaml: train.steps=5000 counts for every dataset named,
                datasets.burgers1d.train.steps=5000 for one of them

environment
  WANDB_DATASETS  names of published datasets, separated by spaces, commas or line breaks (required)
  OVERRIDES       more KEY=VALUE pairs, separated by spaces or line breaks; values without spaces
  VERSION         restore the datasets as of this version's git tags, e.g. v1.0.0
  CACHE           where fetched archives are kept (artifacts/cache)
  REMOTE          the DVC remote to ask (its default)
  MIN_FREE_GB     refuse to start with less room on the disk (5)
  NO_ENV=1        use the python on the PATH as it is, instead of .venv (made by `make env` if absent)
  UPS_DEVICE      cpu, cuda or cuda:N (cuda where there is a GPU)

example
  WANDB_DATASETS=burgers1d_subset_v1 OVERRIDES="train.batch=64" \
    bash scripts/run_remote_scale.sh train.steps=5000 autoencoder.steps=5000
HELP
}

fail() {
  echo "run_remote_scale: $*" >&2
  exit 1
}

say() {
  echo "== $*"
}

find_python() {
  if [[ "${NO_ENV:-0}" == 1 ]]; then
    python=$(command -v python || command -v python3) || fail "NO_ENV=1, but there is no python on the PATH"
  else
    [[ -x .venv/bin/python ]] || { say "making .venv"; make env; }
    python=.venv/bin/python
  fi
  "$python" - <<'PYTHON' || fail "$python lacks packages; run \`make env\`, or install requirements.txt into it"
import sys
from importlib.util import find_spec

wanted = "dvc h5py numpy pcodec pydantic safetensors torch yaml zarr".split()
sys.exit(", ".join(name for name in wanted if not find_spec(name)) or 0)
PYTHON
}

check_room() {
  local free_gb wanted_gb=${MIN_FREE_GB:-5}
  [[ "$wanted_gb" =~ ^[0-9]{1,9}$ ]] || fail "MIN_FREE_GB: got '$wanted_gb', expected a whole number of GB such as 5"
  wanted_gb=$((10#$wanted_gb)) # 08 is eight
  free_gb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1000000))
  ((free_gb >= wanted_gb)) || fail "$free_gb GB free here, $wanted_gb wanted; free some room or set MIN_FREE_GB"
  say "$free_gb GB free"
}

check_gpu() {
  if command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total --format=csv,noheader; then
    "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
      say "this torch has no CUDA: training runs on the CPU (install a CUDA wheel of torch to use the GPU)"
  else
    say "no GPU found: training runs on the CPU"
  fi
}

# The task of a published dataset, as its registry entry says, that of VERSION where one is asked for.
task_of() {
  "$python" - "$1" "${VERSION:-}" <<'PYTHON'
import sys
from pathlib import Path
from ups_data.errors import UpsDataError
from ups_data.hydrate import find_version

name, version = sys.argv[1:]
try:
    print(find_version(name, version, Path())[0].task)
except UpsDataError as error:
    sys.exit(f"run_remote_scale: {error}")
PYTHON
}

# Sets `task` and `flags` for a published dataset.
look_up() {
  local override
  task=$(task_of "$1")
  flags=()
  for override in "${overrides[@]}"; do
    case $override in
      datasets.* | simulate.*) flags+=(--set "$override") ;;
      *) flags+=(--set "datasets.$task.$override") ;;
    esac
  done
}

check_knobs() {
  "$python" - "$@" <<'PYTHON'
import sys
from ups_data.errors import UpsDataError
from ups_data.params import dataset_params, load_params

task, *flags = sys.argv[1:]
try:
    dataset_params(load_params(overrides=[flag for flag in flags if flag != "--set"]), task)
except UpsDataError as error:
    sys.exit(f"run_remote_scale: {error}")
PYTHON
}

# What a stage leaves behind; its mark counts only while this is there.
output_of() {
  local task=$1 stage=$2
  case $stage in
    latents) echo "data/latent_cache/${task}_test/manifest.json" ;;
    evaluate) echo "reports/$task/metrics.json" ;;
    train) echo "models/$task/operator.safetensors" ;;
    *) echo "models/$task/$stage.safetensors" ;;
  esac
}

# Tells apart all that the stages depend on: a change of any of it runs them again.
fingerprint() {
  local name=$1
  shift
  {
    printf '%s\n' "$name" "${VERSION:-}" "$@"
    cat params.yaml docs/dataset_registry.yaml
    find stages ups_data -name '*.py' -print0 | sort -z | xargs -0 cat
  } | sha256sum | cut -c1-16
}

# From here on the outputs of the task are this run's: what other knobs or datasets had finished is overwritten.
drop_other_marks() {
  local task=$1 kept=$2 other
  for other in ".state/run_remote_scale/$task"-*; do
    [[ "$other" == "$kept" ]] || rm -rf "$other"
  done
}

run_dataset() {
  local name=$1 task marks stage
  local -a flags replace hydrate=("$name" --cache "${CACHE:-artifacts/cache}")
  look_up "$name"
  [[ -z "${VERSION:-}" ]] || hydrate+=(--version "$VERSION")
  [[ -z "${REMOTE:-}" ]] || hydrate+=(--remote "$REMOTE")
  say "$name: hydrate"
  "$python" -m stages.hydrate "${hydrate[@]}"
  marks=.state/run_remote_scale/$task-$(fingerprint "$name" "${flags[@]}")
  mkdir -p "$marks"
  for stage in "${STAGES[@]}"; do
    if [[ -e "$marks/$stage" && -e "$(output_of "$task" "$stage")" ]]; then
      say "$name: $stage is done"
      continue
    fi
    say "$name: $stage"
    drop_other_marks "$task" "$marks"
    replace=()
    [[ "$stage" != latents ]] || replace=(--overwrite) # the one stage that keeps what others made unless told so
    "$python" -m "stages.$stage" "$task" "${replace[@]}" "${flags[@]}"
    touch "$marks/$stage"
  done
}

main() {
  local name override task
  local -a names=() more=() flags
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  for override in "$@"; do
    case $override in
      -h | --help) usage; exit 0 ;;
      [a-z]*=*) ;;
      *) fail "got '$override', expected KEY=VALUE such as train.steps=5000 (--help tells more)" ;;
    esac
  done
  local wanted=${WANDB_DATASETS:-}
  read -r -d '' -a names <<<"${wanted//,/ }" || true # to the end, over all its lines: there is no delimiter to find
  ((${#names[@]})) || fail "WANDB_DATASETS names no dataset; e.g. WANDB_DATASETS=burgers1d_subset_v1"
  read -r -d '' -a more <<<"${OVERRIDES:-}" || true
  overrides=("${more[@]}" "$@")
  check_room
  find_python
  check_gpu
  for name in "${names[@]}"; do
    look_up "$name" # a wrong name or knob is found out before hours of work on the right ones
    check_knobs "$task" "${flags[@]}"
  done
  for name in "${names[@]}"; do
    run_dataset "$name"
  done
  say "done: ${names[*]}; metrics in reports/"
}

main "$@"

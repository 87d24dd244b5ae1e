# What both training scripts share: checks of the paths, DEMO, and the launch. Sourced, not run.

# require NAME...: every variable must be set; all missing ones are named at once.
require() {
  local missing=() name
  for name in "$@"; do
    [ -n "${!name:-}" ] || missing+=("$name")
  done
  if [ "${#missing[@]}" -gt 0 ]; then
    echo "$(basename "$0"): not set: ${missing[*]}" >&2
    echo "Set them in the environment, e.g. ${missing[0]}=/path $0, or run with DEMO=1 on the built-in data." >&2
    exit 2
  fi
}

# add FLAG VALUE: one more flag, if the value is not empty.
add() {
  if [ -n "$2" ]; then
    flags+=("--$1" "$2")
  fi
}

# launch FLAG...: deepspeed on the chosen devices. INCLUDE (localhost:0,1) chooses GPUs; CUDA_VISIBLE_DEVICES works too.
launch() {
  local devices=()
  if [ -n "${INCLUDE:-}" ]; then
    devices=(--include "$INCLUDE")
  fi
  cd "$(dirname "${BASH_SOURCE[0]}")/../.."
  exec deepspeed "${devices[@]}" --master_port "${MASTER_PORT:-29501}" psalm/train/train.py "$@"
}

# What both training scripts share: paths from the environment, checks of them, the launch. Sourced, not run.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

# Each of these variables that is set becomes the flag of its name: REF_COCO_PATH=FILE is --ref_coco_path FILE.
PATHS=(
  PRETRAIN_MM_MLP_ADAPTER
  PANOPTIC_JSON_PATH IMAGE_FOLDER
  INSTANCE_JSON_PATH
  REF_COCO_PATH REF_COCO_PLUS_PATH REF_COCO_G_PATH REFCOCO_IMAGE_FOLDER
  REFERRING_JSON_PATH REFERRING_IMAGE_FOLDER
  REGION_JSON_PATH REGION_IMAGE_FOLDER
  REGION_CROSS_JSON_PATH REGION_CROSS_IMAGE_FOLDER
)

# flags_of NAME...: the flags of the variables that are set, into the array flags.
flags_of() {
  local name
  for name in "$@"; do
    if [ -n "${!name:-}" ]; then
      flags+=("--${name,,}" "${!name}")
    fi
  done
}

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

# needed_for TASKS: the variables that tasks (with commas) cannot do without, into the array required.
needed_for() {
  case ",$1," in *,panoptic,* | *,semantic,*) required+=(PANOPTIC_JSON_PATH) ;; esac
  case ",$1," in
    *,instance,*) [ -n "${INSTANCE_JSON_PATH:-}${PANOPTIC_JSON_PATH:-}" ] || required+=(INSTANCE_JSON_PATH) ;;
  esac
  case ",$1," in
    *,referring,*)
      [ -n "${REFERRING_JSON_PATH:-}${REF_COCO_PLUS_PATH:-}${REF_COCO_G_PATH:-}" ] || required+=(REF_COCO_PATH)
      ;;
  esac
  case ",$1," in *,region,*) required+=(REGION_JSON_PATH REGION_IMAGE_FOLDER) ;; esac
}

# launch FLAG...: deepspeed on the chosen devices. INCLUDE (localhost:0,1) chooses GPUs; CUDA_VISIBLE_DEVICES works too.
launch() {
  local devices=()
  if [ -n "${INCLUDE:-}" ]; then
    devices=(--include "$INCLUDE")
  fi
  exec deepspeed "${devices[@]}" --master_port "${MASTER_PORT:-29501}" "$ROOT/psalm/train/train.py" "$@"
}

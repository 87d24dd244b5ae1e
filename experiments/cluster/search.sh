#!/usr/bin/env bash
# Begins a search below OUTPUT_DIR, or goes on with the one that is there: for schedulers that start a job again.
#
#   OUTPUT_DIR=/shared/runs/first bash experiments/cluster/search.sh --config experiments/search/phi15_swin.yaml
#
# Flags after the script's name say what is searched; they are used when the search begins. OPTIONS in the environment
# holds those for every start: OPTIONS="--address auto --time-budget 23h".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
: "${OUTPUT_DIR:?give a folder that outlives the job, and holds no other search}"
read -r -a options <<< "${OPTIONS:-}"

begun=("$OUTPUT_DIR"/*/tracking.json)
if [ -e "${begun[0]}" ]; then
  exec python tune/search.py --resume "$(dirname "${begun[0]}")" "${options[@]}"
fi
exec python tune/search.py --output-dir "$OUTPUT_DIR" "${options[@]}" "$@"

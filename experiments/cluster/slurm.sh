#!/usr/bin/env bash
# A search on Slurm: a Ray cluster of its own on the job's nodes, gone with the job.
#
#   cd REPOSITORY && sbatch experiments/cluster/slurm.sh --config experiments/search/phi15_swin.yaml --num-samples 40
#
# Change the lines below for the cluster, or give the same options to sbatch. Flags after the script's name say what is
# searched; they are used when the search begins. From the environment:
#   VENV        the virtual environment, seen by all nodes; .venv by default
#   OUTPUT_DIR  folder of the search, seen by all nodes; runs/slurm-JOB by default. If it has a search, that goes on.
#   OPTIONS     flags for every start, also when the search goes on: OPTIONS="--time-budget 22h --max-failures 5"
#
# Two minutes before the time limit Slurm tells this script, which tells the search: running trials save a checkpoint, the
# job is put back into the queue, and the search goes on when it runs again.
#SBATCH --job-name=psalm-search
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch, from the root of the repository}"
# shellcheck disable=SC1091
source "${VENV:-.venv}/bin/activate"

export OUTPUT_DIR="${OUTPUT_DIR:-$PWD/runs/slurm-$SLURM_JOB_ID}"

# Whoever knows the token can run code on these nodes: it is made for this job and never written down.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"
RAY_FOLDER="/tmp/ray-$SLURM_JOB_ID" # short: the paths of Unix sockets are limited
# Pods are drained by it; here it would be half a minute of waiting at the end.
RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
export RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_FOLDER RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

# free_ports N: ports that nobody uses on this machine. Ray's own choices may be those of another job on it.
free_ports() {
  python -c '
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for each in sockets:
    each.bind(("", 0))
print(*(each.getsockname()[1] for each in sockets))' "$1"
}

# start_node FLAG...: Ray on this machine, until it is told to end.
start_node() {
  local listen grpc metrics
  read -r listen grpc metrics <<< "$(free_ports 3)"
  exec ray start --block --log-color=false --disable-usage-stats --temp-dir="$RAY_FOLDER" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --dashboard-agent-listen-port="$listen" --dashboard-agent-grpc-port="$grpc" \
    --metrics-export-port="$metrics" "$@"
}
export -f free_ports start_node

steps=() # processes of srun
search=""
told=0
interrupted=0

tell_search() {
  told=1 interrupted=1
  if [ -n "$search" ]; then
    kill -TERM "$search" || true
  fi
}

end_ray() {
  trap '' TERM
  if [ "${#steps[@]}" -gt 0 ]; then
    kill -TERM "${steps[@]}" || true
    wait "${steps[@]}" || true
  fi
  srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 rm -rf "$RAY_FOLDER"
}

trap tell_search TERM
trap end_ray EXIT

head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" # where this script runs
ip="$(python -c 'import ray.util; print(ray.util.get_node_ip_address())')"
read -r port dashboard client <<< "$(free_ports 3)"
address="$ip:$port"

# shellcheck disable=SC2016 # the steps expand these
{
  srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" --nodelist="$head" \
    bash -c 'start_node "$@"' start_node --head --node-ip-address="$ip" --port="$port" --dashboard-port="$dashboard" \
    --ray-client-server-port="$client" &
  steps+=("$!")
  if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    workers=$((SLURM_JOB_NUM_NODES - 1))
    srun --overlap --nodes="$workers" --ntasks="$workers" --cpus-per-task="$SLURM_CPUS_PER_TASK" --exclude="$head" \
      bash -c 'until ray health-check --address="$1"; do sleep 2; done; start_node --address="$1"' start_node "$address" &
    steps+=("$!")
  fi
}

python - "$address" "$SLURM_JOB_NUM_NODES" << 'END'
import subprocess
import sys
import time

import ray

address, expected = sys.argv[1], int(sys.argv[2])
deadline = time.monotonic() + 300
while subprocess.run(["ray", "health-check", f"--address={address}"], capture_output=True).returncode:
    if time.monotonic() > deadline:
        sys.exit(f"slurm.sh: no Ray at {address} after 5 minutes")
    time.sleep(1)
ray.init(address, log_to_driver=False, logging_level="error")
while (alive := sum(node["Alive"] for node in ray.nodes())) < expected:
    if time.monotonic() > deadline:
        sys.exit(f"slurm.sh: {alive} of {expected} nodes after 5 minutes")
    time.sleep(1)
END

code=143
if [ "$told" = 0 ]; then
  OPTIONS="${OPTIONS:-} --address $address" bash experiments/cluster/search.sh "$@" &
  search=$!
  while true; do
    interrupted=0
    wait "$search" && code=0 || code=$?
    [ "$interrupted" = 1 ] || break # a signal ends the wait, not the search
  done
fi
if [ "$told" = 1 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

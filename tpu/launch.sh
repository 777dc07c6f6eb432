#!/usr/bin/env bash
# From a quota to a running stage on TPU VMs, by Google's own tools: queued resources and --worker=all.
#
#   tpu/launch.sh COMMAND --name NAME --project P --zone Z --pod v5e-256 --image IMAGE --bucket B \
#                 [--config configs/open_v2.py] [--stage diffusion] [--spot] [--dry-run]
#
# Commands, in this order:
#   create   asks for the pod (a queued resource; it waits until there is room)
#   status   says what became of the request
#   train    starts the stage on every host, in the background; again after a preemption: it goes on
#   logs     follows host 0
#   stop     SIGTERM to every host: saves a checkpoint and ends
#   delete   gives the pod back (this is what ends the bill)
#
# --dry-run prints the commands instead of running them. Pods: those of tpu/pods.toml.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name="" project="" zone="" pod="" image="" bucket=""
config="configs/open_v2.py" stage="diffusion" spot=0 dry=0

fail() {
  echo "launch.sh: $1" >&2
  exit 2
}

commands="create, status, train, logs, stop, delete"
[[ $# -ge 1 ]] || fail "name a command: $commands"
command="$1"
shift
case "$command" in
  create | status | train | logs | stop | delete) ;;
  *) fail "unknown command '$command'; accepted: $commands" ;;
esac
while [[ $# -gt 0 ]]; do
  case "$1" in
    --spot) spot=1 ;;
    --dry-run) dry=1 ;;
    --name | --project | --zone | --pod | --image | --bucket | --config | --stage)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --objective) # what --stage was called before
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      echo "launch.sh: --objective is now --stage" >&2
      stage="$2"
      shift
      ;;
    *) fail "unknown option '$1'" ;;
  esac
  shift
done
for option in name project zone pod; do
  [[ -n "${!option}" ]] || fail "--$option is missing"
done
type="$(python3 "$here/pods.py" "$pod" --field type)"
slices="$(python3 "$here/pods.py" "$pod" --field slices)"
runtime="$(python3 "$here/pods.py" "$pod" --field runtime)"
where=(--project "$project" --zone "$zone")

run() {
  if [[ "$dry" == 1 ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# The nodes of the request: one a slice.
nodes=("$name")
if [[ "$slices" -gt 1 ]]; then
  nodes=()
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi

on_all_hosts() {
  local node
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all --command "$1"
  done
}

case "$command" in
  create)
    request=(gcloud compute tpus queued-resources create "$name" "${where[@]}"
      --accelerator-type "$type" --runtime-version "$runtime")
    if [[ "$slices" -gt 1 ]]; then
      request+=(--node-count "$slices" --node-prefix "$name")
    else
      request+=(--node-id "$name")
    fi
    [[ "$spot" == 0 ]] || request+=(--spot)
    run "${request[@]}"
    ;;
  status)
    run gcloud compute tpus queued-resources describe "$name" "${where[@]}"
    ;;
  train)
    [[ -n "$image" ]] || fail "--image is missing: the image that tpu/Dockerfile builds"
    [[ -n "$bucket" ]] || fail "--bucket is missing: where bundles, data and runs outlive the pod"
    # --privileged and --net=host: the container sees the chips and its neighbours. 60 s to save on SIGTERM.
    printf -v inside '%q ' "$image" bash tpu/run.sh "$config" --stage "$stage"
    printf -v settings -- '-e %q ' "TPU_TYPE=$pod" "BUCKET=$bucket" SLICES=1
    on_all_hosts "sudo docker rm -f mvader >/dev/null 2>&1; sudo docker run -d --name mvader --privileged --net=host --shm-size=16g --stop-timeout 60 $settings$inside"
    ;;
  logs)
    run gcloud compute tpus tpu-vm ssh "${nodes[0]}" "${where[@]}" --worker=0 --command "sudo docker logs -f mvader"
    ;;
  stop)
    on_all_hosts "sudo docker stop --time 60 mvader"
    ;;
  delete)
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
    ;;
esac

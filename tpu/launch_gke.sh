#!/usr/bin/env bash
# From a quota to a running stage on Google Kubernetes Engine, by Google's xpk. GKE restarts a preempted job.
#
#   tpu/launch_gke.sh COMMAND --cluster C --project P --zone Z --pod v5e-256 --image IMAGE --bucket B \
#                     [--name open-v2] [--config configs/open_v2.py] [--stage diffusion] \
#                     [--restarts 100] [--spot] [--dry-run]
#
# Commands, in this order: create (a cluster with the pod's slices), train, status, stop, delete.
# --dry-run prints the commands instead of running them. Pods: those of tpu/pods.toml.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cluster="" project="" zone="" pod="" image="" bucket=""
name="mvader" config="configs/open_v2.py" stage="diffusion" restarts=100 spot=0 dry=0

fail() {
  echo "launch_gke.sh: $1" >&2
  exit 2
}

commands="create, train, status, stop, delete"
[[ $# -ge 1 ]] || fail "name a command: $commands"
command="$1"
shift
case "$command" in
  create | train | status | stop | delete) ;;
  *) fail "unknown command '$command'; accepted: $commands" ;;
esac
while [[ $# -gt 0 ]]; do
  case "$1" in
    --spot) spot=1 ;;
    --dry-run) dry=1 ;;
    --cluster | --project | --zone | --pod | --image | --bucket | --name | --config | --stage | --restarts)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"
      shift
      ;;
    --objective) # what --stage was called before
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      echo "launch_gke.sh: --objective is now --stage" >&2
      stage="$2"
      shift
      ;;
    *) fail "unknown option '$1'" ;;
  esac
  shift
done
for option in cluster project zone pod; do
  [[ -n "${!option}" ]] || fail "--$option is missing"
done
type="$(python3 "$here/pods.py" "$pod" --field type)"
slices="$(python3 "$here/pods.py" "$pod" --field slices)"
where=(--project "$project" --zone "$zone" --cluster "$cluster")

run() {
  if [[ "$dry" == 1 ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

case "$command" in
  create)
    request=(xpk cluster create "${where[@]}" --tpu-type "$type" --num-slices "$slices")
    if [[ "$spot" == 1 ]]; then request+=(--spot); else request+=(--on-demand); fi
    run "${request[@]}"
    ;;
  train)
    [[ -n "$image" ]] || fail "--image is missing: the image that tpu/Dockerfile builds"
    [[ -n "$bucket" ]] || fail "--bucket is missing: where bundles, data and runs outlive the pod"
    # The pod's name without its number of slices: run.sh puts SLICES in front itself.
    printf -v inside 'TPU_TYPE=%q SLICES=%q BUCKET=%q bash tpu/run.sh %q --stage %q' \
      "${pod#"${slices}x"}" "$slices" "$bucket" "$config" "$stage"
    # GKE sends SIGTERM before it takes a node: 60 s to save. Exit code 75 is a restart like any other.
    run xpk workload create "${where[@]}" --workload "$name" --tpu-type "$type" --num-slices "$slices" \
      --docker-image "$image" --command "$inside" --max-restarts "$restarts" \
      --termination-grace-period-seconds 60
    ;;
  status)
    run xpk workload list "${where[@]}"
    ;;
  stop)
    run xpk workload delete "${where[@]}" --workload "$name"
    ;;
  delete)
    run xpk cluster delete "${where[@]}"
    ;;
esac

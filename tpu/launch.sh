#!/usr/bin/env bash
# From a quota to a running job on TPU VMs, by Google's own tools: queued resources and --worker=all.
#
#   tpu/launch.sh COMMAND --name NAME --project P --zone Z --pod v5e-256 --image IMAGE --bucket B \
#                 [--config configs/open_v2.py] [--stage diffusion] [--spot] [--dry-run] [WORDS] [-- WORDS]
#
# Commands, in this order:
#   create   asks for the pod (a queued resource; it waits until there is room)
#   status   says what became of the request
#   encode   computes latents and features of a data set on every host: WORDS are the data set and the result's folder
#   train    starts the stage on every host, in the background; again after a preemption: it goes on
#   sample   draws: WORDS are those of `mvader sample`
#   logs     follows host 0
#   stop     SIGTERM to every host: training saves a checkpoint and ends
#   delete   gives the pod back (this is what ends the bill)
#
# WORDS are handed on to mvader: overrides as they are, options behind --. --dry-run prints the commands instead of
# running them. A pod has any name that `mvader plan --topology` takes: v5e-8, v5litepod-16, v4-32, 2xv5e-256, v5p:4x4x8.
set -euo pipefail

# shellcheck source=tpu/launching.sh
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"
name="" project="" zone=""
commands="create, status, encode, train, sample, logs, stop, delete"
options="name project zone pod image bucket config stage"
parse "$@"
need name project zone pod
slices="$(ask slices)"
where=(--project "$project" --zone "$zone")

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
  encode | train | sample) plan_job ;;
  *) [[ ${#rest[@]} -eq 0 ]] || fail "'${rest[0]}' does nothing for $command; leave it out" ;;
esac
case "$command" in
  create)
    found="$(ask gcloud)"
    mapfile -t machine <<<"$found"
    request=(gcloud compute tpus queued-resources create "$name" "${where[@]}" "${machine[@]}")
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
  encode | train | sample)
    # The hosts' docker pulls as root, which is to know Google's registry.
    login="" registry="${image%%/*}"
    case "$registry" in
      *.pkg.dev | *gcr.io) printf -v login 'sudo gcloud auth configure-docker %q --quiet >/dev/null 2>&1; ' "$registry" ;;
    esac
    # --privileged and --net=host: the container sees the chips and its neighbours. 60 s to save on SIGTERM.
    printf -v inside '%q ' "$image" bash tpu/run.sh "${job[@]}"
    printf -v settings -- '-e %q ' "TPU_TYPE=$pod" "BUCKET=$bucket"
    on_all_hosts "${login}sudo docker rm -f mvader >/dev/null 2>&1; sudo docker run -d --name mvader --privileged --net=host --shm-size=16g --stop-timeout 60 $settings$inside"
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

#!/usr/bin/env bash
# From a quota to a running job on Google Kubernetes Engine, by Google's xpk. GKE restarts a preempted job.
#
#   tpu/launch_gke.sh COMMAND --cluster C --project P --zone Z --pod v5e-256 --image IMAGE --bucket B \
#                     [--name open-v2] [--config configs/open_v2.py] [--stage diffusion] \
#                     [--restarts 100] [--spot] [--dry-run] [WORDS] [-- WORDS]
#
# Commands, in this order:
#   create   makes a cluster with the pod's slices
#   encode, train, sample   start a job there; WORDS are handed on to mvader, as by launch.sh
#   status   lists the jobs
#   stop     ends the job of this --name and removes it; a run goes on from its newest checkpoint when started again
#   delete   removes the cluster (this is what ends the bill)
#
# --dry-run prints the commands instead of running them. A pod has any name that `mvader plan --topology` takes.
set -euo pipefail

# shellcheck source=tpu/launching.sh
source "$(dirname "${BASH_SOURCE[0]}")/launching.sh"
cluster="" project="" zone="" name="mvader" restarts=100
commands="create, encode, train, sample, status, stop, delete"
options="cluster project zone pod image bucket name config stage restarts"
parse "$@"
need cluster project zone pod
type="$(ask xpk)"
slices="$(ask slices)"
where=(--project "$project" --zone "$zone" --cluster "$cluster")

case "$command" in
  encode | train | sample) plan_job ;;
  *) [[ ${#rest[@]} -eq 0 ]] || fail "'${rest[0]}' does nothing for $command; leave it out" ;;
esac
case "$command" in
  create)
    request=(xpk cluster create "${where[@]}" --tpu-type "$type" --num-slices "$slices")
    if [[ "$spot" == 1 ]]; then request+=(--spot); else request+=(--on-demand); fi
    run "${request[@]}"
    ;;
  encode | train | sample)
    printf -v inside '%q ' "TPU_TYPE=$pod" "BUCKET=$bucket" bash tpu/run.sh "${job[@]}"
    # GKE sends SIGTERM before it takes a node: 60 s to save. Exit code 75 is a restart like any other.
    run xpk workload create "${where[@]}" --workload "$name" --tpu-type "$type" --num-slices "$slices" \
      --docker-image "$image" --command "${inside% }" --max-restarts "$restarts" \
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

#!/usr/bin/env bash
# Runs a job on this host of a slice; the launchers start it on every host with the same arguments.
#
#   TPU_TYPE=v5e-256 BUCKET=mine tpu/run.sh train configs/open_v2.py [arguments of mvader train]
#   tpu/run.sh encode configs/open_v2.py DATA OUT [arguments of mvader data encode]
#   tpu/run.sh sample [arguments of mvader sample]
#
# BUCKET is mounted at /gcs and becomes the working directory: bundles/, data/ and runs/ lie there. Training chooses
# its mesh where the arguments name none. The exit code is mvader's: 0 finished, 75 told to stop by a preemption and
# saved, anything else a mistake.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=tpu/env.sh
source "$here/env.sh"

case "${1:-}" in
  train) job=(train) ;;
  encode) job=(data encode) ;;
  sample) job=(sample) ;;
  *) # before there were other jobs, a config stood here
    job=(train)
    set -- train "$@"
    ;;
esac
shift
if [[ "${job[0]}" != sample ]]; then
  if [[ $# -lt 1 || "$1" == -* ]]; then
    echo "run.sh: name a config first, as in: tpu/run.sh train configs/open_v2.py" >&2
    exit 2
  fi
  # The config is the image's own; everything else is the bucket's.
  [[ ! -f "$1" ]] || set -- "$(realpath "$1")" "${@:2}"
fi
if [[ -n "${BUCKET:-}" ]]; then
  mkdir -p /gcs
  mountpoint -q /gcs || gcsfuse --implicit-dirs "$BUCKET" /gcs
  cd /gcs
fi
# exec: a SIGTERM of the host reaches mvader itself, which saves and exits with 75.
exec mvader "${job[@]}" "$@"

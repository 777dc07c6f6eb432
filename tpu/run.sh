#!/usr/bin/env bash
# Runs a stage on this host of a slice; the launchers start it on every host with the same arguments.
#
#   TPU_TYPE=v5e-256 BUCKET=mine tpu/run.sh configs/open_v2.py [mvader train arguments]
#
# BUCKET is mounted at /gcs and becomes the working directory: bundles/, data/ and runs/ lie there.
# The mesh of TPU_TYPE (and SLICES) comes from tpu/pods.toml and stands before the arguments, so that a --mesh or
# an accumulate among them wins. The exit code is mvader's: 0 finished, 75 told to stop by a preemption and
# saved, anything else a mistake.
set -euo pipefail

if [[ $# -lt 1 || "$1" == -* ]]; then
  echo "run.sh: name a config first, as in: tpu/run.sh configs/open_v2.py" >&2
  exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=tpu/env.sh
source "$here/env.sh"

config="$1"
shift
machine=()
if [[ -n "${TPU_TYPE:-}" ]]; then
  pod="${TPU_TYPE}"
  [[ "${SLICES:-1}" == 1 ]] || pod="${SLICES}x${TPU_TYPE}"
  # An assignment, not a process substitution: a pod that is unknown ends the script.
  found="$(python3 "$here/pods.py" "$pod" "$config")"
  mapfile -t machine <<<"$found"
fi
if [[ -n "${BUCKET:-}" ]]; then
  # The config is the image's own; everything else is the bucket's.
  config="$(realpath "$config")"
  mkdir -p /gcs
  mountpoint -q /gcs || gcsfuse --implicit-dirs "$BUCKET" /gcs
  cd /gcs
fi
# exec: a SIGTERM of the host reaches mvader itself, which saves and exits with 75.
exec mvader train "$config" "${machine[@]}" "$@"

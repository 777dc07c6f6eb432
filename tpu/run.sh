#!/usr/bin/env bash
# Runs a stage on this host of a slice; the launchers start it on every host with the same arguments.
#
#   TPU_TYPE=v5e-256 BUCKET=mine tpu/run.sh configs/open_v2.py [mvader train arguments]
#
# BUCKET is mounted at /gcs and becomes the working directory: bundles/, data/ and runs/ lie there.
# The mesh of TPU_TYPE (and SLICES) comes from tpu/pods.toml unless --mesh is among the arguments. The exit
# code is mvader's: 0 finished, 75 told to stop by a preemption and saved, anything else a mistake.
set -euo pipefail

if [[ $# -lt 1 || "$1" == -* ]]; then
  echo "run.sh: name a config first, as in: tpu/run.sh configs/open_v2.py" >&2
  exit 2
fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=tpu/env.sh
source "$here/env.sh"

arguments=("$@")
if [[ " $* " != *" --mesh "* && -n "${TPU_TYPE:-}" ]]; then
  pod="${TPU_TYPE}"
  [[ "${SLICES:-1}" == 1 ]] || pod="${SLICES}x${TPU_TYPE}"
  mapfile -t found < <(python3 "$here/pods.py" "$pod" "$1")
  arguments+=("${found[@]}")
fi
if [[ -n "${BUCKET:-}" ]]; then
  # The config is the image's own; everything else is the bucket's.
  arguments[0]="$(realpath "$1")"
  mkdir -p /gcs
  mountpoint -q /gcs || gcsfuse --implicit-dirs "$BUCKET" /gcs
  cd /gcs
fi
# exec: a SIGTERM of the host reaches mvader itself, which saves and exits with 75.
exec mvader train "${arguments[@]}"

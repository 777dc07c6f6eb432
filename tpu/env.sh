# Environment of a training process on a TPU host; sourced by tpu/run.sh. A value set before wins.
# shellcheck shell=bash

# The library's start-up chatter drowns what a person should read.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
# Compiled programs outlive a preemption when they are on the bucket: a restart skips minutes of compiling.
[[ -z "${BUCKET:-}" ]] || export MVADER_CACHE="${MVADER_CACHE:-/gcs/cache}"
# The processes of all hosts join into one job (a TPU VM names its neighbours in its metadata alone).
export MVADER_POD=1
# Host memory comes back to the system after a checkpoint instead of staying with malloc.
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-100000000}"

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

# LIBTPU_INIT_ARGS, one flag a line and why. They move no numbers, only when work is done.
mvader_flags=(
  # fsdp gathers weights layer by layer: fuse the gathers into the matrix products that do not wait for them.
  --xla_tpu_enable_async_collective_fusion=true
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  # A gather may stretch over several products where one is too short to hide it.
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  # Let arithmetic and collectives share the core's time; without it a fused gather still blocks.
  --xla_tpu_overlap_compute_collective_tc=true
  # `data` and `replica` sum gradients: start as each is ready and do not wait to pack them.
  --xla_tpu_enable_data_parallel_all_reduce_opt=true
  --xla_tpu_data_parallel_opt_different_sized_ops=true
)
case "${TPU_TYPE:-}" in
  # A v6e core has 128 MiB of fast memory; larger tiles feed its twice as wide matrix units.
  *v6e*) mvader_flags+=(--xla_tpu_scoped_vmem_limit_kib=98304) ;;
esac
export LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:-${mvader_flags[*]}}"

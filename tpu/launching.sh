# What launch.sh and launch_gke.sh share: their options, and what every host is told to run. Sourced, with `commands`
# and `options` set to the words that are accepted.
# shellcheck shell=bash disable=SC2034,SC2154

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
command="" config="" stage="" pod="" image="" bucket="" spot=0 dry=0
# What is handed on to mvader, and what run.sh gets of it.
rest=() job=()

fail() {
  echo "$(basename "$0"): $1" >&2
  exit 2
}

# The command and its options into variables of their names. Words without -- in front, and all behind --, are mvader's.
parse() {
  [[ $# -ge 1 ]] || fail "name a command: $commands"
  command="$1"
  shift
  [[ ", $commands," == *" $command,"* ]] || fail "unknown command '$command'; accepted: $commands"
  while [[ $# -gt 0 ]]; do
    case "$1" in
      --spot) spot=1 ;;
      --dry-run) dry=1 ;;
      --)
        shift
        rest+=("$@")
        break
        ;;
      --objective) # what --stage was called before
        [[ $# -ge 2 ]] || fail "$1 needs a value"
        echo "$(basename "$0"): --objective is now --stage" >&2
        stage="$2"
        shift
        ;;
      -*)
        [[ " $options " == *" ${1#--} "* ]] || fail "unknown option '$1'; mvader's own stand behind --"
        [[ $# -ge 2 ]] || fail "$1 needs a value"
        printf -v "${1#--}" '%s' "$2"
        shift
        ;;
      *) rest+=("$1") ;;
    esac
    shift
  done
}

# Raises the names of options that are needed and were not given.
need() {
  local option
  for option in "$@"; do
    [[ -n "${!option}" ]] || fail "--$option is missing"
  done
}

ask() {
  python3 "$here/pods.py" "$pod" "$1"
}

# Fills `job`: the words that run.sh gets on every host.
plan_job() {
  [[ -n "$image" ]] || fail "--image is missing: the image that tpu/Dockerfile builds"
  [[ -n "$bucket" ]] || fail "--bucket is missing: where bundles, data and runs outlive the pod"
  local chips
  chips="$(ask chips)"
  if [[ "$command" == sample ]]; then
    [[ -z "$config$stage" ]] || fail "--config and --stage do nothing for sample; a --bundle stands behind --"
    [[ "$chips" == 1 || " ${rest[*]} " == *" --mesh"* ]] ||
      fail "sample on $chips chips needs a --mesh behind --; mvader plan CONFIG --job sample --topology $pod says which"
    job=(sample "${rest[@]}")
    return
  fi
  if [[ "$command" == encode && ${#rest[@]} -lt 2 ]]; then
    fail "encode needs a data set and a folder for the result, as in: encode ... data/laion data/encoded"
  fi
  job=("$command" "${config:-configs/open_v2.py}" --stage "${stage:-diffusion}" "${rest[@]}")
}

run() {
  if [[ "$dry" == 1 ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

#!/usr/bin/env bash
# What a Kubernetes pod runs (launch/gke.yaml, xpk): the program, with an exit code that tells Kubernetes the truth.
#
#     launch/pod.sh --workdir=DIR ARGUMENTS OF gaternet_jax.main...
#
# After SIGTERM the program writes a checkpoint and ends with 0, which Kubernetes would count as a completed run; here
# it is 0 only if DIR/finished is there, and 1 (start again) otherwise. 2 stays 2 (a restart cannot mend it).
#
#     PYTHON          interpreter (default python)
#     SETTLE_SECONDS  how long a file written by another host may take to be seen (default 30)
#     DRY_RUN=1       print the command and run nothing
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
  if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    manual
    exit 0
  fi
  local workdir tries=0
  workdir=$(value_of workdir "$@")
  [[ -n $workdir ]] || die "say --workdir=DIR, on storage that all pods share"
  SETTLE_SECONDS=${SETTLE_SECONDS:-30}
  need_number SETTLE_SECONDS
  if dry; then
    run "${PYTHON:-python}" -m gaternet_jax.main "$@"
    exit 0
  fi
  supervise "${PYTHON:-python}" -m gaternet_jax.main "$@" || exit "$code"
  until [[ -e $workdir/finished ]]; do
    if [[ -n $signalled ]] || ((tries++ >= SETTLE_SECONDS)); then
      say "$workdir/finished is not there: ended early; exit code 1 asks for a restart"
      exit 1
    fi
    sleep 1 || true # Ctrl-C at a terminal ends it too
  done
}

main "$@"

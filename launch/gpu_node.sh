#!/usr/bin/env bash
# Trains on all GPUs of this machine, in one process, and starts again after a crash.
#
#     launch/gpu_node.sh ARGUMENTS OF gaternet_jax.main...
#     launch/gpu_node.sh --config=configs/imagenet.py:resnet50 --workdir=runs/resnet50 --data_dir=DIR
#
# Ctrl-C and SIGTERM are passed on once: the run ends with a checkpoint, and is not started again. Exit code: the
# program's. 2 is an error that a restart cannot mend.
#
#     PYTHON           interpreter (default python)
#     MAX_RESTARTS     after crashes (default 3); each goes on from the latest checkpoint
#     RESTART_SECONDS  pause before each (default 10)
#     DRY_RUN=1        print the commands and run nothing
#
# JAX_PLATFORMS is set to cuda, so that a broken driver is an error and not a run on the CPU. JAX's share of the GPU's
# memory (XLA_PYTHON_CLIENT_MEM_FRACTION) is left alone: its 75% leaves room for NCCL and cuDNN, and more helps only a
# run that needs it.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

COUNT_GPUS='import jax; print(len(jax.devices()))'

check_gpus() {
  local count
  command -v nvidia-smi >/dev/null || die "nvidia-smi is not there: this machine has no NVIDIA driver"
  nvidia-smi --list-gpus >&2 || die "nvidia-smi finds no working GPU: look at the driver (dmesg) before training"
  command -v "$python" >/dev/null || die "$python is not there: activate the virtual environment, or set PYTHON"
  count=$("$python" -c "$COUNT_GPUS") ||
    die "JAX does not see the GPUs: pip install -e '.[cuda13]', and look at LD_LIBRARY_PATH (it should be unset)"
  say "JAX sees $count GPU(s)"
}

main() {
  if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    manual
    exit 0
  fi
  (($#)) || die "say what to train: launch/gpu_node.sh --config=configs/X.py --workdir=DIR (see --help)"
  python=${PYTHON:-python} MAX_RESTARTS=${MAX_RESTARTS:-3} RESTART_SECONDS=${RESTART_SECONDS:-10}
  need_number MAX_RESTARTS RESTART_SECONDS
  export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}
  if dry; then
    run nvidia-smi --list-gpus
    run env "JAX_PLATFORMS=$JAX_PLATFORMS" "$python" -c "$COUNT_GPUS"
    run env "JAX_PLATFORMS=$JAX_PLATFORMS" "$python" -m gaternet_jax.main "$@"
    exit 0
  fi
  check_gpus
  local restarts=0
  while :; do
    supervise "$python" -m gaternet_jax.main "$@" || true
    if ((code == 0 || code == 2)) || [[ -n $signalled ]]; then
      exit "$code"
    fi
    ((restarts < MAX_RESTARTS)) || die "the run ended with $code after $restarts restart(s): giving up" "$code"
    restarts=$((restarts + 1))
    say "the run ended with $code: restart $restarts of $MAX_RESTARTS in $RESTART_SECONDS s"
    sleep "$RESTART_SECONDS" &
    wait "$!" || true # unlike sleep itself, `wait` is ended by a signal
    [[ -z $signalled ]] || exit "$code"
  done
}

main "$@"

#!/usr/bin/env bash
# Runs N processes of one command on this machine, as the hosts of a pod, over JAX's CPU collectives.
#
#     launch/local_pod.sh N COMMAND...
#     launch/local_pod.sh 2 python -m gaternet_jax.main --config=configs/digits.py
#
# Each process gets --coordinator=localhost:PORT --num_processes=N --process_id=I appended, and its lines are shown
# after "[I] ". Ctrl-C and SIGTERM are passed on to all processes once, and their ends waited for; a second one kills.
# When a process fails, or after a signal, the others have GRACE_SECONDS to end; then they are terminated, then killed.
# Exit code: 0 if all ended with 0, else that of the process that failed first (128 + S if signal S ended it).
#
#     DEVICES_PER_PROCESS  CPU devices that each process sees (default 1)
#     GRACE_SECONDS        see above (default 150: longer than JAX takes to notice a lost peer)
#     KILL_SECONDS         from SIGTERM to SIGKILL after that (default 10)
#     DRY_RUN=1            print the commands and run nothing
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

free_port() {
  local port
  for _ in {1..100}; do
    port=$((20000 + RANDOM % 12000)) # below the range from which systems take ports for outgoing connections
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      printf '%s' "$port"
      return
    fi
  done
  die "found no free port between 20000 and 32000"
}

# To the processes themselves (not to their groups: their data workers must live until the checkpoint is written).
signal_processes() {
  local i
  for i in "${!pids[@]}"; do
    [[ -n ${codes[i]:-} ]] || kill "-$1" "${pids[i]}" 2>/dev/null || true
  done
}

kill_groups() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"} ${printers[@]+"${printers[@]}"}; do
    kill -KILL -- "-$pid" 2>/dev/null || true
  done
}

# shellcheck disable=SC2329 # called by a trap
clean_up() {
  trap '' INT TERM HUP
  kill_groups
  rm -rf "$folder"
}

# shellcheck disable=SC2329 # called by a trap
on_signal() {
  if ((signals++ == 0)); then
    say "SIG$1: passed on to all processes; waiting for their checkpoints (a second one kills them)"
    signal_processes "$1"
    deadline=$((SECONDS + GRACE_SECONDS))
  else
    say "second signal: killing all processes"
    kill_groups
  fi
}

print_lines() {
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

start_processes() {
  local i
  set -m # a process group for each, so that nothing a process starts can outlive this script
  for ((i = 0; i < count; i++)); do
    mkfifo "$folder/$i"
    print_lines "$i" <"$folder/$i" &
    printers+=("$!")
    env "${environment[@]}" "$@" "${flags[@]}" "--process_id=$i" >"$folder/$i" 2>&1 </dev/null &
    pids+=("$!")
  done
  set +m
}

# Collects the exit codes of processes that have ended; sets `running` and, at the first failure, `result`.
collect() {
  local i code
  running=0
  for i in "${!pids[@]}"; do
    [[ -z ${codes[i]:-} ]] || continue
    if kill -0 "${pids[i]}" 2>/dev/null; then
      running=$((running + 1))
      continue
    fi
    code=0
    wait "${pids[i]}" 2>/dev/null || code=$?
    codes[i]=$code
    kill -KILL -- "-${pids[i]}" 2>/dev/null || true # what it left behind
    if ((code != 0 && result == 0)); then
      result=$code
      say "process $i ended with $code; the others have $GRACE_SECONDS s to end"
      ((deadline)) || deadline=$((SECONDS + GRACE_SECONDS))
    fi
  done
}

supervise_all() {
  local running=1 terminated=0
  while :; do
    collect
    ((running)) || break
    if ((deadline && SECONDS >= deadline)); then
      if ((!terminated)); then
        say "$running process(es) still running: terminating"
        signal_processes TERM
        terminated=1
        deadline=$((SECONDS + KILL_SECONDS))
      else
        say "$running process(es) still running: killing"
        kill_groups
      fi
    fi
    sleep 0.1 || true # Ctrl-C at a terminal ends it too
  done
}

main() {
  if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    manual
    exit 0
  fi
  [[ ${1:-} =~ ^[1-9][0-9]*$ ]] || die "say how many processes: launch/local_pod.sh N COMMAND... (see --help)"
  (($# > 1)) || die "say what to run: launch/local_pod.sh $1 COMMAND... (see --help)"
  count=$1
  shift
  GRACE_SECONDS=${GRACE_SECONDS:-150} KILL_SECONDS=${KILL_SECONDS:-10} DEVICES_PER_PROCESS=${DEVICES_PER_PROCESS:-1}
  need_number GRACE_SECONDS KILL_SECONDS DEVICES_PER_PROCESS
  environment=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$DEVICES_PER_PROCESS")
  port=$(free_port)
  flags=("--coordinator=localhost:$port" "--num_processes=$count")
  if dry; then
    local i
    for ((i = 0; i < count; i++)); do
      run env "${environment[@]}" "$@" "${flags[@]}" "--process_id=$i"
    done
    exit 0
  fi
  pids=() printers=() codes=() result=0 signals=0 deadline=0
  folder=$(mktemp -d)
  trap clean_up EXIT
  trap 'on_signal INT' INT
  trap 'on_signal TERM' TERM
  trap 'on_signal HUP' HUP
  start_processes "$@"
  supervise_all
  wait "${printers[@]}" 2>/dev/null || true # the last lines
  exit "$result"
}

main "$@"

# shellcheck shell=bash
# What the scripts of this folder share; sourced by them, not a program.

say() {
  printf '%s\n' "$*" >&2
}

# die MESSAGE [CODE]: 2 means, as with the program itself, that trying again cannot help.
die() {
  say "error: $1"
  exit "${2:-2}"
}

# The comment at the top of a script is its manual.
manual() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
}

dry() {
  [[ ${DRY_RUN:-0} == 1 ]]
}

# One command, quoted so that it can be pasted into a shell.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}

# Runs a command, or prints it under DRY_RUN=1.
run() {
  if dry; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

# need_number NAME...: these variables must hold whole numbers.
need_number() {
  local name
  for name in "$@"; do
    [[ ${!name} =~ ^[0-9]+$ ]] || die "$name must be a whole number, not '${!name}'"
  done
}

# value_of FLAG ARGUMENT...: what --FLAG=VALUE or --FLAG VALUE says, the last one if it stands there twice.
value_of() {
  local flag=$1 value="" next=0 argument
  shift
  for argument in "$@"; do
    if ((next)); then
      value=$argument
      next=0
    elif [[ $argument == "--$flag="* || $argument == "-$flag="* ]]; then
      value=${argument#*=}
    elif [[ $argument == "--$flag" || $argument == "-$flag" ]]; then
      next=1
    fi
  done
  printf '%s' "$value"
}

signalled=""
signals=0
child=""
code=0

# Passes a signal on to the child: the first one, and a second Ctrl-C, which to the program means "at once". A second
# SIGTERM is not passed on: schedulers send more than one.
pass_on() {
  if ((signals++ == 0)) || [[ $1 == INT ]]; then
    # shellcheck disable=SC2034 # the scripts read it
    signalled=$1
    [[ -z $child ]] || kill "-$1" "$child" 2>/dev/null || true
  fi
}

# Runs a program, passes signals on to it and waits for its end; sets `code`, and `signalled` if a signal came.
# It has a process group of its own: the terminal's Ctrl-C then reaches it once, through us, instead of twice.
supervise() {
  local seen
  trap 'pass_on INT' INT
  trap 'pass_on TERM' TERM
  trap 'pass_on HUP' HUP # a closed terminal; where it is ignored (nohup), it stays so
  set -m
  "$@" </dev/null &
  child=$!
  set +m
  while :; do # a signal ends `wait` early
    seen=$signals
    code=0
    wait "$child" 2>/dev/null || code=$?
    ((seen != signals)) || break
  done
  kill -KILL -- "-$child" 2>/dev/null || true # what a crash left behind: data workers hold memory and devices
  child=""
  return "$code"
}

#!/usr/bin/env bash
# Trains on Cloud TPU VMs (queued resources), from one machine's shell; needs gcloud, logged in.
#
#     PROJECT=P ZONE=us-west4-a SPOT=1 BUCKET=B launch/tpu_vm.sh run --config=configs/imagenet.py:resnet50
#
#     create              asks for the TPU: it costs money from when it is ACTIVE until it is deleted
#     install             puts this repository on all workers, installs it, mounts the bucket
#     start ARGUMENTS...  starts gaternet_jax.main on all workers, as a systemd service that outlives the connection
#     logs                follows the log of worker 0
#     status              state of the TPU, and of the run on each worker
#     stop                SIGTERM to all workers (they write a checkpoint); waits for their end
#     delete              deletes the TPU
#     run ARGUMENTS...    all of that until the run is finished, then deletes the TPU. A TPU that is preempted, fails or
#                         is lost is deleted and created again, and the run goes on. When `run` itself was ended, the
#                         same command takes up again what it finds.
#
#     PROJECT, ZONE        of Google Cloud (needed)
#     NAME                 of the queued resource and its TPU (default gaternet)
#     ACCELERATOR_TYPE     (default v5litepod-8)
#     RUNTIME_VERSION      (default v2-alpha-tpuv5-lite)
#     SPOT=1               spot: cheaper, may be preempted (default: on demand)
#     BUCKET               a Cloud Storage bucket, mounted at /mnt/gaternet on all workers; needed by `run`. The default
#                          --workdir is then /mnt/gaternet/NAME. Make it with a hierarchical namespace, where a folder
#                          is renamed in one step, as saving a checkpoint needs: gcloud storage buckets create gs://B
#                          --location=REGION --uniform-bucket-level-access --enable-hierarchical-namespace
#     REPOSITORY           git URL to clone on the workers (default: a copy of this repository's REVISION)
#     REVISION             commit, tag or branch (default HEAD)
#     POLL_SECONDS         between looks at the TPU (default 30)
#     WAIT_ACTIVE_SECONDS  how long `run` waits for ACTIVE (default 86400)
#     STOP_SECONDS         for checkpoints, from SIGTERM to SIGKILL (default 600)
#     GRACE_SECONDS        how long `run` lets workers go on when one has failed (default 300)
#     MAX_RESTARTS         of `run`, for whatever reason (default 20)
#     KEEP=1               `run` does not delete the TPU of a finished run
#     DRY_RUN=1            print the commands and run nothing
#
# TPUs of several workers need the ssh key in the agent: ssh-add ~/.ssh/google_compute_engine
# Exit codes of `run`: 0 finished; 2 an error that a restart cannot mend; 1 anything else; 130 or 143 after a signal.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

MOUNT=/mnt/gaternet
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# ---- gcloud ----------------------------------------------------------------------------------------------------------

queued_resources() { # VERB FLAGS...
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$NAME" "--zone=$ZONE" "--project=$PROJECT" "$@"
}

on_workers() { # WORKER (a number, or all) COMMAND
  run gcloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" "--project=$PROJECT" --quiet "--worker=$1" "--command=$2"
}

# ACTIVE, SUSPENDED, ..., ABSENT if there is none, or UNKNOWN if gcloud cannot tell now.
resource_state() {
  local answer line state=UNKNOWN
  if answer=$(queued_resources describe "--format=value(state.state)" 2>&1); then
    while IFS= read -r line; do # gcloud may add notices
      [[ ! $line =~ ^[A-Z_]+$ ]] || state=$line
    done <<<"$answer"
  elif [[ $answer == *NOT_FOUND* || $answer == *"was not found"* ]]; then
    state=ABSENT
  fi
  printf '%s' "$state"
}

# Says what is left after a failure, since it costs money.
announce_remains() {
  local state
  state=$(resource_state)
  [[ $state != ABSENT ]] || return 0
  [[ $state != UNKNOWN ]] || state="gcloud cannot tell its state: it may still be there"
  say "TPU $NAME in $ZONE ($state) is NOT deleted and may cost money. To delete it:"
  say "    $(quoted env "PROJECT=$PROJECT" "ZONE=$ZONE" "NAME=$NAME" "$ROOT/launch/tpu_vm.sh" delete)"
}

fail() { # STAGE MESSAGE [CODE]
  say "error: stage '$1' failed: $2"
  announce_remains
  exit "${3:-1}"
}

# ---- what the workers run --------------------------------------------------------------------------------------------

mount_command() {
  [[ -n $BUCKET ]] || return 0
  # A service of its own, which the run's service names in After=: when the VM is shut down, systemd then ends the run,
  # with its last checkpoint, before the bucket. No metadata cache: a worker must see at once what another has written.
  cat <<END
if ! mountpoint -q $MOUNT; then
  sudo mkdir -p $MOUNT
  sudo chown "\$(id -u):\$(id -g)" $MOUNT
  sudo systemctl stop gaternet-bucket 2>/dev/null || true
  sudo systemctl reset-failed gaternet-bucket 2>/dev/null || true
  sudo systemd-run --quiet --unit=gaternet-bucket --uid="\$(id -u)" --gid="\$(id -g)" \\
    gcsfuse --foreground --implicit-dirs --metadata-cache-ttl-secs=0 $(quoted "$BUCKET") $MOUNT
  for _ in \$(seq 60); do
    if mountpoint -q $MOUNT; then break; fi
    sleep 1
  done
  mountpoint -q $MOUNT || { sudo journalctl --unit=gaternet-bucket --lines=20 --no-pager >&2; exit 1; }
fi
END
}

install_command() {
  echo "set -e"
  if [[ -n $REPOSITORY ]]; then
    echo "rm -rf gaternet-jax"
    echo "git clone --quiet $(quoted "$REPOSITORY") gaternet-jax"
    echo "git -C gaternet-jax checkout --quiet $(quoted "$REVISION")"
  else
    echo "rm -rf gaternet-jax"
    echo "mkdir gaternet-jax"
    echo "tar -xzf gaternet-jax.tar.gz -C gaternet-jax"
  fi
  # The TPU images have Python 3.10, too old for this package: uv brings another, without touching the system's.
  cat <<'END'
test -x ~/.local/bin/uv || curl -LsSf https://astral.sh/uv/install.sh | sh
cd gaternet-jax
~/.local/bin/uv venv --quiet --python 3.12 .venv
~/.local/bin/uv pip install --quiet --python .venv/bin/python -e '.[tpu]'
cd
END
  [[ -n $BUCKET ]] || return 0
  cat <<'END'
if ! command -v gcsfuse >/dev/null; then
  packages=https://packages.cloud.google.com/apt
  key=/usr/share/keyrings/cloud.google.asc
  curl -sSf "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq update
  sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 install gcsfuse
fi
END
  mount_command
}

# A systemd service, because systemd ends it in good order when the VM is shut down (a preemption's notice becomes the
# SIGTERM that makes a checkpoint), and remembers its exit code. KillMode=mixed: SIGTERM to the program alone; its data
# workers must live until the checkpoint. LimitMEMLOCK: services lack the login limits that libtpu relies on.
start_command() {
  local script
  printf -v script '%s\n' 'cd ~/gaternet-jax' 'export PYTHONUNBUFFERED=1' \
    "exec .venv/bin/python -m gaternet_jax.main $(quoted "$@")"
  cat <<END
set -e
if [ "\$(systemctl show gaternet --property=SubState --value)" = running ]; then
  echo "a run is going on here already: stop it first" >&2
  exit 3
fi
$(mount_command)
printf %s $(quoted "$script") > gaternet-run.sh
rm -f gaternet-stopped
touch gaternet.log
sudo systemctl stop gaternet 2>/dev/null || true
sudo systemctl reset-failed gaternet 2>/dev/null || true
sudo systemd-run --quiet --unit=gaternet --remain-after-exit --uid="\$(id -u)" --gid="\$(id -g)" \\
  --property=After=gaternet-bucket.service --property=KillMode=mixed --property=TimeoutStopSec=$STOP_SECONDS \\
  --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 \\
  --property=StandardOutput=append:"\$HOME"/gaternet.log --property=StandardError=append:"\$HOME"/gaternet.log \\
  /bin/bash "\$HOME"/gaternet-run.sh
END
}

# One line per worker: `gaternet-worker HOST STATE`; STATE: running, exited CODE, killed SIGNAL, stopped, or absent.
status_command() {
  cat <<'END'
show() { systemctl show gaternet --property="$1" --value; }
case "$(show LoadState)/$(show SubState)" in
  */running | */start* | */stop* | */final*) state=running ;;
  not-found/*) state=absent ;;
  *)
    if [ "$(show ExecMainCode)" = 1 ]; then state=exited; else state=killed; fi # 1: CLD_EXITED
    state="$state $(show ExecMainStatus)"
    ;;
esac
if [ -e gaternet-stopped ] && [ "$state" != running ]; then state=stopped; fi
echo "gaternet-worker $(hostname) $state"
END
}

STOP_COMMAND='touch gaternet-stopped; sudo systemctl stop gaternet'

# ---- the stages ------------------------------------------------------------------------------------------------------

create() {
  local spot=()
  [[ $SPOT != 1 ]] || spot=(--spot)
  queued_resources create "--node-id=$NAME" "--accelerator-type=$ACCELERATOR_TYPE" \
    "--runtime-version=$RUNTIME_VERSION" ${spot[@]+"${spot[@]}"}
}

delete() {
  queued_resources delete --force --quiet
}

copy_repository() {
  local archive result=0
  if dry; then
    archive=gaternet-jax.tar.gz
  else
    [[ -z $(git -C "$ROOT" status --porcelain --untracked-files=no) ]] ||
      say "note: changes that are not committed do not go to the TPU; it gets $REVISION"
    archive=$(mktemp)
  fi
  { run git -C "$ROOT" archive --format=tar.gz "--output=$archive" "$REVISION" &&
    run gcloud compute tpus tpu-vm scp "$archive" "$NAME:gaternet-jax.tar.gz" \
      "--zone=$ZONE" "--project=$PROJECT" --quiet --worker=all; } || result=$?
  dry || rm -f "$archive"
  return "$result"
}

install() {
  if [[ -z $REPOSITORY ]]; then
    copy_repository || return
  fi
  on_workers all "$(install_command)"
}

start() {
  on_workers all "$(start_command "$@")"
}

# Puts the default --workdir into `arguments`, and sets `workdir`.
find_workdir() {
  arguments=("$@")
  workdir=$(value_of workdir "$@")
  [[ -n $(value_of config "$@") ]] || die "say what to train: --config=configs/X.py"
  if [[ -z $workdir ]]; then
    [[ -n $BUCKET ]] || die "say BUCKET=NAME, or --workdir=DIR on storage that all workers and a new TPU see"
    workdir=$MOUNT/$NAME
    arguments+=("--workdir=$workdir")
  fi
}

# ---- run -------------------------------------------------------------------------------------------------------------

# Asked of the bucket, not of the TPU, which may be gone.
finished() {
  gcloud storage cat "gs://$BUCKET/${workdir#"$MOUNT"/}/finished" 2>/dev/null
}

# Waits for ACTIVE; 1 if the TPU came to nothing and a new one is needed.
wait_active() {
  local state before="" started=$SECONDS
  while :; do
    state=$(resource_state)
    [[ $state == "$before" ]] || say "TPU $NAME: $state"
    before=$state
    case $state in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | ABSENT) return 1 ;;
    esac
    ((SECONDS - started < WAIT_ACTIVE_SECONDS)) ||
      fail "wait" "not ACTIVE after $WAIT_ACTIVE_SECONDS s but $state; try another ZONE or SPOT=1, or go on waiting"
    sleep "$POLL_SECONDS"
  done
}

# Does a stage on the workers; 1 if it failed because the TPU is gone. If the TPU is there, the failure is final.
stage_on_workers() { # STAGE ARGUMENTS...
  local state
  say "stage '$1'"
  if "$@"; then
    return 0
  fi
  state=$(resource_state)
  [[ $state == ACTIVE || $state == UNKNOWN ]] || return 1
  fail "$1" "see the messages above"
}

# From whatever is there to a started run; 1 if the TPU was lost on the way.
bring_up() {
  local state
  state=$(resource_state)
  case $state in
    FAILED | SUSPENDING | SUSPENDED | DELETING)
      say "TPU $NAME is $state: deleting it"
      delete || fail delete "see the messages above"
      state=ABSENT
      ;;
  esac
  if [[ $state == ABSENT ]]; then
    say "stage 'create'"
    create || fail create "see the messages above (quota? no $ACCELERATOR_TYPE in $ZONE?)"
    installed=0
    offset=1
  fi
  wait_active || return 1
  if on_workers all "$(status_command)" 2>/dev/null | grep -q '^gaternet-worker .* running$'; then
    say "a run is going on there already: following it"
    return 0
  fi
  if ((!installed)); then
    stage_on_workers install || return 1
    installed=1
  fi
  stage_on_workers start "${arguments[@]}"
}

show_new_log() {
  local LC_ALL=C new # bytes, not characters
  new=$(on_workers 0 "tail -c +$offset gaternet.log | head -c 1000000" 2>/dev/null && printf x) || return 0
  new=${new%x}
  printf '%s' "$new"
  offset=$((offset + ${#new}))
}

# Follows the run until it has ended; sets `outcome`: finished, stopped, lost, crashed, or refused (exit code 2).
follow() {
  local state report ended_with_2=0 unreachable=0 first_failure=""
  while :; do
    sleep "$POLL_SECONDS"
    state=$(resource_state)
    if [[ $state == UNKNOWN ]]; then
      say "gcloud cannot tell the state of $NAME; asking again"
      continue
    elif [[ $state != ACTIVE ]]; then
      say "TPU $NAME is $state"
      outcome=lost
      ! finished >/dev/null || outcome=finished
      return
    fi
    if ! report=$(on_workers all "$(status_command)" 2>/dev/null); then
      unreachable=$((unreachable + 1))
      say "the workers of $NAME do not all answer ($unreachable of 5 times)"
      outcome=lost
      ((unreachable < 5)) || return 0
      continue
    fi
    unreachable=0
    show_new_log
    ! grep -q '^gaternet-worker .* exited 2$' <<<"$report" || ended_with_2=1
    if grep -q '^gaternet-worker .* running$' <<<"$report"; then
      grep -q '^gaternet-worker .* \(exited [1-9].*\|killed .*\|absent\)$' <<<"$report" || continue
      first_failure=${first_failure:-$SECONDS}
      ((SECONDS - first_failure >= GRACE_SECONDS)) || continue
      say "one worker has failed and others do not end: stopping them"
      on_workers all "sudo systemctl stop gaternet" || true
      continue
    fi
    if finished >/dev/null; then
      outcome=finished
    elif ((ended_with_2)); then
      outcome=refused
    elif grep -q ' stopped$' <<<"$report"; then
      outcome=stopped
    else
      grep '^gaternet-worker ' <<<"$report" >&2 || true
      outcome=crashed # or ended early with 0: a VM about to go
    fi
    return
  done
}

run_dry() {
  create
  queued_resources describe "--format=value(state.state)"
  install
  start "${arguments[@]}"
  on_workers all "$(status_command)"
  run gcloud storage cat "gs://$BUCKET/${workdir#"$MOUNT"/}/finished"
  [[ $KEEP == 1 ]] || delete
}

# shellcheck disable=SC2329 # called by a trap
leave() {
  say "ended by SIG$1; a started run goes on. The same command takes it up again."
  announce_remains
  exit "$2"
}

run_all() {
  local installed=0 offset=1 restarts=0 outcome step
  [[ -n $BUCKET ]] || die "run needs BUCKET: the disk of a TPU is gone when it is preempted"
  find_workdir "$@"
  [[ $workdir == "$MOUNT"/* ]] || die "run needs --workdir below $MOUNT (the bucket), not $workdir"
  if dry; then
    run_dry
    return
  fi
  if step=$(finished); then
    say "the run is finished already (step $step); to train on, delete this first:"
    say "    gs://$BUCKET/${workdir#"$MOUNT"/}/finished"
    announce_remains
    return
  fi
  trap 'leave INT 130' INT
  trap 'leave TERM 143' TERM
  while :; do
    outcome=lost
    ! bring_up || follow
    case $outcome in
      finished) break ;;
      stopped)
        say "stopped on purpose (tpu_vm.sh stop); the same command goes on from the checkpoint"
        announce_remains
        exit 1
        ;;
      refused) fail run "the program ended with 2 (its reason is above): a restart cannot mend it" 2 ;;
    esac
    ((restarts < MAX_RESTARTS)) || fail run "$outcome again after $restarts restart(s): giving up"
    restarts=$((restarts + 1))
    say "$outcome: restart $restarts of $MAX_RESTARTS"
    if [[ $outcome == lost && $(resource_state) != ABSENT ]]; then
      delete || fail delete "see the messages above"
    fi
    sleep "$POLL_SECONDS"
  done
  say "finished (step $(finished)): gs://$BUCKET/${workdir#"$MOUNT"/}"
  if [[ $KEEP == 1 ]]; then
    announce_remains
  else
    delete || fail delete "the run is finished, but its TPU is still there"
  fi
}

# ---- commands --------------------------------------------------------------------------------------------------------

configure() {
  PROJECT=${PROJECT:-} ZONE=${ZONE:-} NAME=${NAME:-gaternet} SPOT=${SPOT:-0} KEEP=${KEEP:-0}
  ACCELERATOR_TYPE=${ACCELERATOR_TYPE:-v5litepod-8} RUNTIME_VERSION=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}
  BUCKET=${BUCKET:-} REPOSITORY=${REPOSITORY:-} REVISION=${REVISION:-HEAD}
  POLL_SECONDS=${POLL_SECONDS:-30} WAIT_ACTIVE_SECONDS=${WAIT_ACTIVE_SECONDS:-86400} MAX_RESTARTS=${MAX_RESTARTS:-20}
  STOP_SECONDS=${STOP_SECONDS:-600} GRACE_SECONDS=${GRACE_SECONDS:-300}
  BUCKET=${BUCKET#gs://} BUCKET=${BUCKET%/}
  [[ -n $PROJECT ]] || die "say PROJECT=... (gcloud projects list)"
  [[ -n $ZONE ]] || die "say ZONE=... (gcloud compute tpus locations list)"
  need_number POLL_SECONDS WAIT_ACTIVE_SECONDS MAX_RESTARTS STOP_SECONDS GRACE_SECONDS
  dry || command -v gcloud >/dev/null || die "gcloud is not there: https://cloud.google.com/sdk/docs/install"
}

main() {
  local command=${1:-} arguments workdir
  case $command in
    --help | -h)
      manual
      exit 0
      ;;
    create | install | start | logs | status | stop | delete | run) shift ;;
    *) die "say what to do: create, install, start, logs, status, stop, delete or run (see --help)" ;;
  esac
  configure
  case $command in
    create)
      create || fail create "see the messages above (quota? no $ACCELERATOR_TYPE in $ZONE?)"
      say "asked for TPU $NAME; it costs money from when it is ACTIVE (tpu_vm.sh status) until tpu_vm.sh delete"
      ;;
    install) install || fail install "see the messages above" ;;
    start)
      find_workdir "$@"
      start "${arguments[@]}" || fail start "see the messages above"
      ;;
    logs) on_workers 0 "tail -n 100 -F gaternet.log" ;;
    status)
      queued_resources describe "--format=value(state.state)"
      on_workers all "$(status_command)"
      ;;
    stop)
      on_workers all "$STOP_COMMAND" || fail stop "see the messages above"
      dry || announce_remains
      ;;
    delete) delete ;;
    run) run_all "$@" ;;
  esac
}

main "$@"

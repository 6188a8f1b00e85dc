import re
import signal
import subprocess

import pytest

from tests.launch.stubs import ROOT, Stubs, wait_for

WHERE = ["--zone=us-west4-a", "--project=my-project"]
SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "gaternet", *WHERE, "--quiet"]
CONFIG = "--config=configs/digits.py"

STATE, CREATE, DELETE = "queued-resources describe", "queued-resources create", "queued-resources delete"
STATUS, START, INSTALL = "--command=show()", "systemd-run --quiet --unit=gaternet ", "uv venv"
LOG, FINISHED = "tail -c", "storage cat"
GONE = {"code": 1, "err": "ERROR: (gcloud...describe) NOT_FOUND: Resource 'projects/p/...' was not found.\n"}
NOT_FINISHED = {"code": 1}
FAILS = {"code": 1}


def workers(*states):
    return "".join(f"gaternet-worker host-{i} {state}\n" for i, state in enumerate(states))


NO_RUN, RUNNING, ENDED = workers("absent", "absent"), workers("running", "running"), workers("exited 0", "exited 0")


@pytest.fixture
def stubs(tmp_path):
    stubs = Stubs(tmp_path, "gcloud")
    stubs.environment |= {
        "PROJECT": "my-project",
        "ZONE": "us-west4-a",
        "BUCKET": "my-bucket",
        "REPOSITORY": "https://example.com/gaternet-jax.git",
        "POLL_SECONDS": "0",
    }
    return stubs


def stages(stubs):
    """What was done, in order, without the looks at the state."""
    names = {CREATE: "create", DELETE: "delete", INSTALL: "install", START: "start", "systemctl stop gaternet": "stop"}
    lines = [" ".join(call) for call in stubs.calls()]
    found = [next((name for part, name in names.items() if part in line), None) for line in lines]
    return [name for name in found if name]


def announces(done):
    return "is NOT deleted and may cost money" in done.stderr and done.stderr.rstrip().endswith("tpu_vm.sh delete")


@pytest.mark.parametrize(("spot", "flags"), [("", []), ("1", ["--spot"])])
def test_create(stubs, spot, flags):
    assert stubs.run("tpu_vm.sh", "create", SPOT=spot).returncode == 0
    expected = [*["gcloud", "compute", "tpus", "queued-resources", "create", "gaternet"], *WHERE, "--node-id=gaternet"]
    expected += ["--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", *flags]
    assert stubs.calls() == [expected]


def test_every_setting_reaches_create(stubs):
    settings = {"PROJECT": "p", "ZONE": "z", "NAME": "n", "ACCELERATOR_TYPE": "v6e-8", "RUNTIME_VERSION": "r"}
    stubs.run("tpu_vm.sh", "create", **settings)
    expected = "gcloud compute tpus queued-resources create n --zone=z --project=p --node-id=n --accelerator-type=v6e-8"
    assert stubs.calls() == [[*expected.split(), "--runtime-version=r"]]


def test_delete(stubs):
    stubs.run("tpu_vm.sh", "delete")
    assert stubs.calls() == [
        ["gcloud", "compute", "tpus", "queued-resources", "delete", "gaternet", *WHERE, "--force", "--quiet"]
    ]


def test_install_clones_a_revision_on_all_workers(stubs):
    assert stubs.run("tpu_vm.sh", "install", REVISION="v1.0").returncode == 0
    [call] = stubs.calls()
    assert call[:-1] == [*SSH, "--worker=all"]
    for part in ["git clone --quiet https://example.com/gaternet-jax.git gaternet-jax", "checkout --quiet v1.0"]:
        assert part in call[-1]
    assert "-e '.[tpu]'" in call[-1]
    assert re.search(r"gcsfuse .* my-bucket /mnt/gaternet\n", call[-1])


def test_install_copies_this_repository(stubs):
    # An archive of the whole repository would only be slow here: a stub git writes a small one.
    stubs.add("git", '#!/bin/bash\nfor a; do case $a in --output=*) echo archive > "${a#--output=}" ;; esac; done\n')
    assert stubs.run("tpu_vm.sh", "install", REPOSITORY="", BUCKET="").returncode == 0
    copy, install = stubs.calls()
    assert copy[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "scp"]
    assert copy[6:] == ["gaternet:gaternet-jax.tar.gz", *WHERE, "--quiet", "--worker=all"]
    assert "tar -xzf gaternet-jax.tar.gz -C gaternet-jax" in install[-1]
    assert "gcsfuse" not in install[-1]


def test_a_revision_that_does_not_exist(stubs):
    stubs.answer({STATE: [GONE]})
    done = stubs.run("tpu_vm.sh", "install", REPOSITORY="", REVISION="no-such-revision")
    assert done.returncode == 1
    assert "stage 'install' failed" in done.stderr
    assert not any("scp" in call for call in stubs.calls())


# ---- the commands that the workers run, run here ---------------------------------------------------------------------


def on_worker(stubs, part):
    """Runs the command sent to the workers in a shell, in a home of its own."""
    [command] = [call[-1].removeprefix("--command=") for call in stubs.calls() if part in " ".join(call)]
    return subprocess.run(
        ["bash", "-c", command], env=stubs.environment, cwd=stubs.folder, capture_output=True, text=True, timeout=60
    )


def test_start_runs_the_program_as_a_service(stubs):
    assert stubs.run("tpu_vm.sh", "start", CONFIG, "--config.x=a 'b' $HOME").returncode == 0
    assert stubs.calls()[0][:-1] == [*SSH, "--worker=all"]
    for program in ("systemctl", "mountpoint"):
        stubs.add(program, "#!/bin/bash\n")
    stubs.add("sudo", '#!/bin/bash\nprintf "%s\\n" "$@" > last\n')
    (stubs.folder / "gaternet-stopped").touch()  # by an earlier `stop`
    worker = on_worker(stubs, START)
    assert worker.returncode == 0, worker.stderr
    assert not (stubs.folder / "gaternet-stopped").exists()
    service = (stubs.folder / "last").read_text().splitlines()
    assert service[:4] == ["systemd-run", "--quiet", "--unit=gaternet", "--remain-after-exit"]
    assert "--property=KillMode=mixed" in service
    assert f"--property=StandardOutput=append:{stubs.folder}/gaternet.log" in service
    assert service[-2:] == ["/bin/bash", f"{stubs.folder}/gaternet-run.sh"]

    python = stubs.folder / "gaternet-jax/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    program = subprocess.run(service[-2:], env=stubs.environment, capture_output=True, text=True, check=True)
    assert program.stdout.splitlines() == [
        *["-m", "gaternet_jax.main", CONFIG, "--config.x=a 'b' $HOME", "--workdir=/mnt/gaternet/gaternet"]
    ]


def test_start_refuses_while_a_run_is_going_on(stubs):
    stubs.run("tpu_vm.sh", "start", CONFIG)
    stubs.add("systemctl", "#!/bin/bash\necho running\n")
    stubs.add("sudo", "#!/bin/bash\ntouch was-started\n")
    worker = on_worker(stubs, START)
    assert worker.returncode == 3
    assert "stop it first" in worker.stderr
    assert not (stubs.folder / "was-started").exists()


def test_start_fails_when_the_bucket_cannot_be_mounted(stubs):
    stubs.run("tpu_vm.sh", "start", CONFIG)
    for program, text in {"systemctl": "", "mountpoint": "exit 1", "sleep": ""}.items():
        stubs.add(program, f"#!/bin/bash\n{text}\n")
    stubs.add("sudo", '#!/bin/bash\necho "$*" >> sudo\n')
    assert on_worker(stubs, START).returncode == 1
    assert "--unit=gaternet " not in (stubs.folder / "sudo").read_text()


@pytest.mark.parametrize(
    ("load", "sub", "code", "status", "expected"),
    [
        ("loaded", "running", 0, 0, "running"),
        ("loaded", "stop-sigterm", 0, 0, "running"),
        ("loaded", "exited", 1, 0, "exited 0"),
        ("loaded", "failed", 1, 2, "exited 2"),
        ("loaded", "failed", 2, 2, "killed 2"),  # by SIGINT: not the program's exit code 2
        ("not-found", "dead", 0, 0, "absent"),
    ],
)
def test_status_of_a_worker(stubs, load, sub, code, status, expected):
    stubs.run("tpu_vm.sh", "status")
    answers = {"LoadState": load, "SubState": sub, "ExecMainCode": code, "ExecMainStatus": status}
    cases = "".join(f"*={name}\\ *) echo {value} ;;\n" for name, value in answers.items())
    stubs.add("systemctl", f'#!/bin/bash\ncase "$* " in\n{cases}esac\n')
    assert re.fullmatch(f"gaternet-worker \\S+ {expected}\n", on_worker(stubs, STATUS).stdout)
    (stubs.folder / "gaternet-stopped").touch()
    expected = "running" if expected == "running" else "stopped"
    assert re.fullmatch(f"gaternet-worker \\S+ {expected}\n", on_worker(stubs, STATUS).stdout)


def test_stop_reaches_all_workers_and_says_that_the_tpu_still_costs_money(stubs):
    stubs.answer({STATE: ["ACTIVE\n"]})
    done = stubs.run("tpu_vm.sh", "stop")
    assert stubs.calls()[0] == [
        *[*SSH, "--worker=all", "--command=touch gaternet-stopped; sudo systemctl stop gaternet"]
    ]
    assert announces(done)


def test_logs_follow_worker_0(stubs):
    stubs.run("tpu_vm.sh", "logs")
    assert stubs.calls() == [[*SSH, "--worker=0", "--command=tail -n 100 -F gaternet.log"]]


# ---- run -------------------------------------------------------------------------------------------------------------


def test_run_does_everything_until_the_run_is_finished(stubs):
    stubs.answer(
        {
            STATE: [GONE, "WAITING_FOR_RESOURCES\n", "PROVISIONING\n", "ACTIVE\n"],
            STATUS: [NO_RUN, RUNNING, ENDED],
            LOG: ["step 1\n", "step 2 done\n"],
            FINISHED: [NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 0, done.stderr
    assert stages(stubs) == ["create", "install", "start", "delete"]
    assert done.stdout == "step 1\nstep 2 done\n"
    assert "finished (step 500): gs://my-bucket/gaternet" in done.stderr
    assert ["gcloud", "storage", "cat", "gs://my-bucket/gaternet/finished"] in stubs.calls()
    logs = [call[-1] for call in stubs.calls() if LOG in call[-1]]
    assert [re.search(r"\+\d+", log)[0] for log in logs] == ["+1", "+8"]  # only what is new


def test_run_keeps_the_tpu_if_asked(stubs):
    stubs.answer({STATE: ["ACTIVE\n"], STATUS: [NO_RUN, ENDED], FINISHED: [NOT_FINISHED, "500"]})
    done = stubs.run("tpu_vm.sh", "run", CONFIG, KEEP="1")
    assert done.returncode == 0
    assert stages(stubs) == ["install", "start"]
    assert announces(done)


@pytest.mark.parametrize("lost_as", ["SUSPENDING\n", "SUSPENDED\n", "FAILED\n"])
def test_run_goes_on_after_preemption(stubs, lost_as):
    stubs.answer(
        {
            STATE: [GONE, "ACTIVE\n", "ACTIVE\n", lost_as, lost_as, GONE, "ACTIVE\n"],
            STATUS: [NO_RUN, RUNNING, NO_RUN, RUNNING, ENDED],
            FINISHED: [NOT_FINISHED, NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG, SPOT="1")
    assert done.returncode == 0, done.stderr
    assert stages(stubs) == ["create", "install", "start", "delete", "create", "install", "start", "delete"]
    assert all("--spot" in call for call in stubs.calls() if "create" in call)


def test_run_creates_again_what_failed_before_it_was_active(stubs):
    stubs.answer(
        {
            STATE: [GONE, "FAILED\n", "FAILED\n", GONE, "ACTIVE\n"],
            STATUS: [NO_RUN, ENDED],
            FINISHED: [NOT_FINISHED, "500"],
        }
    )
    assert stubs.run("tpu_vm.sh", "run", CONFIG).returncode == 0
    assert stages(stubs) == ["create", "delete", "create", "install", "start", "delete"]


def test_run_creates_again_when_the_workers_no_longer_answer(stubs):
    stubs.answer(
        {
            STATE: [GONE] + ["ACTIVE\n"] * 7 + [GONE, "ACTIVE\n"],
            STATUS: [NO_RUN] + [FAILS] * 5 + [NO_RUN, ENDED],
            FINISHED: [NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 0, done.stderr
    assert "5 of 5 times" in done.stderr
    assert stages(stubs).count("create") == 2


def test_run_goes_on_asking_when_gcloud_itself_fails(stubs):
    unknown = {"code": 1, "err": "ERROR: network is unreachable\n"}
    stubs.answer(
        {
            STATE: ["ACTIVE\n", "ACTIVE\n"] + [unknown] * 8 + ["ACTIVE\n"],
            STATUS: [NO_RUN, ENDED],
            FINISHED: [NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 0
    assert done.stderr.count("asking again") == 8
    assert stages(stubs) == ["install", "start", "delete"]  # nothing was deleted or created on a guess


def test_run_starts_again_after_a_crash_on_the_same_tpu(stubs):
    stubs.answer(
        {
            STATE: [GONE, "ACTIVE\n"],
            STATUS: [NO_RUN, workers("exited 1", "killed 9"), NO_RUN, ENDED],
            FINISHED: [NOT_FINISHED, NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 0, done.stderr
    assert stages(stubs) == ["create", "install", "start", "start", "delete"]


def test_run_does_not_start_again_after_a_mistake(stubs):
    stubs.answer(
        {
            STATE: [GONE, "ACTIVE\n"],
            STATUS: [NO_RUN, workers("exited 2", "running"), workers("exited 2", "exited 1")],
            LOG: ["error: no such config\n", ""],
            FINISHED: [NOT_FINISHED],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 2
    assert stages(stubs) == ["create", "install", "start"]
    assert "error: no such config" in done.stdout
    assert "stage 'run' failed" in done.stderr
    assert announces(done)


def test_run_gives_up_after_so_many_restarts(stubs):
    stubs.answer({STATE: ["ACTIVE\n"], STATUS: [workers("exited 1", "exited 1")], FINISHED: [NOT_FINISHED]})
    done = stubs.run("tpu_vm.sh", "run", CONFIG, MAX_RESTARTS="2")
    assert done.returncode == 1
    assert stages(stubs) == ["install", "start", "start", "start"]
    assert "giving up" in done.stderr
    assert announces(done)


def test_run_stops_workers_that_hang_after_another_has_failed(stubs):
    half = workers("killed 9", "running")
    stubs.answer(
        {
            STATE: ["ACTIVE\n"],
            STATUS: [NO_RUN, half, workers("killed 9", "absent"), NO_RUN, ENDED],
            FINISHED: [NOT_FINISHED, NOT_FINISHED, "500"],
        }
    )
    done = stubs.run("tpu_vm.sh", "run", CONFIG, GRACE_SECONDS="0")
    assert done.returncode == 0, done.stderr
    sent = [call[-1].removeprefix("--command=") for call in stubs.calls()]
    assert sent.count("sudo systemctl stop gaternet") == 1


def test_run_ends_when_the_run_was_stopped_on_purpose(stubs):
    stubs.answer({STATE: ["ACTIVE\n"], STATUS: [NO_RUN, workers("stopped", "stopped")], FINISHED: [NOT_FINISHED]})
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 1
    assert "stopped on purpose" in done.stderr
    assert stages(stubs) == ["install", "start"]
    assert announces(done)


def test_run_takes_up_a_run_that_is_going_on(stubs):
    stubs.answer({STATE: ["ACTIVE\n"], STATUS: [RUNNING, ENDED], FINISHED: [NOT_FINISHED, "500"]})
    assert stubs.run("tpu_vm.sh", "run", CONFIG).returncode == 0
    assert stages(stubs) == ["delete"]


def test_run_does_nothing_when_the_run_is_finished(stubs):
    stubs.answer({STATE: [GONE], FINISHED: ["500"]})
    done = stubs.run("tpu_vm.sh", "run", CONFIG)
    assert done.returncode == 0
    assert "finished already (step 500)" in done.stderr
    assert stages(stubs) == []


@pytest.mark.parametrize(
    ("stage", "answers", "done_before"),
    [
        ("create", {CREATE: [FAILS], STATE: [GONE, "FAILED\n"]}, ["create"]),
        ("wait", {STATE: [GONE, "WAITING_FOR_RESOURCES\n"]}, ["create"]),
        ("install", {INSTALL: [FAILS], STATE: [GONE, "ACTIVE\n"]}, ["create", "install"]),
        ("start", {START: [FAILS], STATE: [GONE, "ACTIVE\n"]}, ["create", "install", "start"]),
        ("delete", {DELETE: [FAILS], STATE: ["SUSPENDED\n"]}, ["delete"]),
    ],
)
def test_a_stage_that_fails_is_named_and_what_is_left_announced(stubs, stage, answers, done_before):
    stubs.answer({**answers, STATUS: [NO_RUN], FINISHED: [NOT_FINISHED]})
    done = stubs.run("tpu_vm.sh", "run", CONFIG, WAIT_ACTIVE_SECONDS="0")
    assert done.returncode == 1
    assert f"error: stage '{stage}' failed" in done.stderr
    assert stages(stubs) == done_before
    assert announces(done)


def test_nothing_is_announced_where_nothing_is_left(stubs):
    stubs.answer({CREATE: [FAILS], STATE: [GONE]})
    done = stubs.run("tpu_vm.sh", "create")
    assert "stage 'create' failed" in done.stderr
    assert "cost money" not in done.stderr


def test_what_may_be_left_is_announced_when_gcloud_cannot_tell(stubs):
    stubs.answer({CREATE: [FAILS], STATE: [{"code": 1, "err": "ERROR: command not found\n"}]})
    done = stubs.run("tpu_vm.sh", "create")
    assert "it may still be there" in done.stderr
    assert announces(done)


def test_control_c_leaves_the_run_going_and_says_so(stubs):
    stubs.answer({STATE: ["ACTIVE\n"], STATUS: [RUNNING], FINISHED: [NOT_FINISHED]})
    run = stubs.popen("tpu_vm.sh", "run", CONFIG, POLL_SECONDS="1")
    wait_for(lambda: any(STATUS in call[-1] for call in stubs.calls()))
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate(timeout=10)
    assert run.returncode == 130
    assert "a started run goes on" in output
    assert "is NOT deleted" in output
    assert stages(stubs) == []


# ---- mistakes, dry run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "say what to do"),
        (["destroy"], {}, "say what to do"),
        (["create"], {"PROJECT": ""}, "say PROJECT="),
        (["create"], {"ZONE": ""}, "say ZONE="),
        (["run", CONFIG], {"BUCKET": ""}, "run needs BUCKET"),
        (["run", CONFIG, "--workdir=/tmp/run"], {}, "below /mnt/gaternet"),
        (["run"], {}, "say what to train"),
        (["start", CONFIG], {"BUCKET": ""}, "say BUCKET="),
        (["run", CONFIG], {"POLL_SECONDS": "often"}, "whole number"),
    ],
)
def test_mistakes_cost_nothing(stubs, arguments, environment, message):
    done = stubs.run("tpu_vm.sh", *arguments, **environment)
    assert done.returncode == 2
    assert message in done.stderr
    assert stubs.calls() == []


def test_without_gcloud(stubs):
    stubs.hide_system()
    (stubs.bin / "gcloud").unlink()
    done = stubs.run("tpu_vm.sh", "create")
    assert done.returncode == 2
    assert "gcloud is not there" in done.stderr


@pytest.mark.parametrize("command", ["create", "install", "start", "logs", "status", "stop", "delete", "run"])
@pytest.mark.parametrize("repository", ["", "https://example.com/x.git"])
def test_dry_run_prints_commands_and_runs_none(stubs, command, repository):
    stubs.add("git", '#!/bin/bash\necho "git $*" >> ran\n')
    done = stubs.run("tpu_vm.sh", command, CONFIG, DRY_RUN="1", REPOSITORY=repository)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith(("gcloud ", f"git -C {ROOT}")) for line in lines)
    assert stubs.calls() == []
    assert not (stubs.folder / "ran").exists()
    if command == "run":
        parts = (CREATE, STATE, "scp", "archive", INSTALL, START, "storage", DELETE, "show")
        kinds = [next(part for part in parts if part in line) for line in lines]
        copy = [] if repository else ["archive", "scp"]
        assert kinds == [CREATE, STATE, *copy, INSTALL, START, "show", "storage", DELETE]

"""launch/tpu_vm.sh: each command alone, mistakes, and DRY_RUN."""

import re
import subprocess

import pytest

from tests.launch.stubs import ROOT
from tests.launch.tpu import (
    CONFIG,
    CREATE,
    DELETE,
    GONE,
    INSTALL,
    SSH,
    START,
    STATE,
    STATUS,
    WHERE,
    announces,
    tpu_stubs,
)


@pytest.fixture
def stubs(tmp_path):
    return tpu_stubs(tmp_path)


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

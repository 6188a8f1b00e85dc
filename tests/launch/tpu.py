"""What the tests of launch/tpu_vm.sh ask of gcloud, and what gcloud answers."""

from tests.launch.stubs import Stubs

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


def tpu_stubs(tmp_path):
    """A gcloud that answers as told, and the settings of a TPU."""
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

import subprocess
import time

import pytest
import yaml

from tests.launch.stubs import LAUNCH, ROOT, STUB, Stubs, press_control_c, wait_for

JOBSET = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
[JOB] = [replicated["template"]["spec"] for replicated in JOBSET["spec"]["replicatedJobs"]]
POD = JOB["template"]["spec"]
[CONTAINER] = POD["containers"]


@pytest.fixture
def stubs(tmp_path):
    stubs = Stubs(tmp_path)
    stubs.add("python", STUB)
    stubs.environment |= {"SETTLE_SECONDS": "0"}
    return stubs


def test_one_pod_for_each_host_of_the_slice():
    assert JOBSET["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    rows, columns = map(int, POD["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = CONTAINER["resources"]["limits"]["google.com/tpu"]
    assert CONTAINER["resources"]["requests"]["google.com/tpu"] == chips
    assert JOB["parallelism"] == JOB["completions"] == rows * columns / chips
    assert JOB["completionMode"] == "Indexed"


def test_restarts_all_pods_together_but_not_after_a_mistake():
    assert JOB["backoffLimit"] == 0
    assert POD["restartPolicy"] == "Never"
    assert POD["terminationGracePeriodSeconds"] >= 60
    [rule] = JOB["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": CONTAINER["name"], "operator": "In", "values": [2]}
    policy = JOBSET["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 0
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]


def test_the_workdir_is_in_the_bucket():
    [volume] = POD["volumes"]
    [mount] = CONTAINER["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert JOB["template"]["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    [workdir] = [part.partition("=")[2] for part in CONTAINER["command"] if part.startswith("--workdir=")]
    assert workdir.startswith(mount["mountPath"] + "/")


def test_the_command_is_in_the_repository():
    assert (ROOT / CONTAINER["command"][0]).stat().st_mode & 0o111
    [config] = [part.partition("=")[2] for part in CONTAINER["command"] if part.startswith("--config=")]
    assert (ROOT / config.partition(":")[0]).exists()


@pytest.mark.parametrize(
    ("code", "finished", "expected"), [(0, True, 0), (0, False, 1), (1, True, 1), (2, False, 2), (139, False, 139)]
)
def test_exit_code_of_a_pod(stubs, code, finished, expected):
    stubs.answer({"gaternet_jax.main": [{"code": code}]})
    if finished:
        (stubs.folder / "finished").touch()
    assert stubs.run("pod.sh", "--config=x", f"--workdir={stubs.folder}").returncode == expected
    assert stubs.calls() == [["python", "-m", "gaternet_jax.main", "--config=x", f"--workdir={stubs.folder}"]]


def test_a_pod_waits_for_the_file_that_another_host_writes(stubs):
    pod = stubs.popen("pod.sh", "--workdir=.", SETTLE_SECONDS="10")
    wait_for(stubs.calls)
    time.sleep(0.3)
    assert pod.poll() is None
    (stubs.folder / "finished").touch()
    pod.communicate(timeout=10)
    assert pod.returncode == 0


@pytest.mark.parametrize("how", ["SIGTERM", "control-c"])
def test_a_pod_that_ended_early_asks_for_a_restart(stubs, how):
    stubs.add(
        "python",
        "#!/bin/bash\ntrap 'echo signal; stop=1' INT TERM\ntouch started\nuntil [ $stop ]; do sleep 0.05; done\n",
    )
    pod = stubs.popen("pod.sh", "--workdir=.", SETTLE_SECONDS="60")
    wait_for((stubs.folder / "started").exists)
    if how == "SIGTERM":
        pod.terminate()
    else:
        press_control_c(pod)
    output, _ = pod.communicate(timeout=10)
    assert output.count("signal\n") == 1
    assert pod.returncode == 1


def test_a_pod_needs_a_workdir(stubs):
    done = stubs.run("pod.sh", "--config=x")
    assert done.returncode == 2
    assert "--workdir=DIR" in done.stderr
    assert stubs.calls() == []


def test_yaml_has_no_tabs_and_ends_with_a_line_break():
    text = (LAUNCH / "gke.yaml").read_text()
    assert "\t" not in text
    assert text.endswith("\n")
    assert subprocess.run(["bash", "-n", LAUNCH / "pod.sh"]).returncode == 0

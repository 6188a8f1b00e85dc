import pytest

from gaternet_jax.errors import UserError
from gaternet_jax.training import starts
from gaternet_jax.training.starts import StartRecord, load_starts


def test_starts_of_a_run_add_up(tmp_path, monkeypatch):
    clock = iter([0.0, 5.0, 9.04, 100.0, 107.0])
    monkeypatch.setattr(starts.time, "perf_counter", lambda: next(clock))
    first = StartRecord(tmp_path, 30.0)
    assert load_starts(tmp_path) == [], "nothing is kept yet of what it does"
    first.saved(10)
    first.saved(20)
    StartRecord(tmp_path, 40.0).saved(25)
    found = load_starts(tmp_path)
    assert [(start["step"], start["seconds"], start["epochs"]) for start in found] == [(20, 9.0, 30.0), (25, 7.0, 40.0)]


def test_a_start_tells_its_code_and_machine(tmp_path, use_devices):
    use_devices(2)
    StartRecord(tmp_path, 1.0).saved(1)
    (start,) = load_starts(tmp_path)
    assert (start["devices"], start["processes"]) == (2, 1)
    assert start["device"].startswith("CPU (") and start["cores"] >= 1
    assert set(start["versions"]) == {"python", "jax", "jaxlib", "flax"}


def test_the_commit_of_a_checkout_and_of_a_copy(tmp_path, monkeypatch):
    monkeypatch.delenv(starts.COMMIT, raising=False)
    monkeypatch.setattr(starts, "_ROOT", tmp_path)
    assert (starts.describe_code()["commit"], starts.describe_code()["dirty"]) == (None, None)
    monkeypatch.setenv(starts.COMMIT, "abc123")
    assert (starts.describe_code()["commit"], starts.describe_code()["dirty"]) == ("abc123", None)
    monkeypatch.delenv(starts.COMMIT)
    (tmp_path / ".git").mkdir()
    answers = {"rev-parse": "def456", "status": " M gaternet_jax/training/loop.py"}
    monkeypatch.setattr(starts, "_git", lambda command, *_: answers[command])
    assert (starts.describe_code()["commit"], starts.describe_code()["dirty"]) == ("def456", True)
    answers["status"] = ""
    assert starts.describe_code()["dirty"] is False


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / starts.FILE).write_text("[{")
    with pytest.raises(UserError, match=r"starts\.json is damaged"):
        load_starts(tmp_path)

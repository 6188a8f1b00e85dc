"""Runs that cannot start, and folders that hold none: a sentence, and nothing is lost."""

from pathlib import Path

import jax
import pytest

from gaternet_jax import load_model
from gaternet_jax.errors import UserError
from gaternet_jax.training import setup
from gaternet_jax.training.evaluate import evaluate
from gaternet_jax.training.loop import train
from gaternet_jax.workdir import save_config
from tests.helpers import digits_config, random_model


def test_batch_that_does_not_divide_over_the_devices(tmp_path):
    with pytest.raises(UserError, match=r"train\.batch_size=20 must be a multiple of the number of devices, 8"):
        train(digits_config(**{"train.batch_size": 20}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_without_compilation(tmp_path):
    with (
        jax.disable_jit(),
        pytest.raises(UserError, match="JAX_DISABLE_JIT is set, but training needs compiled programs"),
    ):
        train(digits_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_budget_that_cannot_be_reached(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "build_model", lambda config, seed: random_model(config))
    budget = {"loss.gate": "macs", "loss.gate_target": 0.01}
    with pytest.raises(UserError, match=r"loss\.gate_target=0\.01 cannot be reached: .*, the least that is possible"):
        train(digits_config(**budget), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_workdir_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds something that is not a run .*--workdir"):
        train(digits_config(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_start_that_failed_before_its_first_checkpoint_does_not_hold_the_workdir(tmp_path, use_devices, monkeypatch):
    use_devices(1)
    with monkeypatch.context() as patch:
        patch.setattr(setup, "compile_ahead", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(digits_config(), tmp_path)
    assert train(digits_config(**{"optimizer.learning_rate": 0.1}), tmp_path, stop_at=1)["step"] == 1


def test_workdir_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="file is a file; choose another --workdir"):
            train(digits_config(), workdir)


def test_wrong_number_of_classes(tmp_path):
    with pytest.raises(UserError, match=r"'digits' has 10 classes, but config.model.num_classes=7"):
        train(digits_config(**{"model.num_classes": 7}), tmp_path / "run")


def test_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no config\.json"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"is not a run"):
        evaluate(Path(tmp_path, "missing"))
    for content, message in (("{", "is not a config"), ("[]", "it lacks"), ('{"seed": 0}', "it lacks data.image_size")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=rf"config\.json .*{message}"):
            load_model(tmp_path)


def test_run_without_a_checkpoint(tmp_path):
    save_config(digits_config(), ["a"], tmp_path)
    with pytest.raises(UserError, match="has no checkpoint yet; train with --workdir="):
        load_model(tmp_path)
    assert not (tmp_path / "checkpoints").exists(), "reading writes nothing"

"""tools.compact: a run to a smaller one that is loaded and evaluated like any other."""

import json
import shutil

import jax.numpy as jnp
import pytest

from gaternet_jax import load_model
from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.errors import UserError
from gaternet_jax.inference.compaction import fixed_gates
from gaternet_jax.tools.compact import main
from gaternet_jax.training.evaluate import evaluate
from tests.helpers import save_random_model


def close_a_third(model):
    size = model.gater.head.scores.out_features
    model.gater.head.scores.bias.set_value(jnp.where(jnp.arange(size) % 3 == 0, -100.0, 0.0))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
    find_dataset("digits", "")
    folder = tmp_path_factory.mktemp("run") / "run"
    save_random_model(folder, close_a_third, **{"model.width": 4})
    return folder


def test_a_compacted_run_predicts_as_before(workdir, tmp_path, capsys):
    out = tmp_path / "compact"
    main(["--workdir", str(workdir), "--out", str(out), "--images", "300"])
    assert "Next: " in capsys.readouterr().out
    report = json.loads((out / "compaction_report.json").read_text())
    filters, kept, always = report["filters"]
    assert kept <= filters - filters // 3 + 1
    assert report["parameters"][1] < report["parameters"][0]
    assert report["largest_difference_of_logits"]["gates as calibrated"] <= 1e-4
    assert report["macs_backbone"][1] < report["macs_backbone"][0]
    closed, opened = fixed_gates(load_model(out))
    assert closed.sum() == filters - kept and opened.sum() == always
    assert evaluate(out)["top1"] == pytest.approx(report["held_out_top1"][1])
    with pytest.raises(SystemExit, match="not an empty folder"):
        main(["--workdir", str(workdir), "--out", str(out)])


def test_a_plain_run(tmp_path):
    save_random_model(tmp_path / "plain", **{"model.width": 4, "model.gating": "none"})
    with pytest.raises(SystemExit, match="plain model"):
        main(["--workdir", str(tmp_path / "plain"), "--out", str(tmp_path / "out")])


def test_a_folder_of_an_earlier_version(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "old")
    (tmp_path / "old" / "compaction.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match=r"compacted by an earlier version.* compact the original run again"):
        load_model(tmp_path / "old")

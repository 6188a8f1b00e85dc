"""tools.compact: a run to a smaller one that is loaded and evaluated like any other."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax import load_model
from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.errors import UserError
from gaternet_jax.evaluate import evaluate
from gaternet_jax.tools.compact import main
from gaternet_jax.workdir import COMPACTION, load_compaction
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
    filters, kept, _ = report["filters"]
    assert kept <= filters - filters // 3 + 1
    assert report["parameters"][1] < report["parameters"][0]
    assert report["largest_difference_of_logits"]["gates as calibrated"] <= 1e-4
    whole, narrow = load_model(workdir), load_model(out)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)), jnp.float32)
    assert narrow(images).gates.shape[1] < whole(images).gates.shape[1]
    assert evaluate(out)["top1"] == pytest.approx(report["held_out_top1"][1])
    with pytest.raises(SystemExit, match="not an empty folder"):
        main(["--workdir", str(workdir), "--out", str(out)])


def test_a_plain_run(tmp_path):
    save_random_model(tmp_path / "plain", **{"model.width": 4, "model.gating": "none"})
    with pytest.raises(SystemExit, match="plain model"):
        main(["--workdir", str(tmp_path / "plain"), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(("content", "message"), [('{"format": 2}', "newer gaternet-jax"), ("{", "damaged")])
def test_a_record_of_what_was_kept_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / COMPACTION).write_text(content)
    with pytest.raises(UserError, match=message):
        load_compaction(tmp_path)

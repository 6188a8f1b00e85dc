"""tools.compact: a run to a smaller one that is loaded and evaluated like any other."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax import build_model, load_model
from gaternet_jax.checkpoint import Checkpoints
from gaternet_jax.data.datasets import find_dataset
from gaternet_jax.errors import UserError
from gaternet_jax.evaluate import evaluate
from gaternet_jax.models.functional import split_model
from gaternet_jax.tools.compact import main
from gaternet_jax.workdir import COMPACTION, load_compaction, save_config
from tests.helpers import digits_config


def save(workdir, config, change=lambda model: None):
    model = build_model(config.model)
    change(model)
    _, params, stats = split_model(model)
    save_config(config, [str(digit) for digit in range(10)], workdir)
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save_model(params, stats)
    return workdir


def close_a_third(model):
    size = model.gater.head.scores.out_features
    model.gater.head.scores.bias.set_value(jnp.where(jnp.arange(size) % 3 == 0, -100.0, 0.0))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data_dir):
    find_dataset("digits", "")
    return save(tmp_path_factory.mktemp("run") / "run", digits_config(**{"model.width": 4}), close_a_third)


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
    plain = save(tmp_path / "plain", digits_config(**{"model.width": 4, "model.gating": "none"}))
    with pytest.raises(SystemExit, match="plain model"):
        main(["--workdir", str(plain), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(("content", "message"), [('{"format": 2}', "newer gaternet-jax"), ("{", "damaged")])
def test_a_record_of_what_was_kept_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / COMPACTION).write_text(content)
    with pytest.raises(UserError, match=message):
        load_compaction(tmp_path)

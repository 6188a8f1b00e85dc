"""Folders where a run's files would be lost are refused before anything is computed."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax import load_model
from gaternet_jax.configs import cifar10
from gaternet_jax.errors import UserError
from gaternet_jax.tools import analyze, compact, convert, export, predict
from gaternet_jax.training.checkpoint import Checkpoints
from gaternet_jax.training.evaluate import evaluate
from gaternet_jax.training.loop import train
from gaternet_jax.workdir import check_new_folder, check_place, in_use, load_config, load_labels, save_config
from tests.helpers import digits_config

BUCKETS = ["gs://bucket/run", "s3://bucket/run", "GS://bucket/run", "https://storage.googleapis.com/bucket/run"]


@pytest.mark.parametrize("address", BUCKETS)
@pytest.mark.parametrize("kind", [str, Path], ids=["text", "path"])
def test_bucket_is_refused_at_once_with_what_to_do(tmp_path, monkeypatch, address, kind):
    monkeypatch.chdir(tmp_path)
    message = rf"{address} is not a folder of this machine; mount the bucket.*launch/README.*rsync -r DIR {address}"
    for use in (lambda place: train(digits_config(), place), load_model, evaluate, load_config):
        with pytest.raises(UserError, match=message):
            use(kind(address))
    assert not list(tmp_path.iterdir()), "no folder of that name is made"


def test_tools_refuse_buckets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bucket = "--workdir=gs://bucket/run"
    for tool, arguments in (
        (export, [bucket, "--out=model.zip"]),
        (predict, [bucket, "cat.png"]),
        (analyze, [bucket]),
        (compact, [bucket, "--out=out"]),
        (compact, ["--workdir=run", "--out=gs://bucket/run"]),
        (convert, ["--checkpoint=file.pth", "--out=gs://bucket/run"]),
    ):
        with pytest.raises(SystemExit) as ended:
            tool.main(arguments)
        assert "gs://bucket/run is not a folder of this machine" in str(ended.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["a[lr=0.1]", "a[", "a*b", "what?", "back\\slash", "x/gs:", "s3:", os.fsdecode(b"\xff")]
)
def test_names_under_which_checkpoints_would_be_lost_are_refused(tmp_path, name):
    workdir = tmp_path / name / "run"
    with pytest.raises(UserError, match=r"choose another|cannot be read"):
        train(digits_config(), workdir)
    with pytest.raises(UserError, match=r"choose another|cannot be read"):
        check_new_folder(workdir)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("root", ["/gs/run", "/s3/run", "/az/run", "/hf/run"])
def test_folders_that_orbax_takes_for_buckets_are_refused(root):
    with pytest.raises(UserError, match="reads like the address of a bucket"):
        check_place(Path(root), "--workdir")


@pytest.mark.parametrize(
    "name", ["a]", "{a,b}", "a:b", "lr=0.1", "a b", "ä日", "50%", "%5B", "#1", "$x", "~", "a'\"b", "a\nb"]
)
def test_other_names_work(tmp_path, name):
    check_place(tmp_path / name, "--workdir")
    params, stats = {"kernel": jnp.arange(6.0).reshape(2, 3)}, {"mean": jnp.ones(3)}
    with Checkpoints(tmp_path / name) as checkpoints:
        checkpoints.save_model(params, stats)
    with Checkpoints(tmp_path / name) as checkpoints:
        _, found, _ = checkpoints.restore_model("best", {"kernel": jnp.zeros((2, 3))}, stats)
    np.testing.assert_array_equal(found["kernel"], params["kernel"])


def test_moved_run_is_read_from_any_name(tmp_path):
    params, stats = {"kernel": jnp.arange(6.0)}, {"mean": jnp.ones(3)}
    with Checkpoints(tmp_path / "run") as checkpoints:
        checkpoints.save_model(params, stats)
    moved = (tmp_path / "run").rename(tmp_path / "run[1]*?")
    with Checkpoints(moved) as checkpoints:
        assert checkpoints.restore_model("latest", params, stats)[0] == 0


def test_second_first_run_is_refused_before_it_changes_anything(tmp_path):
    """Both found an empty folder; the other one was quicker."""
    one, other = digits_config(), digits_config(**{"optimizer.learning_rate": 0.1})
    with in_use(tmp_path, one):
        save_config(one, ["a"], tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(UserError, match="in use by process"), in_use(tmp_path, other):
            raise AssertionError
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_model({"kernel": jnp.ones(3)}, {})
    with (
        pytest.raises(UserError, match=r"another config:\n  optimizer\.learning_rate: 0\.2 in the workdir, 0\.1 given"),
        in_use(tmp_path, other),
    ):
        raise AssertionError


def test_storage_that_cannot_lock_is_named_and_used(tmp_path, monkeypatch, capsys):
    def cannot(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", cannot)
    with in_use(tmp_path, digits_config()):
        assert (tmp_path / "lock").read_text().startswith("process ")
    assert "cannot be locked (Function not implemented): see to it that no other process" in capsys.readouterr().err


def test_checkpoints_that_are_a_file(tmp_path):
    save_config(digits_config(), ["a"], tmp_path)
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints is not a folder; choose another --workdir"):
        train(digits_config(), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\n", "has 2 lines, but the model has 10 classes; write one name a line"),
        (b"", "has 0 lines"),
        ("\n".join("äbcdefghij").encode("latin-1"), "cannot be read as text in UTF-8: .*; write the classes again"),
        ("\n".join("äbcdefghij").encode("utf-16"), "cannot be read as text in UTF-8"),
    ],
)
def test_class_names_that_do_not_fit(tmp_path, content, message):
    save_config(cifar10.get_config(), [], tmp_path)
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"labels.txt {message}"):
        load_labels(tmp_path)


@pytest.mark.parametrize("content", ["\n".join("äbcdefghij"), "\ufeff" + "\r\n".join("äbcdefghij") + "\r\n"])
def test_class_names_that_an_editor_wrote(tmp_path, content):
    save_config(cifar10.get_config(), [], tmp_path)
    (tmp_path / "labels.txt").write_bytes(content.encode())
    assert load_labels(tmp_path) == list("äbcdefghij")
    save_config(cifar10.get_config(), ["\u2028", *"bcdefghi", ""], tmp_path)
    assert load_labels(tmp_path) == ["\u2028", *"bcdefghi", ""]

"""Every file and folder of a checkpoint damaged in turn: it is passed over, or what it holds is still right."""

import re
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gaternet_jax.training.checkpoint as module
import gaternet_jax.training.checkpoint_writer as writer_module
from gaternet_jax.errors import UserError
from gaternet_jax.training.checkpoint import Checkpoints
from gaternet_jax.training.checkpoint_reader import DamagedError, read_metadata
from gaternet_jax.training.state import TrainState

# Orbax leaves callbacks behind when it cannot read a file.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state(step, width=3):
    params = {"conv": {"kernel": jnp.full((2, width), 1.5 * step)}, "bias": jnp.arange(4.0) + step}
    return TrainState(jnp.int32(step), params, {"mean": jnp.full(width, 0.1 * step)}, {"trace": params}, None)


def save(checkpoints, step, top1=0.5, **options):
    window = {"steps": step, "sums": {"loss": 0.5 * step}, "skipped": 0}
    checkpoints.save(state(step), window=window, metrics=top1 and {"top1": top1, "images": 10}, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A workdir with checkpoints of the steps 1 and 2, of which the second is the better."""
    workdir = tmp_path_factory.mktemp("damage") / "whole"
    with Checkpoints(workdir, keep_latest=2) as checkpoints:
        save(checkpoints, 1, 0.5)
        save(checkpoints, 2, 0.75)
    return workdir


@pytest.fixture
def copy(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("gaternet_jax.training.checkpoint_reader.SETTLE_SECONDS", 0.0)
    return shutil.copytree(whole, tmp_path / "run")


def parts(checkpoint):
    """Every file and folder of a checkpoint, itself included; of each process's own files, which are copies, one."""
    paths = sorted(path.relative_to(checkpoint) for path in (checkpoint, *checkpoint.rglob("*")))
    doubles = [path for path in paths if path.match("ocdbt.process_*/d/*")]
    return [path for path in paths if path not in doubles[1:]]


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path):
    if path.is_dir():
        remove(path)
        path.mkdir()
    else:
        path.write_bytes(b"")


def halve(path):
    if path.is_dir():
        for inner in sorted(path.iterdir())[::2]:
            remove(inner)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
    if path.is_dir():
        for inner in path.rglob("*"):
            inner.is_file() and zero(inner)
    else:
        path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    if path.is_dir():
        for inner in path.rglob("*"):
            inner.is_file() and flip(inner)
    else:
        content = bytearray(path.read_bytes())
        for place in range(len(content) // 3, len(content), max(len(content) // 7, 1)):
            content[place] ^= 0x10
        path.write_bytes(content)


def exchange(path):
    """A file where a folder was, and the other way round."""
    was_folder = path.is_dir()
    remove(path)
    path.write_bytes(b"") if was_folder else path.mkdir()


def assert_is(restored, step):
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state(step)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("damage", [remove, empty, halve, zero, flip, exchange])
def test_whatever_is_damaged_the_run_goes_on(copy, damage, capsys):
    newest, passed_over = copy / "checkpoints" / "2", []
    keep = shutil.copytree(newest, copy / "keep")
    for part in parts(keep):
        damage(newest / part)
        with Checkpoints(copy) as checkpoints:
            restored, window, evaluated = checkpoints.restore(state(9))
        step, said = int(restored.step), capsys.readouterr().err
        assert_is(restored, step)
        assert window["sums"] == {"loss": 0.5 * step} and evaluated
        if step == 1:
            passed_over.append(str(part))
            assert not newest.exists(), "set aside"
            named = re.search(rf"^checkpoint 2 in {copy}/checkpoints is damaged: .", said, re.M)
            assert named or (damage, str(part)) == (remove, "."), "there is none then"
        else:
            shutil.rmtree(newest)
        shutil.copytree(keep, newest)
    needed = {".", "_CHECKPOINT_METADATA", "model", "training/_METADATA", "model/d", "training/manifest.ocdbt"}
    assert needed <= set(passed_over)


def test_damaged_older_checkpoint_does_not_end_the_saving(copy):
    older, shelf = copy / "checkpoints" / "1", copy / "shelf"
    shutil.copytree(copy / "checkpoints", shelf)
    for part, damage in ((".", zero), ("_CHECKPOINT_METADATA", empty), ("model", remove), ("training/_METADATA", zero)):
        damage(older / part)
        with Checkpoints(copy, keep_latest=3) as checkpoints:
            save(checkpoints, 3, 0.25)
        with Checkpoints(copy) as checkpoints:
            assert checkpoints.best == 2
            assert_is(checkpoints.restore(state(9))[0], 3)
        shutil.rmtree(copy / "checkpoints")
        shutil.copytree(shelf, copy / "checkpoints")


def test_number_changed_in_the_metadata_is_a_damage(copy):
    """0.75 would still be JSON as 0.95, and another checkpoint the best."""
    file = copy / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace('"top1": 0.5', '"top1": 0.9'))
    with pytest.raises(DamagedError, match="its metadata does not match its checksum"):
        read_metadata(file.parent)
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.best == 2


def test_step_asked_for_by_number_is_that_step_or_an_error(copy):
    like = state(9)
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.restore_model(1, like.params, like.stats)[0] == 1
        zero(copy / "checkpoints" / "2" / "model")
        with pytest.raises(UserError, match=r"checkpoint 2 in .* is damaged: .*\. Other checkpoints there: \[1\]"):
            checkpoints.restore_model(2, like.params, like.stats)
        for which in ("best", "latest"):
            step, params, stats = checkpoints.restore_model(which, like.params, like.stats)
            assert step == 1
            np.testing.assert_array_equal(params["conv"]["kernel"], state(1).params["conv"]["kernel"])
            np.testing.assert_array_equal(stats["mean"], state(1).stats["mean"])
        for which in (7, "newest", "2", None, "steps"):
            with pytest.raises(UserError, match=rf"has no checkpoint '{which}'; it has steps \[1, 2\]"):
                checkpoints.restore_model(which, like.params, like.stats)


def test_best_falls_back_to_the_next_best(tmp_path, monkeypatch):
    monkeypatch.setattr("gaternet_jax.training.checkpoint_reader.SETTLE_SECONDS", 0.0)
    like = state(9)
    with Checkpoints(tmp_path, keep_latest=4) as checkpoints:
        for step, top1 in ((1, 0.6), (2, 0.9), (3, 0.1), (4, None)):
            save(checkpoints, step, top1)
    with Checkpoints(tmp_path) as checkpoints:
        for expected in (2, 1, 3, 4):
            step, params, _ = checkpoints.restore_model("best", like.params, like.stats)
            assert step == expected
            np.testing.assert_array_equal(params["bias"], state(step).params["bias"])
            flip(tmp_path / "checkpoints" / str(step) / "model")


def test_another_model_is_said_of_whole_checkpoints_only(copy):
    other = state(9, width=5)
    with Checkpoints(copy) as checkpoints:
        with pytest.raises(
            UserError, match=r"checkpoint 2 in .* is of another model:\n  params\.conv\.kernel: \[2, 3\] in"
        ):
            checkpoints.restore_model("best", other.params, other.stats)
        for step in "12":
            empty(copy / "checkpoints" / step / "model")
        with pytest.raises(UserError, match="no checkpoint is whole"):
            checkpoints.restore_model("best", state(9).params, state(9).stats)


def test_model_without_a_training_state_cannot_go_on(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_model(state(1).params, state(1).stats)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="has no training: it holds a model"):
        checkpoints.restore(state(9))


def test_checkpoint_that_is_replaced_is_there_until_the_new_one_is_whole(copy, monkeypatch):
    """A kill at any moment leaves the old one or the new one."""

    def killed(*_):
        raise KeyboardInterrupt

    checkpoints = Checkpoints(copy, keep_latest=2)
    with monkeypatch.context() as patch:
        patch.setattr("gaternet_jax.training.checkpoint.CheckpointWriter.save", killed)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 2, 0.8, overwrite=True)
    assert not (copy / "checkpoints" / "2").exists()
    with Checkpoints(copy, keep_latest=2) as checkpoints:
        assert checkpoints.steps == [1, 2]
        assert_is(checkpoints.restore(state(9))[0], 2)
        save(checkpoints, 2, 0.8, overwrite=True)
    assert read_metadata(copy / "checkpoints" / "2")["metrics"]["top1"] == 0.8
    assert sorted(path.name for path in (copy / "checkpoints").iterdir() if path.name[0] in "12") == ["1", "2"]


def test_what_was_replaced_goes_with_what_replaced_it(copy):
    with Checkpoints(copy, keep_latest=1) as checkpoints:
        save(checkpoints, 2, 0.1, overwrite=True)
        save(checkpoints, 3, 0.9)
    assert [path.name for path in (copy / "checkpoints").iterdir() if path.is_dir()] == ["3"]


def test_first_checkpoint_is_read_back(tmp_path, monkeypatch):
    """Storage that loses what is written ends the run at its first checkpoint, not at the end."""
    read = writer_module.read_checkpoint

    def lose(path, like):
        zero(path / "model" / "d")
        return read(path, like)

    monkeypatch.setattr(writer_module, "read_checkpoint", lose)
    with (
        pytest.raises(UserError, match=r"checkpoint 1 was written to .*, but cannot be read: .*another --workdir"),
        Checkpoints(tmp_path) as checkpoints,
    ):
        save(checkpoints, 1)


@pytest.mark.parametrize("how", ["deleted", "half deleted", "replaced", "exchanged for a later one"])
def test_checkpoint_replaced_while_it_is_read_is_never_called_damaged(whole, tmp_path, monkeypatch, capsys, how):
    """A run that trains here deletes or replaces what is being read."""
    workdir, calls = shutil.copytree(whole, tmp_path / "run"), []
    checkpoints = workdir / "checkpoints"
    read = module.read_checkpoint

    def disturbed(path, like):
        calls.append(path.name)
        if len(calls) > 1:
            return read(path, like)
        kept = shutil.copytree(path, tmp_path / "kept")
        if how == "half deleted":
            shutil.rmtree(path / "model" / "d")
            threading.Timer(0.2, lambda: shutil.rmtree(path)).start()
        else:
            shutil.rmtree(path)
        try:
            return read(path, like)
        finally:
            if how == "replaced":
                shutil.copytree(kept, path)
            elif how == "exchanged for a later one":
                shutil.copytree(checkpoints / "1", checkpoints / "3")

    monkeypatch.setattr(module, "read_checkpoint", disturbed)
    like = state(9)
    with Checkpoints(workdir) as found:
        step = found.restore_model("latest", like.params, like.stats)[0]
    assert step == {"replaced": 2, "exchanged for a later one": 3}.get(how, 1)
    assert calls[0] == "2" and len(calls) > 1
    assert "damaged" not in capsys.readouterr().err
    if how != "replaced":
        with Checkpoints(workdir) as found, pytest.raises(UserError, match="has no checkpoint '2'"):
            found.restore_model(2, like.params, like.stats)

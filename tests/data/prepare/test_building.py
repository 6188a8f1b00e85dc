import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from gaternet_jax.data.datasets import class_names, find_dataset
from gaternet_jax.data.prepare import folders as prepare
from gaternet_jax.data.prepare import image_files, shards
from gaternet_jax.data.prepare.folders import prepare_folder
from gaternet_jax.errors import UserError
from gaternet_jax.files import locked
from tests.image_folders import encode, expected, make_folder, read


@pytest.fixture
def root(tmp_path, monkeypatch):
    """8 training and 4 test images, in 4 and 2 shards."""
    monkeypatch.setattr(prepare, "SHARD_IMAGES", 2)
    return make_folder(tmp_path / "images")


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "prepared"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_round_trip(root, data_dir):
    (root / "train/cat").rename(root / "train/Kätzchen klein")
    (root / "test/cat").rename(root / "test/Kätzchen klein")
    (root / "train/dog/Ölbild.PNG").write_bytes(encode(99, "PNG"))
    (root / "train/dog/really.jpeg").write_bytes(encode(98, "PNG"))
    folder = prepare_folder(root, data_dir, "pets", workers=1)
    assert folder == data_dir / "pets" / "1.0.0"
    assert class_names(find_dataset("pets", str(data_dir))) == ["Kätzchen klein", "dog"]
    for split in ("train", "test"):
        assert read("pets", data_dir, split) == expected(root, split)
    assert len(list(folder.glob("pets-train.array_record-*-of-00005"))) == 5


def test_parts_of_splits_and_the_order(root, data_dir):
    prepare_folder(root, data_dir, "pets", workers=1)
    whole, half = (list(read("pets", data_dir, split)) for split in ("train", "train[:50%]"))
    assert half == whole[:4] and sorted(whole) != whole
    rest = find_dataset("pets", str(data_dir)).as_data_source(
        "train[50%:]", decoders={"image": tfds.decode.SkipDecoding()}
    )
    assert [record["file_name"].decode() for record in rest.__getitems__([3, 0])] == [whole[7], whole[4]]


def test_name_comes_from_the_folder(root, data_dir):
    assert prepare_folder(root, data_dir, "", workers=1) == data_dir / "images" / "1.0.0"


def test_large_images_make_more_shards(root, data_dir, monkeypatch):
    monkeypatch.setattr(prepare, "SHARD_IMAGES", 1000)
    monkeypatch.setattr(prepare, "SHARD_BYTES", 1 << 10)
    size = sum(path.stat().st_size for path in (root / "train").glob("*/*"))
    info = find_dataset("pets", str(prepare_folder(root, data_dir, "pets", workers=1).parents[1])).info
    assert info.splits["train"].num_shards == -(-size // 1024) > 1


def test_workers_write_what_one_process_writes(root, data_dir, tmp_path):
    one = prepare_folder(root, tmp_path / "one", "pets", workers=1)
    two = prepare_folder(root, tmp_path / "two", "pets", workers=2)
    assert files(one) == files(two) and files(one)


# Interruptions


def stop_at(monkeypatch, image: int, action):
    """The n-th image from now on makes something happen."""
    seen, to_store = [], image_files.to_store

    def count(encoded):
        seen.append(encoded)
        if len(seen) == image:
            action()
        return to_store(encoded)

    monkeypatch.setattr(image_files, "to_store", count)
    return seen


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_goes_on_after_an_interruption(root, data_dir, tmp_path, monkeypatch, capfd):
    before = prepare_folder(root, tmp_path / "undisturbed", "pets", workers=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 6, interrupt)
        prepare_folder(root, data_dir, "pets", workers=1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(UserError, match="unknown dataset 'pets'"):
        find_dataset("pets", str(data_dir))
    capfd.readouterr()
    again = stop_at(monkeypatch, 0, None)
    after = prepare_folder(root, data_dir, "pets", workers=1)
    assert len(again) == 8 and files(after) == files(before)
    assert "2 of 6 shards are there already" in capfd.readouterr().out
    assert [path.name for path in (data_dir / "pets").iterdir()] == ["1.0.0"]


class Slow:
    """Examples that take ten seconds."""

    def __len__(self):
        return 100

    def __iter__(self):
        for _ in range(100):
            time.sleep(0.1)
            yield b""


def test_interrupted_workers_end(tmp_path, monkeypatch):
    wait, times = shards.wait, []

    def interrupted(*args, **kwargs):
        times or interrupt()
        times.append(time.monotonic())
        return wait(*args, **kwargs)

    monkeypatch.setattr(shards, "wait", interrupted)
    slow = [shards.Shard(tmp_path / name, tmp_path / f"{name}.json", Slow()) for name in "abc"]
    with pytest.raises(KeyboardInterrupt):
        shards.write_shards(slow, done=0, workers=2, title="Slow", unit="image")
    assert not multiprocessing.active_children() and not list(tmp_path.iterdir())


def test_shards_count_only_with_their_names(tmp_path):
    shard = shards.Shard(tmp_path / "shard", tmp_path / "note", [b"example"])
    shards.write_shard(shard, lambda: None)
    assert shard.written() == (1, 7, [])
    shard.path.rename(tmp_path / "shard.part-1")  # as if the process was killed before the last step
    assert shard.written() is None


KILLED = """
import os, signal, sys
from pathlib import Path
from gaternet_jax.data.prepare import image_files
from gaternet_jax.data.prepare import folders as prepare
prepare.SHARD_IMAGES = 2
to_store, seen = image_files.to_store, []
def count(encoded):
    seen.append(1)
    if len(seen) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return to_store(encoded)
image_files.to_store = count
prepare.prepare_folder(Path(sys.argv[1]), Path(sys.argv[2]), "pets", workers=1)
"""


def test_goes_on_after_a_kill(root, data_dir, tmp_path, capfd):
    killed = subprocess.run([sys.executable, "-c", KILLED, root, data_dir], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    left = files(data_dir / "pets" / ".preparing-1.0.0")
    assert [name for name in left if ".part-" in name] and not (data_dir / "pets" / "1.0.0").exists()
    with pytest.raises(UserError, match="unknown dataset 'pets'"):
        find_dataset("pets", str(data_dir))
    after = prepare_folder(root, data_dir, "pets", workers=1)
    assert "2 of 6 shards are there already" in capfd.readouterr().out
    assert files(after) == files(prepare_folder(root, tmp_path / "undisturbed", "pets", workers=1))


ORPHANS = """
import multiprocessing, os, signal, sys
from pathlib import Path
from gaternet_jax.data.prepare import folders as prepare
from gaternet_jax.data.prepare import shards
def killed(*args, **kwargs):
    Path(sys.argv[3]).write_text(" ".join(str(child.pid) for child in multiprocessing.active_children()))
    os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    prepare.SHARD_IMAGES, shards.wait = 2, killed
    prepare.prepare_folder(Path(sys.argv[1]), Path(sys.argv[2]), "pets", workers=2)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_of_a_killed_process_end(root, data_dir, tmp_path):
    script, pids = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(ORPHANS)
    streams = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # pipes would be waited for
    subprocess.run([sys.executable, script, root, data_dir, pids], check=False, **streams)
    workers = [int(pid) for pid in pids.read_text().split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in workers if is_running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


class Dying:
    """Examples at which a worker process dies."""

    def __len__(self):
        return 1

    def __iter__(self):
        if multiprocessing.parent_process() is not None:
            os._exit(1)
        yield b""


def test_dead_workers_are_reported(tmp_path):
    dying = [shards.Shard(tmp_path / name, tmp_path / f"{name}.json", Dying()) for name in "ab"]
    with pytest.raises(UserError, match="a worker process died"):
        shards.write_shards(dying, done=0, workers=2, title="Dying", unit="image")


def test_two_at_once(root, data_dir):
    work = data_dir / "pets" / ".preparing-1.0.0"
    with (
        locked(work, "--data_dir"),
        pytest.raises(UserError, match=f"{work} is in use by process .* or choose another --name"),
    ):
        prepare_folder(root, data_dir, "pets", workers=1)
    prepare_folder(root, data_dir, "pets", workers=1)


# Changes of the source


def test_nothing_to_do(root, data_dir, monkeypatch, capfd):
    folder = prepare_folder(root, data_dir, "pets", workers=1)
    before, seen = files(folder), stop_at(monkeypatch, 0, None)
    assert prepare_folder(root, data_dir, "pets", workers=1) == folder
    assert not seen and files(folder) == before
    assert f"{folder} is already prepared" in capfd.readouterr().out


def test_changed_source(root, data_dir, tmp_path):
    folder = prepare_folder(root, data_dir, "pets", workers=1)
    (root / "test/cat/0.jpg").unlink()
    with pytest.raises(UserError, match=f"{root}, which has changed since; remove {folder} .* another --name"):
        prepare_folder(root, data_dir, "pets", workers=1)
    other = make_folder(tmp_path / "other", 3)
    with pytest.raises(UserError, match=f"was prepared from {root}, not from {other}; remove {folder}"):
        prepare_folder(other, data_dir, "pets", workers=1)
    shutil.rmtree(folder)
    prepare_folder(root, data_dir, "pets", workers=1)
    assert read("pets", data_dir, "test") == expected(root, "test")


def test_source_that_changes_before_the_end_starts_anew(root, data_dir, monkeypatch, capfd):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 6, interrupt)
        prepare_folder(root, data_dir, "pets", workers=1)
    (root / "train/cat/0.jpg").write_bytes(encode(100))
    prepare_folder(root, data_dir, "pets", workers=1)
    assert "has changed since its preparation began; starting anew" in capfd.readouterr().out
    assert read("pets", data_dir, "train") == expected(root, "train")


def test_folders_of_others_are_left_alone(root, data_dir):
    (data_dir / "pets" / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match="is there, but was not prepared by this command"):
        prepare_folder(root, data_dir, "pets", workers=1)


# Places that cannot be written to


def test_data_dir_that_cannot_be(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}/file/pets: Not a directory; make room"):
        prepare_folder(root, tmp_path / "file", "pets", workers=1)


def test_full_disk(root, data_dir, monkeypatch):
    writer = shards.ArrayRecordWriter
    monkeypatch.setattr(shards, "ArrayRecordWriter", lambda path, options: writer("/dev/full", options))
    with pytest.raises(UserError, match=r"data: write\(\) failed: No space left on device; make room there"):
        prepare_folder(root, data_dir, "pets", workers=1)
    monkeypatch.undo()
    prepare_folder(root, data_dir, "pets", workers=1)


def test_images_that_readers_would_see_differently(root, data_dir):
    (root / "train/cat/cmyk.jpg").write_bytes(encode(7, mode="CMYK"))
    prepare_folder(root, data_dir, "pets", workers=1)
    stored, _ = read("pets", data_dir, "train")["cat/cmyk.jpg"]
    assert stored == image_files.to_store(encode(7, mode="CMYK")) and stored.startswith(b"\x89PNG")


def test_metadata_are_those_of_tfds(root, data_dir):
    folder = prepare_folder(root, data_dir, "pets", workers=1)
    info = json.loads((folder / "dataset_info.json").read_text())
    assert (info["name"], info["version"], info["fileFormat"]) == ("pets", "1.0.0", "array_record")
    splits = {split["name"]: list(map(int, split["shardLengths"])) for split in info["splits"]}
    assert splits == {"train": [2] * 4, "test": [2] * 2}
    features = tfds.builder_from_directory(str(folder)).info.features
    example = features.encode_example({"image": b"bytes", "label": "dog", "file_name": "Ölbild"})
    serialized = features.serialize_example(example)
    assert features.deserialize_example_np(serialized, decoders={"image": tfds.decode.SkipDecoding()}) == (
        features.deserialize_example_np(
            image_files.serialize(b"bytes", 1, "Ölbild"), decoders={"image": tfds.decode.SkipDecoding()}
        )
    )
    assert np.dtype(features["image"].np_dtype) == np.uint8

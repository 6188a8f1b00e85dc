import csv
import io
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from gaternet_jax.tools import predict
from tests.helpers import prefer_two, save_random_model


@pytest.fixture(scope="module", params=["all", "none"])
def workdir(request, tmp_path_factory):
    """An untrained digits model, saved; its third logit is raised."""
    folder = tmp_path_factory.mktemp("predict") / request.param
    save_random_model(folder, prefer_two, "digit {}", **{"model.gating": request.param})
    return folder


@pytest.fixture
def images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    paths = []
    for name, mode in (("gray.png", "L"), ("colour.jpg", "RGB"), ("alpha.png", "RGBA"), ("ein Büld.webp", "RGB")):
        paths.append(tmp_path / name)
        Image.fromarray(pixels).convert(mode).save(paths[-1])
    paths.append(tmp_path / "small.png")
    Image.new("L", (3, 5)).save(paths[-1])
    return paths


def test_images_of_any_kind_and_size(workdir, images, capsys):
    predict.main([f"--workdir={workdir}", "--top=3", *map(str, images)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 * len(images)
    for i, path in enumerate(images):
        block = lines[4 * i : 4 * i + 4]
        gates = r"  \(open gates \d+\.\d%\)" if workdir.name == "all" else ""
        assert re.fullmatch(re.escape(str(path)) + gates, block[0])
        assert re.fullmatch(r" +\d+\.\d\d%  digit 2", block[1])
        probabilities = [float(line.split("%")[0]) for line in block[1:]]
        assert probabilities == sorted(probabilities, reverse=True)


def test_more_images_than_a_batch(workdir, images, capsys, monkeypatch):
    monkeypatch.setattr(predict, "BATCH_SIZE", 2)
    predict.main([f"--workdir={workdir}", "--top=1", *map(str, images)])
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")] == list(
        _paths(images, workdir, capsys)
    )


def _paths(images, workdir, capsys):
    for path in images:
        predict.main([f"--workdir={workdir}", "--top=1", str(path)])
        yield capsys.readouterr().out.splitlines()[0]


def test_truncated_and_missing_files_are_named_and_the_others_classified(workdir, images, capsys):
    images[1].write_bytes(images[1].read_bytes()[:200])
    with pytest.raises(SystemExit, match=r"^error: 2 of 6 images cannot be read; they are named above$") as ending:
        predict.main([f"--workdir={workdir}", "--top=1", *map(str, images), "nothing.png"])
    assert ending.value.code == 2
    printed = capsys.readouterr()
    assert f"error: {images[1]} cannot be read as an image" in printed.err
    assert "error: nothing.png cannot be read: No such file" in printed.err
    shown = [line.partition("  (")[0] for line in printed.out.splitlines() if not line.startswith(" ")]
    assert shown == [str(image) for image in images if image != images[1]], "the others are classified"
    with pytest.raises(SystemExit, match=r"^error: 1 of 1 images cannot be read"):
        predict.main([f"--workdir={workdir}", "nothing.png"])
    assert "error: nothing.png cannot be read: No such file" in capsys.readouterr().err


def test_folder_without_a_run(tmp_path, images):
    with pytest.raises(SystemExit, match="is not a run"):
        predict.main([f"--workdir={tmp_path}", str(images[0])])


def test_help_helps(capsys):
    with pytest.raises(SystemExit) as exit_:
        predict.main(["--help"])
    assert exit_.value.code == 0
    assert "Any format that Pillow reads" in capsys.readouterr().out


def test_one_device_is_enough(workdir, images):
    assert len(jax.devices()) == 8
    (found,) = predict.predict(workdir, images[:1], top=1)
    assert found.classes[0][0] == "digit 2"


def test_number_of_classes_shown_must_be_positive(workdir, images, capsys):
    with pytest.raises(SystemExit):
        predict.main([f"--workdir={workdir}", "--top=0", str(images[0])])
    assert "0 is not at least 1" in capsys.readouterr().err


def printed_as(format, workdir, images, capsys, *arguments):
    predict.main([f"--workdir={workdir}", "--top=2", f"--format={format}", *arguments, *map(str, images)])
    return capsys.readouterr().out


def test_formats_tell_the_same(workdir, images, capsys):
    text = printed_as("text", workdir, images, capsys).splitlines()
    objects = json.loads(printed_as("json", workdir, images, capsys))
    rows = list(csv.DictReader(io.StringIO(printed_as("csv", workdir, images, capsys))))
    assert [content["file"] for content in objects] == [str(image) for image in images]
    assert [row["file"] for row in rows] == [str(image) for image in images for _ in range(2)]
    assert [row["rank"] for row in rows] == ["1", "2"] * len(images)
    for number, content in enumerate(objects):
        for rank, found in enumerate(content["classes"]):
            row = rows[2 * number + rank]
            assert row["label"] == found["label"] and float(row["probability"]) == found["probability"]
            assert text[3 * number + rank + 1].split(maxsplit=1) == [f"{found['probability']:.2%}", found["label"]]
            assert row["open_gates"] == ("" if content["open_gates"] is None else str(content["open_gates"]))
        assert (content["open_gates"] is None) == (workdir.name == "none")


def test_names_that_need_quotes_survive(workdir, tmp_path, capsys):
    path = tmp_path / 'a,"b"\n\u00fc.png'
    Image.new("L", (8, 8)).save(path)
    assert json.loads(printed_as("json", workdir, [path], capsys))[0]["file"] == str(path)
    assert next(csv.DictReader(io.StringIO(printed_as("csv", workdir, [path], capsys))))["file"] == str(path)


def test_folders_stand_for_the_images_below_them(workdir, images, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "more").mkdir()
    images[0].rename(tmp_path / "more" / "gray.png")
    found = json.loads(printed_as("json", workdir, [tmp_path], capsys))
    assert [content["file"] for content in found] == sorted(map(str, [*images[1:], tmp_path / "more" / "gray.png"]))
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit, match=r"^error: .*/none has no image files; looked for what Pillow reads"):
        predict.main([f"--workdir={workdir}", str(tmp_path / "none")])


def test_an_unreadable_file_leaves_json_whole(workdir, images, capsys):
    with pytest.raises(SystemExit) as ending:
        predict.main([f"--workdir={workdir}", "--format=json", "nothing.png", str(images[0])])
    assert ending.value.code == 2
    assert [content["file"] for content in json.loads(capsys.readouterr().out)] == [str(images[0])]

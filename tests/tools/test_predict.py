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


def test_one_device_is_enough(workdir, images, capsys):
    assert len(jax.devices()) == 8
    assert predict.predict(workdir, images[:1], top=1) == 0
    assert "digit 2" in capsys.readouterr().out


def test_number_of_classes_shown_must_be_positive(workdir, images, capsys):
    with pytest.raises(SystemExit):
        predict.main([f"--workdir={workdir}", "--top=0", str(images[0])])
    assert "0 is not at least 1" in capsys.readouterr().err

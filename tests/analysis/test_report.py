"""The report page as a file: what is embedded, how large it is, what it refuses."""

import base64
import dataclasses
import io
import json
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from gaternet_jax.analysis.observe import Observations
from gaternet_jax.analysis.report import choose_sample, quantize_rates, write_report
from gaternet_jax.analysis.statistics import compute_statistics
from gaternet_jax.errors import UserError
from gaternet_jax.gating import GateSite

NASTY = ("</script><script>alert(1)</script>", '<img src=x onerror="alert(1)">', "日本語 'q' & <!--")


def observe(images=40, classes=3, widths=(8, 13), seed=0, names=None, unknown=0):
    """Made-up observations: gates that depend on the class and on chance; the first `unknown` labels are -1."""
    random = np.random.default_rng(seed)
    total = sum(widths)
    labels = (np.arange(images) % classes).astype(np.int32)
    scores = random.normal(size=(classes, total))[labels] + random.normal(size=(images, total))
    offsets = np.cumsum([0, *widths])
    sites = tuple(
        GateSite(f"stage{i // 2 + 1}.block1.conv{i % 2 + 1}", int(offset), width)
        for i, (offset, width) in enumerate(zip(offsets[:-1], widths, strict=True))
    )
    predictions = np.where(random.random(images) < 0.9, labels, (labels + 1) % classes).astype(np.int32)
    labels[:unknown] = -1
    return Observations(
        gates=scores > 0,
        labels=labels,
        predictions=predictions,
        confidences=random.uniform(0.4, 1, images).astype(np.float32),
        macs=random.uniform(0.4, 0.6, images).astype(np.float32),
        sites=sites,
        class_names=tuple(names or (f"class {i}" for i in range(classes))),
    )


def paint(images, size=8, channels=3, seed=0):
    """Smooth thumbnails, uint8 [N, size, size, channels]: like photographs, they compress."""
    random = np.random.default_rng(seed)
    phase, pace = random.uniform(0, 6, (2, images, 1, 1, channels)).astype(np.float32)
    down, across = np.mgrid[0:size, 0:size].astype(np.float32) / size
    waves = np.sin(pace * (down + across)[None, :, :, None] + phase)
    return (128 + 100 * waves).astype(np.uint8)


def write(path, observations, thumbnails=None, **options):
    """Writes a page and returns its text."""
    defaults = dict(title="A run", summary=[], figures=[], statistics=compute_statistics(observations))
    images = paint(len(observations.labels)) if thumbnails is None else thumbnails
    write_report(path, observations=observations, thumbnails=images, **defaults | options)
    return path.read_text(encoding="utf-8")


def read_data(page):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


def unpack(entry):
    data = zlib.decompress(base64.b64decode(entry["data"]))
    return np.frombuffer(data, entry["type"]).reshape(entry["shape"])


def test_the_embedded_numbers_are_the_observations(tmp_path):
    observations = observe(unknown=5)
    statistics = compute_statistics(observations)
    data = read_data(write(tmp_path / "new" / "report.html", observations))
    chosen = unpack(data["index"])
    assert sorted(chosen) == list(range(40))
    bits = np.unpackbits(unpack(data["gates"]), axis=1, bitorder="little")[:, :21]
    np.testing.assert_array_equal(bits, observations.gates[chosen])
    np.testing.assert_array_equal(unpack(data["group"]), np.where(chosen < 5, 3, observations.labels[chosen]))
    np.testing.assert_array_equal(unpack(data["prediction"]), observations.predictions[chosen])
    np.testing.assert_array_equal(unpack(data["confidence"]), observations.confidences[chosen])
    np.testing.assert_array_equal(unpack(data["kind"]), statistics.kinds)
    np.testing.assert_allclose(unpack(data["openRate"]), statistics.open_rate, rtol=1e-6)
    rates = unpack(data["groupRate"]) / 255
    np.testing.assert_allclose(rates[:3], statistics.open_rate_by_class, atol=1 / 255)
    np.testing.assert_allclose(rates[3], observations.gates[:5].mean(0), atol=1 / 255)
    np.testing.assert_array_equal(unpack(data["groupCount"]), [12, 11, 12, 5])
    assert [(site["name"], site["offset"], site["size"]) for site in data["sites"]] == [
        (site.name, site.offset, site.size) for site in observations.sites
    ]


def test_rates_of_bytes_keep_never_and_always_exact():
    rates = np.array([0, 1e-6, 0.5, 1 - 1e-6, 1, np.nan])
    np.testing.assert_array_equal(quantize_rates(rates), [0, 1, 128, 254, 255, 0])


@pytest.mark.parametrize("channels", [1, 3])
def test_sprites_hold_the_thumbnails(tmp_path, channels):
    observations, thumbnails = observe(images=7), paint(7, channels=channels)
    data = read_data(write(tmp_path / "report.html", observations, thumbnails))
    sprite = data["sprites"]["1"]
    assert sprite["columns"] == 2
    kind, _, encoded = sprite["uri"].partition(",")
    assert kind == "data:image/webp;base64"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))
    second = thumbnails[4]  # images 1 and 4 are of class 1
    np.testing.assert_array_equal(picture[:8, 8:16], np.broadcast_to(second, (8, 8, 3)))


def test_a_page_of_ten_thousand_images_is_small_and_says_what_it_shows(tmp_path):
    observations = observe(images=10_000, classes=10, widths=(64,) * 8)
    page = write(tmp_path / "report.html", observations, paint(10_000, size=32))
    assert "a random sample, 1,000 of 10,000, stratified by class" in page
    assert (tmp_path / "report.html").stat().st_size < 10e6
    counts = np.bincount(unpack(read_data(page)["group"]))
    np.testing.assert_array_equal(counts, [100] * 10)


def test_the_sample_is_in_proportion_and_leaves_no_class_out():
    labels = np.repeat([0, 1, 2, -1], [700, 200, 2, 98])
    chosen = choose_sample(labels, 100, seed=0)
    assert len(set(chosen)) == 100
    counts = np.bincount(np.where(labels[chosen] < 0, 3, labels[chosen]))
    np.testing.assert_allclose(counts, [70, 20, 1, 9], atol=1)
    assert counts[2] >= 1
    np.testing.assert_array_equal(chosen, choose_sample(labels, 100, seed=0))
    assert set(chosen) != set(choose_sample(labels, 100, seed=1))
    assert len(choose_sample(labels, 2, seed=0)) == 2
    assert len(choose_sample(labels, 10_000, seed=0)) == 1000


def test_names_cannot_break_out_of_the_page(tmp_path):
    observations = observe(names=NASTY)
    figure = tmp_path / "a.svg"
    figure.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    page = write(
        tmp_path / "report.html",
        observations,
        title=NASTY[0],
        summary=[(NASTY[1], NASTY[0])],
        figures=[(NASTY[0], NASTY[1], figure)],
    )
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("</script>") == 3  # theme, data, program
    assert read_data(page)["classes"] == list(NASTY)


def test_nothing_points_at_a_network(tmp_path):
    page = write(tmp_path / "report.html", observe())
    links = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", page.split('<script type="application/json"')[0])
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.findall(r"https?:|\bimport\b|fetch\(|XMLHttpRequest|eval\(|innerHTML", page)
    assert "default-src 'none'" in page
    assert "unsafe-inline" not in page


def test_ablation_is_embedded(tmp_path):
    ablation = {"gates": [4, 2], "accuracy": [0.5, 1, float("nan")], "shut": [[0, 1, 0], [0.5, 0, 0]]}
    ablation["open"] = [[0.25, 1, 0], [0.5, 0.5, 0]]
    data = read_data(write(tmp_path / "report.html", observe(), ablation=ablation))["ablation"]
    for name, values in ablation.items():
        np.testing.assert_array_equal(unpack(data[name]), np.array(values))


def test_pages_without_known_classes_or_without_choices(tmp_path):
    unknown = observe(unknown=40)
    page = write(tmp_path / "unknown.html", unknown)
    assert "accuracy" not in page.split("<h2")[1].split("</dl>")[0]
    np.testing.assert_array_equal(unpack(read_data(page)["groupCount"]), [0, 0, 0, 40])
    constant = dataclasses.replace(unknown, gates=np.broadcast_to(unknown.gates[:1], unknown.gates.shape))
    assert "No filter depends on the image here" in write(tmp_path / "constant.html", constant)


def test_the_same_page_for_the_same_input(tmp_path):
    assert write(tmp_path / "a.html", observe(), sample=10) == write(tmp_path / "b.html", observe(), sample=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(thumbnails=paint(39)), "39 thumbnails do not fit 40 observations"),
        (dict(thumbnails=paint(40).astype(np.float32)), "expected uint8"),
        (dict(thumbnails=paint(40, channels=2)), "expected uint8"),
        (dict(statistics=compute_statistics(observe(widths=(4,)))), "not of these observations"),
        (dict(sample=0), "at least one image"),
        (dict(observations=dataclasses.replace(observe(), class_names=("a", "b"))), "class names"),
        (dict(observations=dataclasses.replace(observe(), gates=np.zeros((40, 0), bool))), "has none"),
        (dict(observations=dataclasses.replace(observe(), gates=np.zeros((0, 21), bool))), "needs images"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change, message):
    arguments = dict(observations=observe(), statistics=compute_statistics(observe()), thumbnails=paint(40)) | change
    with pytest.raises(UserError, match=message):
        write_report(tmp_path / "report.html", title="", summary=[], figures=[], **arguments)
    assert not (tmp_path / "report.html").exists()


def test_a_figure_of_another_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"figure\.pdf cannot be embedded"):
        write(tmp_path / "report.html", observe(), figures=[("a", "b", tmp_path / "figure.pdf")])

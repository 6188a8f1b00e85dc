"""Damaged pictures of all formats: a picture, or a sentence; soon; and the same answer from all who read it.

And damaged metadata, of pictures and of a dataset.

    pytest tests/data/test_fuzz.py                                  a few of each, as in every run of the suite
    FUZZ_SEED=7 FUZZ_COUNT=2000 pytest -m slow tests/data/test_fuzz.py     as many as wanted, from any seed

A failure names the seed and the number of the file, with which `mutated` and the like make it again.
"""

import io
import os
import struct
import time

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gaternet_jax.config import default
from gaternet_jax.data.datasets import class_names, find_dataset
from gaternet_jax.data.decode import decode_image
from gaternet_jax.data.images import Box, center_box, read_box
from gaternet_jax.data.prepare.folders import prepare_folder
from gaternet_jax.data.prepare.image_files import to_store
from gaternet_jax.data.reader import Reader
from gaternet_jax.errors import UserError
from tests.data.test_orientation import exif_of, xmp_of
from tests.image_folders import make_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of what is odd
SEED = int(os.environ.get("FUZZ_SEED", "0"))
COUNT = int(os.environ.get("FUZZ_COUNT", "300"))  # of each kind, in the long form
SECONDS = 120  # for one picture; a damaged header can claim 179 million pixels, which take some seconds
SIZE = 16


def save(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def corpus():
    """Whole files, by name: every format, mode and kind of metadata."""
    y, x = np.mgrid[:40, :56] / 9
    waves = 127 + 90 * np.stack([np.sin(x + y), np.cos(2 * x), np.sin(y / 2 - x)], -1)
    pixels = np.clip(waves + np.random.default_rng(0).normal(0, 6, waves.shape), 0, 255).astype(np.uint8)
    rgb = Image.fromarray(pixels)
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(pixels[..., 0]))
    sixteen = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    gray, palette, frames = rgb.convert("L"), rgb.convert("P"), {"save_all": True, "append_images": [rgb.rotate(180)]}
    exif, xmp, text = exif_of(6), xmp_of(6), PngInfo()
    text.add_text("Title", "waves" * 20, zip=True)
    text.add_itxt("XML:com.adobe.xmp", xmp.decode(), zip=True)
    return {
        "jpeg": save(rgb, "JPEG"),
        "jpeg metadata": save(rgb, "JPEG", exif=exif, xmp=xmp, icc_profile=bytes(200), comment=b"waves"),
        "jpeg progressive": save(rgb, "JPEG", progressive=True),
        "jpeg gray": save(gray, "JPEG"),
        "jpeg cmyk": save(rgb.convert("CMYK"), "JPEG"),
        "jpeg restarts": save(rgb, "JPEG", restart_marker_rows=1, subsampling=0),
        "mpo": save(rgb, "MPO", **frames),
        "png": save(rgb, "PNG"),
        "png metadata": save(rgb, "PNG", exif=exif, pnginfo=text, icc_profile=bytes(200)),
        "png rgba": save(rgba, "PNG"),
        "png gray alpha": save(rgba.convert("LA"), "PNG"),
        "png palette": save(palette, "PNG", transparency=bytes(range(0, 256, 5))),
        "png key": save(rgb, "PNG", transparency=(1, 2, 3)),
        "png 16 bits": save(sixteen, "PNG"),
        "png animated": save(rgb, "PNG", **frames),
        "webp": save(rgb, "WEBP"),
        "webp metadata": save(rgba, "WEBP", lossless=True, exif=exif, xmp=xmp, icc_profile=bytes(200)),
        "webp animated": save(rgb, "WEBP", **frames),
        "gif": save(rgba, "GIF"),
        "gif animated": save(rgb, "GIF", **frames),
        "bmp": save(rgb, "BMP"),
        "tiff": save(rgb, "TIFF", tiffinfo={0x112: 6, 700: xmp}),
        "tiff lzw": save(rgb, "TIFF", compression="tiff_lzw", tiffinfo={0x112: 6, 0x8769: 2**31}),
        "tiff deflate": save(rgba, "TIFF", compression="tiff_adobe_deflate"),
        "tiff 16 bits": save(sixteen, "TIFF"),
        "tiff float": save(rgb.convert("F"), "TIFF"),
        "avif": save(rgb, "AVIF", speed=10, exif=exif, xmp=xmp),
        "avif alpha": save(rgba, "AVIF", speed=10),
        "ppm": save(rgb, "PPM"),
        "pgm 16 bits": b"P5 56 40 65535\n" + np.asarray(sixteen).astype(">u2").tobytes(),
        "ppm text": b"P3 8 8 255\n" + b"10 200 30\n" * 64,
        "jpeg 2000": save(rgba, "JPEG2000"),
        "tga": save(rgba, "TGA", compression="tga_rle"),
        "dds": save(rgba, "DDS"),
        "ico": save(rgba, "ICO"),
        "qoi": save(rgba, "QOI"),
        "pcx": save(rgb, "PCX"),
        "sgi": save(rgb, "SGI"),
        "xbm": save(rgb.convert("1"), "XBM"),
    }


WHOLE = corpus()


def mutated(name, seed, number):
    """The number-th damaged file of this kind."""
    return damage(WHOLE[name], np.random.default_rng([seed, number, *name.encode()]))


def damage(whole_file, random):
    file, kind = bytearray(whole_file), random.integers(9)
    at, length = int(random.integers(len(file))), int(random.integers(1, 32))
    if kind == 0:
        return bytes(file[:at])
    if kind == 1:
        return bytes(file[:at]) + b"\xff\xd9"
    if kind == 2:
        return bytes(file) + random.bytes(length)
    if kind == 3:
        del file[at : at + length]
    elif kind == 4:
        file[at:at] = random.bytes(length)
    elif kind == 5:  # lengths, places and sizes are in the beginning
        at = min(at, int(random.integers(400)))
        file[at : at + 4] = bytes(random.choice([0, 1, 127, 128, 255], 4).tolist())
    elif kind == 6:
        at = min(at, int(random.integers(400)))
        file[at : at + 4] = struct.pack(str(random.choice(["<L", ">L"])), int(random.integers(2**16)))
    else:
        for _ in range(int(random.integers(1, 6))):
            file[int(random.integers(len(file) if kind == 7 else min(len(file), 200)))] = int(random.integers(256))
    return bytes(file)


def whole(height, width):
    return Box(0, 0, height, width)


def attempt(read, file):
    try:
        return read(file)
    except UserError as error:
        assert ("\n" not in str(error).strip() and "cannot be read" in str(error)) or "empty file" in str(error)
        return None


def read(file, choose=whole, fast=False):
    return read_box(file, choose, SIZE, channels=3, resize="area", fast=fast)


def close(a, b):
    return np.abs(a.astype(int) - b).max() <= 16


def check(file):
    """What reads a file by either decoder reads it by the other, before and after it was prepared."""
    decoded, seen, stored = attempt(lambda f: decode_image(f, 3), file), attempt(read, file), attempt(to_store, file)
    assert (decoded is None) == (seen is None) == (stored is None), "one reads it, another does not"
    quick = attempt(lambda f: read(f, center_box, fast=True), file)  # may pass over damage beyond the crop
    assert decoded is None or quick is not None, "evaluation reads it, training does not"
    if decoded is None or seen is None or stored is None:
        return
    again = attempt(read, stored)
    assert again is not None and close(again, seen), "what is stored is another picture"
    if min(decoded.shape[:2]) >= SIZE:
        assert close(read(save(Image.fromarray(decoded), "PNG")), seen), "two decoders see two pictures"


def fuzz(name, numbers):
    for number in numbers:
        start, file = time.perf_counter(), mutated(name, SEED, number)
        try:
            check(file)
            assert time.perf_counter() - start < SECONDS, "it takes too long"
        except Exception as error:
            pytest.fail(f"mutated({name!r}, seed={SEED}, number={number}): {type(error).__name__}: {error}")


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_pictures(name):
    check(WHOLE[name])
    fuzz(name, range(12))


UPRIGHT = np.tile(np.repeat([[255], [0]], 8, 0).astype(np.uint8)[..., None], (1, 24, 3))


def with_metadata(format, exif, xmp, profile):
    options = {"JPEG": {"quality": 95}, "AVIF": {"quality": 95, "speed": 10}, "WEBP": {"lossless": True}}.get(
        format, {}
    )
    if format == "PNG":
        options["pnginfo"] = PngInfo()
        for name, content in ((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp), (b"zTXt", b"Comment\0\0" + xmp)):
            options["pnginfo"].add(name, content)
        options["pnginfo"].add(b"tEXt", b"Raw profile type exif\0\nexif\n99\n" + exif.hex().encode())
    elif format == "TIFF":
        options["tiffinfo"] = {700: xmp, 34675: profile, 34377: exif, 33723: exif, 0x8769: len(xmp), 0x8825: len(exif)}
    if format != "TIFF":
        options |= {"exif": exif, "xmp": xmp, "icc_profile": profile} if format != "PNG" else {"exif": exif}
    return save(Image.fromarray(UPRIGHT), format, **options)


def fuzz_metadata(format, numbers):
    """Whatever is in them, the picture is there, turned or not, the same for all."""
    for number in numbers:
        random = np.random.default_rng([SEED, number, *format.encode()])
        parts = [damage(part, random) for part in (exif_of(6), xmp_of(6), bytes(200))]
        try:
            file = with_metadata(format, *parts)
        except Exception:
            continue  # Pillow does not write such
        try:
            check(file)
            decoded = decode_image(file, 3)
            turned = decoded if decoded.shape == UPRIGHT.shape else np.rot90(decoded)
            assert any(close(turn(turned), UPRIGHT) for turn in (np.asarray, np.flipud)), "another picture"
        except Exception as error:
            pytest.fail(f"with_metadata({format!r}, ...), seed={SEED}, number={number}: {error}")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_damaged_metadata(format):
    fuzz_metadata(format, range(20))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_much_damaged_metadata(format):
    fuzz_metadata(format, range(COUNT))


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_many_damaged_pictures(name):
    fuzz(name, range(COUNT))


def fuzz_dataset(tmp_path, numbers):
    """Damaged metadata of a prepared dataset: it is read, or refused by a sentence."""
    folder = prepare_folder(make_folder(tmp_path / "images", 1, 1), tmp_path / "data", "pets", workers=1)
    config = default()
    config.data.update(name="pets", image_size=SIZE)
    for name in ("dataset_info.json", "features.json", "label.labels.txt"):
        whole_file = (folder / name).read_bytes()
        for number in numbers:
            (folder / name).write_bytes(damage(whole_file, np.random.default_rng([SEED, number, *name.encode()])))
            try:
                builder = find_dataset("pets", str(tmp_path / "data"))
                class_names(builder)
                reader = Reader(builder, "test", config)
                for index in range(len(reader)):
                    reader.read(index, np.empty(reader.shape, np.uint8))
            except UserError:
                pass
            except Exception as error:
                pytest.fail(f"{name}, seed={SEED}, number={number}: {type(error).__name__}: {error}")
        (folder / name).write_bytes(whole_file)


def test_damaged_metadata_of_a_dataset(tmp_path):
    fuzz_dataset(tmp_path, range(20))


@pytest.mark.slow
def test_much_damaged_metadata_of_a_dataset(tmp_path):
    fuzz_dataset(tmp_path, range(COUNT))

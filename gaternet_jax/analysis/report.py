"""A page about a gater, for people: one file that opens from disk and asks no network for anything.

observations, statistics, thumbnails -> a stated sample -> packed data + style + scripts -> report.html

`page/` holds the template, the style and the scripts. Numbers travel as deflated little-endian arrays in base64; the
gates as bits, row by row.
"""

import base64
import hashlib
import html
import io
import json
import re
import zlib
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gaternet_jax.analysis.observe import Observations
from gaternet_jax.analysis.statistics import ALWAYS_OFF, ALWAYS_ON, INPUT_DEPENDENT, Statistics, stage_of, unit_of
from gaternet_jax.errors import UserError
from gaternet_jax.files import write_file

# One after the other they are one program.
SCRIPTS = ("data.js", "view.js", "map.js", "modes.js", "texts.js", "filter.js", "picker.js", "glance.js", "start.js")
LOSSLESS_BYTES = 8_000_000  # thumbnails with more pixels than this are compressed with loss
QUALITY = 80  # of WebP with loss
RATE_STEPS = 255  # open rates of classes travel as bytes
IMAGE_TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def write_report(
    path: Path,
    *,
    title: str,
    summary: list[tuple[str, str]],
    observations: Observations,
    statistics: Statistics,
    thumbnails: np.ndarray,
    figures: list[tuple[str, str, Path]],
    ablation: dict[str, Any] | None = None,
    sample: int = 1000,
    seed: int = 0,
) -> None:
    """Writes the report's page.

    All numbers on it are of all images, except what is said to be of the sample: the images one can pick.

    Args:
        path: of the file; its folder is made.
        title: the page's heading.
        summary: names and values of facts about the run.
        observations: of the split.
        statistics: of the observations.
        thumbnails: uint8 [N, H, W, C], C 1 or 3, the images in the order of the observations.
        figures: title, caption and SVG or PNG file of each figure.
        ablation: accuracies when a filter is always shut or always open: gates (list of n gate numbers), accuracy
            ([K], of the untouched model), shut and open (n lists [K]); fractions.
        sample: how many images go into the page, in each class in proportion to its images.
        seed: of the choice of those images.

    Raises:
        UserError: thumbnails, statistics or labels that do not fit the observations, a model without gates, no images,
            or a figure that is neither SVG nor PNG.
    """
    _check(observations, statistics, thumbnails, sample)
    figure_elements = [_figure(*figure) for figure in figures]
    chosen = choose_sample(observations.labels, sample, seed)
    data = page_data(observations, statistics, thumbnails, chosen, ablation)
    page = {name: _asset(name) for name in ("template.html", "style.css", "theme.js")}
    program = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"
    parts = {
        "title": html.escape(title),
        "policy": _policy([page["theme.js"], program], page["style.css"]),
        "style": page["style.css"],
        "theme": page["theme.js"],
        "story": _story(observations, statistics),
        "summary": "".join(
            f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in summary
        ),
        "sample": _sample_sentence(len(chosen), len(observations.labels)),
        "figures": "".join(figure_elements) or "<p>No figures were made.</p>",
        "data": embed_json(data),
        "program": program,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    filled = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page["template.html"])
    write_file(path, filled)


def choose_sample(labels: np.ndarray, sample: int, seed: int) -> np.ndarray:
    """Chooses images, stratified by class: each class in proportion, and at least one image where `sample` allows.

    Args:
        labels: int [N]; unknown ones (-1) are a class of their own.
        sample: how many, at most.
        seed: the same choice for the same seed.

    Returns:
        int64 [min(sample, N)], ordered by class (unknown last), then by number.
    """
    random = np.random.default_rng(seed)
    place = np.empty(len(labels))  # of an image in its shuffled class, from 0 to 1; the class's first before all others
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        shuffled = (np.arange(len(members)) + random.uniform()) / len(members)
        shuffled[0] -= 1
        place[random.permutation(members)] = shuffled
    chosen = np.sort(np.argsort(place, kind="stable")[:sample])
    group = np.where(labels[chosen] < 0, np.iinfo(np.int32).max, labels[chosen])
    return chosen[np.argsort(group, kind="stable")]


def page_data(
    observations: Observations,
    statistics: Statistics,
    thumbnails: np.ndarray,
    chosen: np.ndarray,
    ablation: dict[str, Any] | None,
) -> dict[str, Any]:
    """Gives what the page's scripts read. Groups are the classes, and the images of unknown class if there are any."""
    labels, num_classes = observations.labels, len(observations.class_names)
    groups = np.where(labels < 0, num_classes, labels)
    counts = np.bincount(groups, minlength=num_classes)
    rates = statistics.open_rate_by_class
    if len(counts) > num_classes:
        rates = np.concatenate([rates, observations.gates[groups == num_classes].mean(0)[None]])
    gates = np.packbits(observations.gates[chosen].astype(bool), axis=1, bitorder="little")
    return {
        "images": len(labels),
        "thumbnail": list(thumbnails.shape[1:3]),
        "classes": list(observations.class_names),
        "sites": [
            {
                "name": site.name,
                "stage": stage_of(site),
                "unit": unit_of(site),
                "offset": site.offset,
                "size": site.size,
            }
            for site in observations.sites
        ],
        "index": pack(chosen.astype(np.int32)),
        "group": pack(groups[chosen].astype(np.int32)),
        "prediction": pack(observations.predictions[chosen].astype(np.int32)),
        "confidence": pack(observations.confidences[chosen].astype(np.float32)),
        "macs": pack(observations.macs[chosen].astype(np.float32)),
        "gates": pack(gates),
        "kind": pack(statistics.kinds.astype(np.uint8)),
        "openRate": pack(statistics.open_rate.astype(np.float32)),
        "information": pack(statistics.mutual_information.astype(np.float32)),
        "groupCount": pack(counts.astype(np.int32)),
        "groupRate": pack(quantize_rates(rates)),
        "overlap": pack(np.round(np.nan_to_num(statistics.overlap) * 65535).astype(np.uint16)),
        "sprites": _sprites(thumbnails[chosen], groups[chosen]),
        "ablation": ablation and _pack_ablation(ablation),
    }


def quantize_rates(rates: np.ndarray) -> np.ndarray:
    """Gives rates in [0, 1] as bytes; 0 and 255 mean never and always, exactly. NaN becomes 0."""
    rates = np.nan_to_num(rates)
    steps = np.clip(np.round(rates * RATE_STEPS), 1, RATE_STEPS - 1)
    return np.select([rates <= 0, rates >= 1], [0, RATE_STEPS], steps).astype(np.uint8)


def pack(array: np.ndarray) -> dict[str, Any]:
    """Gives an array as JSON: type, shape, and its little-endian bytes, deflated, in base64."""
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
    data = base64.b64encode(zlib.compress(little.tobytes())).decode()
    return {"type": array.dtype.name, "shape": list(array.shape), "data": data}


def embed_json(data: dict[str, Any]) -> str:
    """Gives JSON that may stand in a script element: no "<", hence neither "</script>" nor "<!--"."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _pack_ablation(ablation: dict[str, Any]) -> dict[str, Any]:
    accuracies = {name: np.asarray(ablation[name], np.float32) for name in ("accuracy", "shut", "open")}
    return {
        "gates": pack(np.asarray(ablation["gates"], np.int32)),
        **{name: pack(array) for name, array in accuracies.items()},
    }


def _sprites(thumbnails: np.ndarray, groups: np.ndarray) -> dict[str, dict[str, Any]]:
    """Gives, by group: one picture of all its thumbnails, row by row, as a data URI, and how many stand in a row."""
    lossless = thumbnails.nbytes <= LOSSLESS_BYTES
    if thumbnails.shape[-1] == 1:
        thumbnails = thumbnails.repeat(3, axis=-1)
    sprites = {}
    for group in np.unique(groups):
        tiles = thumbnails[groups == group]
        count, height, width, _ = tiles.shape
        columns = int(np.ceil(np.sqrt(count)))
        rows = -(-count // columns)
        grid = np.zeros((rows * columns, height, width, 3), np.uint8)
        grid[:count] = tiles
        picture = (
            grid.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
        )
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "webp", lossless=lossless, quality=QUALITY, method=4)
        uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
        sprites[str(group)] = {"uri": uri, "columns": columns}
    return sprites


def _story(observations: Observations, statistics: Statistics) -> str:
    """Writes the first screen, in words and one chart; it needs no script."""
    total = len(statistics.kinds)
    off, dependent, on = (int((statistics.kinds == kind).sum()) for kind in (ALWAYS_OFF, INPUT_DEPENDENT, ALWAYS_ON))
    opened = observations.gates.sum(1)
    known = observations.labels >= 0
    tiles = [("gated filters", f"{total:,}"), ("depend on the image", f"{dependent:,}")]
    if known.any():
        right = (observations.predictions == observations.labels)[known].mean()
        tiles.append(("top-1 accuracy", f"{100 * right:.1f} %"))
    tiles.append(("of the dense work (MACs)", f"{100 * observations.macs.mean():.0f} %"))
    if dependent:
        finding = (
            f"<strong>{dependent:,} of its {total:,} gated filters depend on the image</strong>: different pictures "
            f"run through different filters. An image opens {opened.min():,} to {opened.max():,} filters, "
            f"{opened.mean():,.0f} on average."
        )
    else:
        finding = (
            "<strong>No filter depends on the image here</strong>: every picture runs through the same "
            f"{on:,} of {total:,} filters."
        )
    cells = "".join(f"<div><dd>{value}</dd><dt>{name}</dt></div>" for name, value in tiles)
    return (
        "<p class='lead'>A gated network looks twice. First the gater sees the whole image and opens or closes each "
        f"filter of the backbone; then the backbone classifies with the open filters alone. {finding}</p>"
        f"<dl class='tiles'>{cells}</dl>{_kinds_bar(off, dependent, on)}"
    )


def _kinds_bar(off: int, dependent: int, on: int) -> str:
    parts = (("on", "always open", on), ("dependent", "depend on the image", dependent), ("off", "always closed", off))
    total = off + dependent + on
    label = ", ".join(f"{count:,} {words}" for _, words, count in parts)
    start, bars = 0.0, ""
    for name, _, count in parts:
        width = 100 * count / total
        bars += f"<rect class='kind-{name}' x='{start:.3f}%' width='{width:.3f}%' height='18'/>"
        start += width
    keys = "".join(
        f"<li><svg width='12' height='12' aria-hidden='true'><rect class='kind-{name}' width='12' height='12'/></svg> "
        f"{count:,} {words}</li>"
        for name, words, count in parts
    )
    return (
        f"<svg class='kinds' role='img' aria-label='Gated filters: {label}' width='100%' height='18'>{bars}</svg>"
        f"<ul class='keys'>{keys}</ul>"
    )


def _sample_sentence(chosen: int, total: int) -> str:
    if chosen == total:
        return f"Shown here: all {total:,} images."
    return (
        f"The images to pick from are a random sample, {chosen:,} of {total:,}, stratified by class. "
        "Rates are of all images."
    )


def _figure(title: str, caption: str, path: Path) -> str:
    kind = IMAGE_TYPES.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"figure {path} cannot be embedded: expected a file that ends in .svg or .png")
    data = base64.b64encode(path.read_bytes()).decode()
    title, caption = html.escape(title), html.escape(caption)
    return (
        f"<figure><h3>{title}</h3><img src='data:{kind};base64,{data}' alt='Chart: {title}' loading='lazy'>"
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _policy(scripts: list[str], style: str) -> str:
    """Makes a Content-Security-Policy under which the page's own scripts run, and nothing can reach a network."""
    *of_scripts, of_style = (
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in (*scripts, style)
    )
    return (
        f"default-src 'none'; img-src data:; style-src {of_style}; script-src {' '.join(of_scripts)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _asset(name: str) -> str:
    return (resources.files("gaternet_jax.analysis") / "page" / name).read_text(encoding="utf-8")


def _check(observations: Observations, statistics: Statistics, thumbnails: np.ndarray, sample: int) -> None:
    images, gates = observations.gates.shape
    if not images:
        raise UserError("a report needs images, but there are no observations")
    if not gates:
        raise UserError("a report needs gates, but this model has none: give one that is gated")
    if sample < 1:
        raise UserError(f"a report needs a sample of at least one image, not {sample}")
    if thumbnails.dtype != np.uint8 or thumbnails.ndim != 4 or thumbnails.shape[-1] not in (1, 3):
        raise UserError(f"thumbnails are {thumbnails.dtype} {thumbnails.shape}; expected uint8 [N, H, W, 1 or 3]")
    if len(thumbnails) != images:
        raise UserError(f"{len(thumbnails)} thumbnails do not fit {images} observations: give one per image")
    if observations.labels.max() >= len(observations.class_names):
        largest, named = observations.labels.max(), len(observations.class_names)
        raise UserError(f"label {largest} has no name: {named} class names were given")
    if statistics.open_rate_by_class.shape != (len(observations.class_names), gates):
        shape = statistics.open_rate_by_class.shape
        raise UserError(f"statistics of {shape} (classes, gates) are not of these observations")

"""The whole analysis of a checkpoint: images -> gates -> statistics, map, ablation -> files."""

import contextlib
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gaternet_jax.analysis.ablation import Ablation, ablate
from gaternet_jax.analysis.embedding import map_images, probe_gates
from gaternet_jax.analysis.figures import draw_figures, read_training
from gaternet_jax.analysis.image_source import folder_source, split_source
from gaternet_jax.analysis.observe import Observed, load_gated, pass_images, save_observations
from gaternet_jax.analysis.plot import Subject
from gaternet_jax.analysis.portraits import filter_portrait, image_portrait, unusual_images
from gaternet_jax.analysis.report import write_report
from gaternet_jax.analysis.statistics import INPUT_DEPENDENT, compute_statistics, plain, save_statistics
from gaternet_jax.config import RunConfig
from gaternet_jax.errors import UserError
from gaternet_jax.files import write_file
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.training.evaluate import note_on_gates
from gaternet_jax.workdir import load_config, load_labels


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what to analyse.

    Attributes:
        split: a split's name or a part of one; None: the split that the run evaluates on.
        images: a folder of image files, in place of a split.
        data_dir: folder of the prepared datasets; "": as in the run's config.
        filters: how many of the most class-specific filters are forced shut and open, and portrayed.
        sample: how many images they are forced for, evenly spaced.
    """

    split: str | None = None
    images: Path | None = None
    data_dir: str = ""
    filters: int = 16
    sample: int = 500


class _Run(NamedTuple):
    subject: Subject
    observed: Observed
    ablation: Ablation | None


def analyze(workdir: Path, out: Path, options: Options, compare: Path | None = None) -> list[str]:
    """Analyses the best checkpoint of a workdir, and writes all that docs/analysis.md lists.

    Args:
        workdir: of a training run or a conversion.
        out: folder to write to; files of an earlier analysis are replaced.
        options: what to analyse.
        compare: a second workdir: figures then have two columns.

    Returns:
        The main results, a line each.

    Raises:
        UserError: no checkpoint, a plain model, no such images, or a folder that cannot be written to.
    """
    if options.split and options.images:
        raise UserError(f"--split={options.split} and --images={options.images} were both given; choose one of them")
    workdirs = [workdir, compare] if compare else [workdir]
    models = [(load_gated(folder), load_config(folder)) for folder in workdirs]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    alike = len({folder.name for folder in workdirs}) < len(workdirs)
    runs = [
        _examine(model, config, folder, str(folder) if alike else folder.name, options)
        for (model, config), folder in zip(models, workdirs, strict=True)
    ]
    with _timed("Statistics and gates written"):
        for run, prefix in zip(runs, ("", "compared-"), strict=False):
            _save(out, prefix, run, options)
    with _timed("Figures"):
        figures = draw_figures(out, [run.subject for run in runs])
    subject, observed, ablation = runs[0]
    summary = _summarize(subject)
    with _timed("Page"):
        write_report(
            out / "report.html",
            title=f"Gates of {workdir.name}",
            summary=summary,
            observations=observed.observations,
            statistics=subject.statistics,
            thumbnails=observed.thumbnails,
            figures=[(figure.title, figure.caption, figure.svg) for figure in figures],
            ablation=ablation and _plain_ablation(ablation),
        )
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _say(f"Peak memory: {kilobytes * (1 if sys.platform == 'darwin' else 1024) / 1e9:.2f} GB")
    return [f"{name}: {value}" for name, value in summary]


def _examine(model: GaterNet, config: RunConfig, workdir: Path, name: str, options: Options) -> _Run:
    labels = load_labels(workdir)
    source = (
        folder_source(options.images, config, labels)
        if options.images
        else split_source(workdir, config, options.split, options.data_dir)
    )
    with _timed(f"Gates of {source.num_images:,} images"):
        observed = pass_images(model, config, source, labels, options.sample)
    observations = observed.observations
    with _timed("Statistics"):
        statistics = compute_statistics(observations)
    if not statistics.has_classes:
        _say("No image's class is known (sub-folders named like the model's classes would tell): no accuracy, mutual")
        _say("information, overlap of classes, linear probe or ablation")
    probe = ablation = None
    if statistics.has_classes:
        with _timed("Linear probe"):
            probe = probe_gates(observations.gates, observations.labels)
    with _timed("Map of the images (PCA, t-SNE)"):
        map_ = map_images(observations.gates, observations.labels)
    if map_ is None:
        _say("No map: too few images, or too few gates that depend on them")
    filters = statistics.most_specific(options.filters)
    if len(filters):
        with _timed(f"{len(filters)} filters forced shut and open for {len(observed.sample)} images"):
            ablation = ablate(model, config, observed.images, observed.sample, observations, filters)
    elif statistics.has_classes:
        _say("No ablation: no gate depends on the image")
    return _Run(Subject(name, observations, statistics, map_, probe, read_training(workdir)), observed, ablation)


def _save(out: Path, prefix: str, run: _Run, options: Options) -> None:
    subject, observations, statistics = run.subject, run.observed.observations, run.subject.statistics
    save_observations(out / f"{prefix}gates.npz", observations)
    map_ = subject.map
    further = {
        "linear_probe": subject.probe and dataclasses.asdict(subject.probe),
        "map": map_
        and {"images": len(map_.images), "dimensions": map_.dimensions}
        | {"neighbour_purity": map_.purity, "neighbour_purity_with_shuffled_labels": map_.shuffled},
        "ablation": run.ablation and _plain_ablation(run.ablation),
    }
    save_statistics(out / f"{prefix}statistics.json", statistics, further)
    filters = statistics.most_specific(options.filters)
    portraits = {
        "filters": [filter_portrait(observations, statistics, gate) for gate in filters.tolist()],
        "images": [
            image_portrait(observations, statistics, image)
            for image in unusual_images(observations, statistics, options.filters).tolist()
        ],
    }
    text = json.dumps(plain(portraits), indent=1, allow_nan=False)
    write_file(out / f"{prefix}portraits.json", text + "\n")


def _plain_ablation(ablation: Ablation) -> dict[str, Any]:
    return {
        "gates": ablation.filters.tolist(),
        "images_by_class": ablation.images_by_class.tolist(),
        "accuracy": ablation.as_is.tolist(),
        "shut": ablation.shut.tolist(),
        "open": ablation.opened.tolist(),
    }


def _summarize(subject: Subject) -> list[tuple[str, str]]:
    """Lists the main facts, for the page's head and the terminal."""
    statistics, probe, map_ = subject.statistics, subject.probe, subject.map
    counts = statistics.open_per_image
    off, dependent, on = np.bincount(statistics.kinds, minlength=3)
    facts = [("images", f"{len(counts):,}")]
    if statistics.has_classes:
        facts.append(("accuracy", f"{statistics.accuracy:.2%}"))
    few = int(statistics.almost_constant.sum())
    gates = len(statistics.kinds)
    note = note_on_gates(float(statistics.open_rate.mean()), int(dependent) / gates)
    facts += [
        ("gates", f"{len(statistics.kinds):,}: {off:,} always off, {dependent:,} input-dependent, {on:,} always on"),
        ("input-dependent gates that almost never change", f"{few:,}"),
        *([("note on the gates", note)] if note else []),
        ("open gates per image", f"{counts.min():,} to {counts.max():,}, mean {counts.mean():,.1f}"),
        ("multiply-accumulates of the backbone", f"{statistics.macs['mean']:.1%} of dense (mean)"),
    ]
    if statistics.has_classes and (statistics.kinds == INPUT_DEPENDENT).any():
        bits = statistics.mutual_information.max()
        facts.append(("most that a gate tells about the class", f"{bits:.2f} bits"))
    if probe:
        chance = f"most frequent class {probe.majority:.1%}, shuffled labels {probe.shuffled:.1%}"
        facts.append(("linear classifier on gates alone", f"{probe.accuracy:.1%} of held-out images ({chance})"))
    if map_ and not np.isnan(map_.purity):
        facts.append(("neighbours of the same class in the map", f"{map_.purity:.1%} (shuffled {map_.shuffled:.1%})"))
    return facts


@contextlib.contextmanager
def _timed(part: str) -> Iterator[None]:
    """Says how long a part took."""
    start = time.perf_counter()
    yield
    _say(f"{part}: {time.perf_counter() - start:.1f} s")


def _say(text: str) -> None:
    print(text, flush=True)

"""Figures of gates and classes: a column of a figure and a subject -> the axes drawn into it."""

from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from gaternet_jax.analysis.embedding import NEIGHBOURS
from gaternet_jax.analysis.plot import (
    ACCENT,
    DEPENDENT,
    OFF,
    UNITS_LABEL,
    Plot,
    Subject,
    dependent_gates,
    has_dependent,
    name_units,
)
from gaternet_jax.analysis.statistics import INPUT_DEPENDENT
from gaternet_jax.gating.sites import group_gates

CLASS_COLOURS = (  # Tol's "muted", for any kind of colour vision
    *("#332288", "#88ccee", "#117733", "#ddcc77", "#cc6677", "#44aa99", "#aa4499", "#999933", "#882255"),
    "#222222",
)
CLASS_MARKERS = "osD^vPX*<>"  # a class is told by colour and by shape
MAX_LEGEND = 20  # classes with a colour and shape of their own
MAX_TICKS = 40  # classes with their names at the axes
MAX_NUMBERS = 12  # classes with their numbers in the cells


def _draw_map(column: Any, subject: Subject) -> list[Any]:
    axes, of = column.subplots(), subject.map
    assert of is not None
    labels, names = subject.observations.labels[of.images], subject.statistics.class_names
    x, y = of.points.T
    style = dict(s=13, linewidths=0, alpha=0.85)
    known = labels >= 0
    unknown = axes.scatter(x[~known], y[~known], color=OFF, **style)
    if len(names) <= MAX_LEGEND:
        entries = [] if known.any() else [(unknown, "class not known")]
        for label in np.unique(labels[known]):
            colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
            marker = CLASS_MARKERS[(label + label // len(CLASS_COLOURS)) % len(CLASS_MARKERS)]
            of_class = labels == label
            points = axes.scatter(x[of_class], y[of_class], color=colour, marker=marker, **style)
            entries.append((points, names[label]))  # given by themselves, names may begin with "_"
        where = dict(loc="center left", bbox_to_anchor=(1, 0.5))
        axes.legend(*zip(*entries, strict=True), **where, markerscale=2, handletextpad=0.2, title="class")
    else:
        points = axes.scatter(x[known], y[known], c=labels[known], cmap="viridis", **style)
        column.colorbar(points, ax=axes, label="class (number)")
    title = f"{of.purity:.0%} of an image's neighbours are of its class" if known.any() else "Images by their gates"
    axes.set(title=title, xticks=[], yticks=[], xlabel="t-SNE, first axis", ylabel="t-SNE, second axis")
    axes.set_aspect("equal", adjustable="datalim")
    return [axes]


def _map_caption(subject: Subject) -> str:
    of, probe = subject.map, subject.probe
    assert of is not None
    text = f"{len(of.images):,} images, PCA to {of.dimensions} dimensions."
    if not np.isnan(of.purity):
        text += (
            f" Of the {NEIGHBOURS} nearest neighbours in the plane {of.purity:.1%} are of the image's class, with "
            f"shuffled labels {of.shuffled:.1%}."
        )
    if probe:
        text += (
            f" A linear classifier that sees only gates is right for {probe.accuracy:.1%} of {probe.held_out:,} "
            f"held-out images; always the most frequent class: {probe.majority:.1%}; learned from shuffled labels: "
            f"{probe.shuffled:.1%}."
        )
    return text


def _draw_overlap(column: Any, subject: Subject) -> list[Any]:
    axes, statistics = column.subplots(), subject.statistics
    overlap, names = statistics.overlap_dependent.copy(), statistics.class_names
    np.fill_diagonal(overlap, np.nan)  # 1, which says nothing
    axes.set_facecolor("#eeeeee")
    picture = axes.imshow(overlap, cmap="cividis")
    low, high = np.nanmin(overlap), np.nanmax(overlap)
    if len(names) <= MAX_NUMBERS:
        for (row, place), value in np.ndenumerate(overlap):
            dark = value < (low + high) / 2
            colour = "white" if dark else "black"
            text = "" if np.isnan(value) else f"{value:.2f}"
            axes.text(place, row, text, ha="center", va="center", color=colour, fontsize=8)
    if len(names) <= MAX_TICKS:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    column.colorbar(picture, ax=axes, label="overlap (weighted Jaccard, 0 to 1)")
    title = f"Two classes share {low:.0%} to {high:.0%} of their filters"  # input-dependent ones, see the caption
    axes.set(title=title, xlabel="class", ylabel="class")
    return [axes]


def _overlap_caption(subject: Subject) -> str:
    different = ~np.eye(len(subject.statistics.class_names), dtype=bool)
    dependent, all_ = (
        np.nanmean(matrix[different]) for matrix in (subject.statistics.overlap_dependent, subject.statistics.overlap)
    )
    return f"Mean over pairs of classes: {dependent:.3f}; over all gates, the constant ones included, {all_:.3f}."


def _has_overlap(subject: Subject) -> bool:
    return has_dependent(subject) and int((subject.statistics.images_by_class > 0).sum()) > 1


def _draw_information(column: Any, subject: Subject) -> list[Any]:
    axes, statistics = column.subplots(), subject.statistics
    units, random = group_gates(statistics.sites, "unit"), np.random.default_rng(0)
    dependent, means = statistics.kinds == INPUT_DEPENDENT, []
    for place, gates in enumerate(units.values()):
        bits = statistics.mutual_information[gates[dependent[gates]]]
        means.append(bits.mean() if bits.size else np.nan)
        aside = random.uniform(-0.3, 0.3, len(bits))  # so that points do not hide each other
        axes.scatter(
            place + aside, bits, s=12, alpha=0.5, linewidths=0, color=DEPENDENT, label="" if place else "a gate"
        )
    axes.plot(range(len(units)), means, color=ACCENT, marker="o", markersize=4, label="mean of the unit")
    axes.axhline(statistics.chance_information, color="#555555", linestyle=":", label="expected by chance")
    top = statistics.mutual_information[dependent].max()
    axes.set(title=f"A single gate tells up to {top:.2f} bits about the class", ylabel="mutual information (bits)")
    axes.set_xlabel(UNITS_LABEL)
    name_units(axes, list(units))
    axes.set_ylim(0, max(top, statistics.chance_information) * 1.18 or 1)  # of a single class, 0
    axes.legend(ncols=3, loc="upper left")
    return [axes]


def _information_caption(subject: Subject) -> str:
    mean = subject.statistics.mutual_information[dependent_gates(subject)].mean()
    chance = subject.statistics.chance_information
    return f"Mean of the input-dependent gates: {mean:.3f} bits; a gate that knows nothing shows about {chance:.4f}."


def _draw_confidence(column: Any, subject: Subject) -> list[Any]:
    parts = subject.statistics.by_confidence
    with_accuracy = subject.statistics.has_classes
    panels = np.atleast_1d(column.subplots(1 + with_accuracy, 1, sharex=True))
    places = np.arange(1, len(parts) + 1)
    if with_accuracy:
        panels[0].bar(places, [part["accuracy"] for part in parts], color=DEPENDENT)
        panels[0].set(ylabel="accuracy", ylim=(0, 1.02))
        panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    panels[-1].plot(places, [part["open_gates"] for part in parts], color=ACCENT, marker="o")
    panels[-1].set(ylabel="open gates (mean)", xlabel="tenth of the images, least to most confident", xticks=places)
    panels[0].set_title(_confidence_title(subject))
    return list(panels)


def _confidence_title(subject: Subject) -> str:
    hard, easy = (subject.statistics.by_confidence[place]["open_gates"] for place in (0, -1))
    return f"Hard images open {hard:,.1f} gates, easy ones {easy:,.1f}"


CLASS_PLOTS = (
    Plot(
        "gate_map",
        "Images by their gate vectors",
        "Gate vectors, PCA, then t-SNE: images whose gates are alike lie near each other.",
        _draw_map,
        _map_caption,
        lambda subject: subject.map is not None,
        "Too few images, or gates that depend on them.",
        height=5.2,
    ),
    Plot(
        "class_overlap",
        "Filters that classes share",
        "Of two classes' open rates r and s over the input-dependent gates: sum of min(r, s) / sum of max(r, s).",
        _draw_overlap,
        _overlap_caption,
        _has_overlap,
        "Fewer than two classes are known, or no gate depends on the image.",
        height=5.6,
    ),
    Plot(
        "information_by_depth",
        "What single gates tell about the class, by depth",
        "Mutual information between a gate and the class; input-dependent gates.",
        _draw_information,
        _information_caption,
        lambda subject: has_dependent(subject) and subject.statistics.has_classes,
        "No class is known, or no gate depends on the image.",
    ),
    Plot(
        "easy_and_hard",
        "Easy and hard images",
        "Images ordered by the model's confidence, in ten parts.",
        _draw_confidence,
        lambda subject: f"{_confidence_title(subject)}.",
        height=5.2,
    ),
)

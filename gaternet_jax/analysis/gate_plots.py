"""Figures of gates alone: a column of a figure and a subject -> the axes drawn into it."""

from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gaternet_jax.analysis.plot import (
    ACCENT,
    DEPENDENT,
    OFF,
    ON,
    UNITS_LABEL,
    Plot,
    Subject,
    dependent_gates,
    has_dependent,
    name_units,
)
from gaternet_jax.analysis.statistics import ALMOST, KIND_NAMES
from gaternet_jax.gating.sites import group_gates


def _draw_kinds(column: Any, subject: Subject) -> list[Any]:
    axes, statistics = column.subplots(), subject.statistics
    units = group_gates(statistics.sites, "unit")
    counts = np.array([np.bincount(statistics.kinds[gates], minlength=3) for gates in units.values()])  # [units, 3]
    bottom = np.zeros(len(units))
    for kind in (2, 1, 0):
        colour = (OFF, DEPENDENT, ON)[kind]
        axes.bar(range(len(units)), counts[:, kind], 0.85, bottom, color=colour, label=KIND_NAMES[kind])
        bottom += counts[:, kind]
    axes.set(title=_kinds_title(subject), xlabel=UNITS_LABEL, ylabel="gates")
    name_units(axes, list(units))
    axes.set_ylim(0, bottom.max() * 1.16)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], ncols=3, loc="upper left")
    return [axes]


def _kinds_title(subject: Subject) -> str:
    off, dependent, on = np.bincount(subject.statistics.kinds, minlength=3)
    return f"{dependent:,} gates depend on the image, {off:,} are always off, {on:,} always on"


def _draw_images_per_gate(column: Any, subject: Subject) -> list[Any]:
    axes, statistics = column.subplots(), subject.statistics
    rates = statistics.open_rate[dependent_gates(subject)]
    axes.hist(rates, np.linspace(0, 1, 51), color=DEPENDENT)
    few = int(statistics.almost_constant.sum())
    title = f"{few:,} of {len(rates):,} input-dependent gates almost never change"
    axes.set(title=title, xlabel="images that open the gate", ylabel="input-dependent gates", xlim=(0, 1))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    return [axes]


def _images_per_gate_caption(subject: Subject) -> str:
    few, dependent = int(subject.statistics.almost_constant.sum()), dependent_gates(subject).size
    return f"That is so for {few:,} of {dependent:,} input-dependent gates."


def _draw_open_per_image(column: Any, subject: Subject) -> list[Any]:
    axes, counts = column.subplots(), subject.statistics.open_per_image
    low, high = int(counts.min()), int(counts.max())
    width = max(-(-(high - low + 1) // 60), 1)  # whole numbers of gates, so that no bar is short by rounding
    axes.hist(counts, np.arange(low, high + width + 1, width) - 0.5, color=DEPENDENT)
    axes.axvline(counts.mean(), color=ACCENT, linewidth=2, label=f"mean {counts.mean():,.1f}")
    total = subject.observations.gates.shape[1]
    axes.set(title=f"Images open {low:,} to {high:,} of {total:,} gates", xlabel="open gates", ylabel="images")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    axes.legend(loc="upper right")
    return [axes]


def _open_caption(subject: Subject) -> str:
    counts = subject.statistics.open_per_image
    return f"Mean {counts.mean():,.1f}, standard deviation {counts.std():,.1f}."


def _draw_training(column: Any, subject: Subject) -> list[Any]:
    axes = column.subplots()
    for split, colour, marker, name in (("train", OFF, "", "training batches"), ("eval", DEPENDENT, "o", "evaluation")):
        if split in subject.training:
            epochs, rates = zip(*subject.training[split], strict=True)
            axes.plot(epochs, rates, color=colour, marker=marker, markersize=4, linewidth=1.8, label=name)
    (_, first), (_, last) = _evaluations(subject)[0], _evaluations(subject)[-1]
    once = len(_evaluations(subject)) == 1
    title = f"{last:.0%} of the gates are open" if once else f"Open gates went from {first:.0%} to {last:.0%}"
    axes.set(title=title, xlabel="epoch", ylabel="open gates")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axes.legend()
    return [axes]


def _evaluations(subject: Subject) -> list[tuple[float, float]]:
    return subject.training.get("eval") or subject.training["train"]


GATE_PLOTS = (
    Plot(
        "kinds_by_depth",
        "Three kinds of gates, by depth",
        "Gates of each unit that are off for all images, on for all, or depend on the image.",
        _draw_kinds,
        lambda subject: f"{_kinds_title(subject)}.",
    ),
    Plot(
        "images_per_gate",
        "How many images open an input-dependent gate",
        f"Almost never changing: within {ALMOST:.0%} of always open or always shut.",
        _draw_images_per_gate,
        _images_per_gate_caption,
        has_dependent,
        "No gate depends on the image.",
        comparable=True,
    ),
    Plot(
        "open_per_image",
        "Open gates per image",
        "",
        _draw_open_per_image,
        _open_caption,
    ),
    Plot(
        "training",
        "Open gates during training",
        "Mean fraction of open gates; in training batches they are sampled with noise.",
        _draw_training,
        lambda subject: f"At the end {_evaluations(subject)[-1][1]:.1%} on the evaluation split.",
        lambda subject: bool(subject.training),
        "It has no record of a training run.",
        comparable=True,
    ),
)

"""Draws all figures of an analysis, each for one run or for several side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.figure

from gaternet_jax.analysis.class_plots import CLASS_PLOTS
from gaternet_jax.analysis.gate_plots import GATE_PLOTS
from gaternet_jax.analysis.plot import Subject

WIDTH = 7.2  # inches, of one run's column
STYLE: Any = {  # typed by Matplotlib with a literal of all keys
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "savefig.dpi": 144,
    "text.parse_math": False,  # names of classes may have a $
    "svg.fonttype": "none",  # as text, for which a browser finds letters of any script
    "svg.hashsalt": "gaternet",  # the same numbers give the same file
}


class Drawn(NamedTuple):
    """Describes a figure that was written.

    Attributes:
        title: what it is of.
        caption: what it shows, in words and numbers.
        png: path.
        svg: path.
    """

    title: str
    caption: str
    png: Path
    svg: Path


def draw_figures(folder: Path, subjects: Sequence[Subject]) -> list[Drawn]:
    """Draws each figure that at least one of the subjects has something for.

    Args:
        folder: NAME.png and NAME.svg are written there.
        subjects: one column each.
    """
    drawn = []
    for plot in (*GATE_PLOTS, *CLASS_PLOTS):
        if not any(plot.applies(subject) for subject in subjects):
            continue
        with matplotlib.rc_context(STYLE):
            figure = matplotlib.figure.Figure((WIDTH * len(subjects), plot.height), layout="constrained")
            columns: Any = figure.subfigures(1, len(subjects), squeeze=False)[0]
            axes = []
            for column, subject in zip(columns, subjects, strict=True):
                if len(subjects) > 1:
                    column.suptitle(subject.name, x=0.02, horizontalalignment="left", color="#555555", fontsize=11)
                if plot.applies(subject):
                    axes.append(plot.draw(column, subject))
                else:
                    column.text(0.5, 0.5, plot.otherwise, horizontalalignment="center", color="#555555")
            if plot.comparable:
                _same_limits(axes)
            paths = [folder / f"{plot.name}.{kind}" for kind in ("png", "svg")]
            for path in paths:
                figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {})
        captions = [(subject.name, plot.caption(subject)) for subject in subjects if plot.applies(subject)]
        alone = len(subjects) == 1
        caption = " ".join(text if alone else f"{name}: {text}" for name, text in captions)
        drawn.append(Drawn(plot.title, f"{plot.explains} {caption}".strip(), *paths))
    return drawn


def _same_limits(columns: list[list[Any]]) -> None:
    """Gives axes that stand beside each other the limits that hold all."""
    for row in zip(*columns, strict=False):
        for get, set_ in (("get_xlim", "set_xlim"), ("get_ylim", "set_ylim")):
            limits = [getattr(axes, get)() for axes in row]
            for axes in row:
                getattr(axes, set_)(min(low for low, _ in limits), max(high for _, high in limits))


def read_training(workdir: Path) -> dict[str, list[tuple[float, float]]]:
    """Reads open gates during training, by "train" and "eval": pairs of epoch and fraction; empty for a conversion."""
    series: dict[str, list[tuple[float, float]]] = {}
    path = workdir / "metrics.jsonl"
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # a run is writing it just now
        if "gates_on" in line and "epoch" in line:
            series.setdefault(line["split"], []).append((line["epoch"], line["gates_on"]))
    return series

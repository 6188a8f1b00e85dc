"""What all figures are made of: what is drawn, how it looks, and how a figure is described."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from gaternet_jax.analysis.embedding import LinearProbe, Map
from gaternet_jax.analysis.observe import Observations
from gaternet_jax.analysis.statistics import INPUT_DEPENDENT, Statistics

HEIGHT = 4.4  # inches
# Colours that people with any kind of colour vision tell apart (Okabe and Ito 2008).
OFF, DEPENDENT, ON, ACCENT = "#bbbbbb", "#0072b2", "#e69f00", "#d55e00"
UNITS_LABEL = "unit of the backbone (stage.block), input to output"
MAX_UNITS = 30  # names at an axis


@dataclasses.dataclass(frozen=True)
class Subject:
    """Holds what is drawn of a run.

    Attributes:
        name: heading of its column.
        observations: of a split.
        statistics: of these observations.
        map: None where gates do not vary.
        probe: None where classes are not known.
        training: from `read_training`.
    """

    name: str
    observations: Observations
    statistics: Statistics
    map: Map | None
    probe: LinearProbe | None
    training: dict[str, list[tuple[float, float]]]


@dataclasses.dataclass(frozen=True)
class Plot:
    """Describes a figure: what it shows, and how it is drawn.

    Attributes:
        name: of its files.
        title: what it is of.
        explains: what is drawn, for the caption.
        draw: draws a subject into a column and gives the axes.
        caption: what is seen of a subject.
        applies: whether there is anything to draw.
        otherwise: what to say in a column without.
        comparable: whether columns get the same limits.
        height: inches.
    """

    name: str
    title: str
    explains: str
    draw: Callable[[Any, Subject], list[Any]]
    caption: Callable[[Subject], str]
    applies: Callable[[Subject], bool] = lambda subject: True
    otherwise: str = ""
    comparable: bool = False
    height: float = HEIGHT


def dependent_gates(subject: Subject) -> np.ndarray:
    """Gives the numbers of the gates that depend on the image."""
    return np.flatnonzero(subject.statistics.kinds == INPUT_DEPENDENT)


def has_dependent(subject: Subject) -> bool:
    """Tells whether any gate depends on the image."""
    return dependent_gates(subject).size > 0


def name_units(axes: Any, names: list[str]) -> None:
    """Puts the names of the units, or every so many, at the axis: "1.2" of "stage1.block2"."""
    step = -(-len(names) // MAX_UNITS)
    short = [name.replace("stage", "").replace("block", "").replace("_layer", ".") for name in names]
    axes.set_xticks(range(0, len(names), step), short[::step], rotation=90 if len(names) > 12 else 0)
    axes.set_xlim(-0.6, len(names) - 0.4)

"""The programs that the modes of inference are made of, for a model whose gates are engineered."""

from collections.abc import Iterator

import numpy as np

from gaternet_jax.inference.compaction import fix_gates
from gaternet_jax.inference.engines import XLA, by_rows
from gaternet_jax.inference.network import Network
from gaternet_jax.models.functional import merge_model, split_model
from gaternet_jax.models.gaternet import GaterNet


def programs(model: GaterNet, keep: np.ndarray, image_size: int) -> Iterator[tuple[str, XLA, bool]]:
    """Yields name, program, and whether it takes gates as well as rows and images; the masked model comes first.

    masked: as trained. dense: parameters folded, gates masked. compact: without the filters that are closed.
    specialist: the backbone without them, after "gater". profile: the same, but the filters are those that gates open.

    Args:
        model: in evaluation mode.
        keep: bool [G], the filters that are open for every image.
        image_size: pixels.
    """
    graphdef, *arrays = split_model(model)
    network = Network(model, image_size, "xla")
    compacted = Network(fix_gates(model, ~keep, np.zeros_like(keep)), image_size, "xla")
    widths = tuple(int(keep[site.gates].sum()) for site in model.gate_sites)
    yield "masked", XLA(by_rows(lambda arrays, images: merge_model(graphdef, *arrays)(images)), arrays), False
    for name, engine in (
        ("dense", network.make("whole")), ("compact", compacted.make("whole")), ("gater", network.make("gater")),
        ("specialist", network.make("backbone", keep)), ("profile", network.profile(widths)),
    ):  # fmt: skip
        assert isinstance(engine, XLA)
        yield name, engine, name in ("specialist", "profile")

"""A plain network with as many parameters as a gated one, by its width: the fair baseline of the paper."""

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from gaternet_jax.config import Config
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.registry import build_model


def abstract_model(config: Config) -> GaterNet:
    """The model that `config` describes, with shapes in place of parameters: quick, and without memory."""
    return nnx.eval_shape(lambda: build_model(config))


def count_parameters(model: nnx.Module | None) -> int:
    """Parameters of a model or a part of one; of None, 0."""
    return 0 if model is None else sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def match_width(config: Config) -> tuple[int, int, int]:
    """The width at which the plain backbone's parameter count comes nearest to that of the gated model.

    Args:
        config: the `model` part of a run's config, of the gated model.

    Returns:
        The width (for `model.width`), the plain model's parameters at that width, and the gated model's.
    """
    gated = abstract_model(config)
    target = count_parameters(gated)

    def plain_count(width: int) -> int:
        plain = ConfigDict(config)
        plain.unlock()
        plain.update(gating="none", width=width)
        return count_parameters(abstract_model(plain))

    # Every layer has (in x out) parameters with both proportional to the width: the count is quadratic in it, up to
    # rounding. Solve the parabola through three widths, then look at its neighbours.
    own = gated.backbone.width
    widths = [own, own + max(own // 4, 2), 2 * own]
    a, b, c = np.polyfit(widths, [plain_count(width) for width in widths], 2)
    solution = int((-b + np.sqrt(b * b - 4 * a * (c - target))) / (2 * a))
    counts = {width: plain_count(width) for width in range(max(solution - 1, 1), solution + 3)}
    width = min(counts, key=lambda width: abs(counts[width] - target))
    return width, counts[width], target

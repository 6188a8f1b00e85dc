"""Starting the gater's feature extractor from a network that was trained as a plain classifier."""

from pathlib import Path
from typing import Any

from flax import nnx

from gaternet_jax.checkpoint import load_model
from gaternet_jax.errors import UserError
from gaternet_jax.models.backbone import Backbone
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.paths import expand_home


def load_extractor(model: GaterNet, workdir: str | Path) -> None:
    """Copies the backbone of a plain run, without its output layer, into the extractor of a model's gater.

    Args:
        model: changed in place.
        workdir: of a run of the same network without gates, e.g. configs/cifar10.py:resnet20-plain.

    Raises:
        UserError: the model has no global gater, or the run's network is another one.
    """
    if model.gater is None:
        raise UserError(f"model.gater.pretrained='{workdir}' was given, but this model has no global gater")
    trained = load_model(expand_home(workdir), tell=True)
    source, target = _arrays(trained.backbone), _arrays(model.gater.extractor)
    differing = sorted(
        path for path in source.keys() | target.keys() if _shape(source.get(path)) != _shape(target.get(path))
    )
    if trained.gate_sites or differing:
        what = "it is gated" if trained.gate_sites else f"{len(differing)} arrays differ, e.g. {'.'.join(differing[0])}"
        raise UserError(
            f"{workdir} is no plain run of the gater's extractor ({what}); train the extractor's network with -plain"
        )
    for path, variable in target.items():
        variable.set_value(source[path].get_value())


def _arrays(network: Backbone) -> dict[tuple[str, ...], nnx.Variable]:
    """Parameters and statistics by path, without the output layer."""
    variables: Any = nnx.to_flat_state(nnx.state(network, (nnx.Param, nnx.BatchStat)))
    return {tuple(map(str, path)): variable for path, variable in variables if path[0] != "fc"}


def _shape(variable: nnx.Variable | None) -> tuple[int, ...] | None:
    return None if variable is None else variable.get_value().shape

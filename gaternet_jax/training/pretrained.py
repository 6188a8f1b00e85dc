"""Starting a model from one that was trained: the whole of it, its backbone, its gater, or the gater's extractor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from gaternet_jax.config import CHOICES, RunConfig
from gaternet_jax.errors import UserError, check_choice
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.paths import expand_home
from gaternet_jax.training.checkpoint import load_model
from gaternet_jax.workdir import load_labels

OUTPUT_LAYER, AUXILIARY = "fc", "auxiliary"


def initialize(model: GaterNet, config: RunConfig, classes: Sequence[str]) -> list[str]:
    """Copies into a fresh model what config.init_from and config.model.gater.pretrained name.

    The output layer is copied where the classes are the same, by name and order, and stays freshly initialised
    elsewhere.

    Args:
        model: changed in place.
        config: the whole config of the run.
        classes: the names of the classes, by label.

    Returns:
        What was copied, a sentence each.

    Raises:
        UserError: what is named is no run, is of another network, or has no place in this model.
    """
    said = []
    if config.init_from:
        said += load_parts(model, config.init_from, config.init_parts, classes)
    if config.model.gater.pretrained:
        load_extractor(model, config.model.gater.pretrained)
        said.append(f"The gater's extractor starts from {config.model.gater.pretrained}")
    return said


def load_parts(model: GaterNet, workdir: str | Path, parts: str, classes: Sequence[str]) -> list[str]:
    """Copies parts of a run's model into a model of the same network.

    Args:
        model: changed in place.
        workdir: of a training run or a conversion.
        parts: "backbone", "gater", or "all": both, or a backbone that has no gater in either.
        classes: the names of the model's classes, by label.

    Returns, Raises: as of `initialize`.
    """
    check_choice("init_parts", parts, CHOICES["init_parts"])
    trained = load_model(expand_home(workdir), tell=True)
    advice = "choose --config.init_parts"
    if parts != "backbone" and (model.gater is None) != (trained.gater is None):
        where = workdir if trained.gater is None else "this model"
        raise UserError(f"init_parts={parts} was asked for, but {where} has no global gater; {advice}=backbone")
    if parts == "gater" and model.gater is None:
        raise UserError(f"init_parts=gater was asked for, but this model and {workdir} have no global gater; {advice}")
    said = []
    if parts != "gater":
        known = load_labels(workdir)
        same = list(classes) == known
        _copy(trained.backbone, model.backbone, f"the backbone of {workdir}", () if same else (OUTPUT_LAYER,))
        said.append(f"The backbone starts from {workdir}")
        if not same:
            count = f"{len(known)} there, {len(classes)} here"
            said.append(f"The output layer is newly initialised: the classes are others than there ({count})")
    if parts != "backbone" and model.gater is not None:
        assert trained.gater is not None
        _copy(trained.gater, model.gater, f"the gater of {workdir}", (AUXILIARY,))
        said.append(f"The gater starts from {workdir}")
    return said


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
    if trained.gate_sites:
        raise UserError(
            f"{workdir} is no plain run of the gater's extractor (it is gated); train the extractor's network with "
            "-plain"
        )
    _copy(trained.backbone, model.gater.extractor, f"the plain network of {workdir}", (OUTPUT_LAYER,))


def _copy(source: nnx.Module, target: nnx.Module, what: str, without: tuple[str, ...] = ()) -> None:
    """Copies parameters and statistics from one network to another of the same shapes.

    Raises:
        UserError: the shapes differ; the message names the first that does.
    """
    before, after = _arrays(source, without), _arrays(target, without)
    shapes = {path: (_shape(before.get(path)), _shape(after.get(path))) for path in before.keys() | after.keys()}
    if differing := sorted(path for path, (there, here) in shapes.items() if there != here):
        there, here = (shape or "none" for shape in shapes[differing[0]])
        raise UserError(
            f"{what} is another network than this model's: {len(differing)} arrays differ, e.g. "
            f"{'.'.join(differing[0])}: {there} there, {here} here. Give the fields of config.model that it was "
            "trained with, or another folder"
        )
    for path, variable in after.items():
        variable.set_value(before[path].get_value())


def _arrays(network: nnx.Module, without: tuple[str, ...]) -> dict[tuple[str, ...], nnx.Variable]:
    """Finds parameters and statistics by path."""
    variables: Any = nnx.to_flat_state(nnx.state(network, (nnx.Param, nnx.BatchStat)))
    return {tuple(map(str, path)): variable for path, variable in variables if path[0] not in without}


def _shape(variable: nnx.Variable | None) -> tuple[int, ...] | None:
    return None if variable is None else variable.get_value().shape


def freeze_gater(model: GaterNet, rate: float) -> None:
    """Makes the gater of a model in training mode ready for its own learning rate.

    A frozen one (rate 0) computes what it computes in evaluation: BatchNorm by its running statistics, which stay.

    Args:
        model: changed in place.
        rate: optimizer.gater_rate.

    Raises:
        UserError: a rate other than 1, of a model without a global gater.
    """
    if rate != 1 and model.gater is None:
        raise UserError(f"optimizer.gater_rate={rate:g} was given, but this model has no global gater; leave it at 1")
    if rate == 0 and model.gater is not None:
        model.gater.eval()

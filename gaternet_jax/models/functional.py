"""A model as a function of its arrays: split once, merge inside pure functions."""

from typing import Any

from flax import nnx

from gaternet_jax.models.gaternet import GaterNet

Tree = Any  # nested dicts of arrays, keyed by the names of submodules


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Tree, Tree]:
    """Splits a model, or a part of one: structure (and training or evaluation mode), parameters, statistics.

    `merge_model` is the inverse for whole models.
    """
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)


def merge_model(graphdef: nnx.GraphDef, params: Tree, stats: Tree) -> GaterNet:
    """A model of its own variables; safe to call within a gradient."""
    return nnx.merge(graphdef, params, stats, copy=True)

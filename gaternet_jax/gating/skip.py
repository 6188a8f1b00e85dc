"""Skips closed channels in any function that gates: the transform.

    program = skip_closed(backbone, params, images, gates)     # traced once
    prepared = program.prepare(params, keep)                   # which channels of each site are kept
    logits = program(prepared, images, gates)                  # as backbone(params, images, gates)

Convolutions and products lose inputs that are absent and outputs that are not wanted; what depends on parameters only,
BatchNorm folded into convolutions and kernels without closed channels among it, is computed in `prepare`. How many
channels a site keeps is static; which, is an array: one compiled program serves all selections of the same widths.
What has no rule gets whole arrays: slow, never wrong; `explain` says where.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from gaternet_jax.errors import UserError
from gaternet_jax.gating.execute import Execution
from gaternet_jax.gating.explain import Explanation, explain
from gaternet_jax.gating.gate import GateSite
from gaternet_jax.gating.plan import plan_of, with_whole_sums
from gaternet_jax.gating.program import flatten, leaves_of, shaped, split

Keep = Sequence[Any] | Mapping[str, Any] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prepared:
    """Holds what a program needs besides its inputs: a pytree of arrays."""

    arrays: list[Any]  # kernels and constants without the channels that are not kept; positions of those that are
    widths: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))  # of each site, how many channels are kept
    always_open: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))  # numbers of the sites without gates


class SkipClosed:
    """Computes a function without its closed channels; `skip_closed` makes one. Its `sites` are its gates, in order."""

    def __init__(self, function: Callable[..., Any], params: Any, *args: Any):
        self._params, self._args = shaped(params), _shapes(args)
        self._plan = functools.cache(lambda args: with_whole_sums(plan_of(function, self._params, *_example(args))))
        self._split = functools.cache(self._split_plan)
        self.sites: tuple[GateSite, ...] = tuple(self._plan(self._args).program.sites)
        self._prepare, self._run = jax.jit(self._prepare_now, static_argnums=2), jax.jit(self._skip_closed)

    def prepare(self, params: Any, keep: Keep = None, always_open: Collection[str] = ()) -> Prepared:
        """Computes what depends on parameters and on the kept channels only.

        Args:
            params: as given to `skip_closed`.
            keep: of each site, in order or by name, the channels that are kept: distinct integers [n], in any order,
                concrete or traced; None, for a site or for all: every channel. Nothing else decides what is computed.
            always_open: names of sites whose kept channels are open for every image, so that they need no gates.

        Raises:
            UserError: channels that a site does not have, a name that several have, or parameters of another shape.
        """
        indices, names = _check_keep(self.sites, keep), [site.name for site in self.sites]
        _check_names(always_open, names)
        trees = shaped(params), self._params
        given, traced = ({path: leaf.shape for path, leaf in leaves_of(tree).items()} for tree in trees)
        if differing := [path for path in given | traced if given.get(path) != traced.get(path)]:
            shapes = f"the shape {traced.get(differing[0])}; got {given.get(differing[0])}"
            raise UserError(
                f"parameter '{differing[0]}' was traced with {shapes}: call skip_closed with these parameters"
            )
        return self._prepare(params, indices, tuple(i for i, name in enumerate(names) if name in always_open))

    def __call__(self, prepared: Prepared, *args: Any) -> Any:
        """Computes what the function computes where gates outside `keep` are closed.

        Exact but for rounding, of what `prepare` gave and the function's remaining arguments; batches of another size
        than the example's are traced anew. A gate outside `keep` counts as closed, whatever it is: the caller must know
        that. A closed channel that is infinite or NaN is NaN times zero in the function and 0 here.
        """
        if not isinstance(prepared, Prepared):
            raise UserError(f"first comes what .prepare(params, keep) gave; got a {type(prepared).__name__}")
        return self._run(prepared, *args)

    def explain(self, widths: Sequence[int] | None = None) -> Explanation:
        """Says of every convolution and product what is skipped, and of every gate whether it only masks, and why.

        `widths` says of each site how many channels are kept; half of them if not given.
        """
        halves = (-(-site.size // 2) for site in self.sites)
        return explain(self._plan(self._args), tuple(halves if widths is None else widths))

    def _split_plan(self, args: Any, widths: tuple[int, ...], always_open: tuple[int, ...]) -> Any:
        """Makes the functions that prepare, of parameters and kept channels, and that run what was prepared."""
        plan, keep = self._plan(args), [jax.ShapeDtypeStruct((width,), np.int32) for width in widths]

        def run(params: Any, keep: list[Any], *args: Any) -> list[Any]:
            return Execution(plan, keep, always_open).run(jax.tree.leaves((params, args)))

        program = flatten(run, self._params, keep, *_example(args))
        return split(program, len(jax.tree.leaves((self._params, keep))))

    def _prepare_now(self, params: Any, keep: list[Any], always_open: tuple[int, ...]) -> Prepared:
        choice = tuple(index.shape[0] for index in keep), always_open
        prepare, _ = self._split(self._args, *choice)
        return Prepared(prepare(jax.tree.leaves((params, keep))), *choice)

    def _skip_closed(self, prepared: Prepared, *args: Any) -> Any:
        shapes, choice = _shapes(args), (prepared.widths, prepared.always_open)
        prepare, run = self._split(shapes, *choice)
        if shapes != self._args:
            given = jax.tree.leaves((self._params, [jax.ShapeDtypeStruct((width,), np.int32) for width in choice[0]]))
            needed, own = (str(jax.make_jaxpr(each)(given)) for each in (prepare, self._split(self._args, *choice)[0]))
            if needed != own:
                raise UserError(
                    f"for inputs of the shapes {[leaf.shape for leaf in shapes[0]]} other constants are needed than "
                    "were prepared; call skip_closed with an example of these shapes"
                )
        return jax.tree.unflatten(self._plan(shapes).program.tree, run(prepared.arrays, jax.tree.leaves(args)))


def skip_closed(function: Callable[..., Any], params: Any, *args: Any) -> SkipClosed:
    """Finds what closed gates save in a function; see this module.

    What no product reads, and is only added to other maps, has all channels, with zeros in the kernels for those that
    are not kept: more arithmetic, less moving of data.

    Args:
        function: of (params, *args), with calls of `gate` in it; pure, of pytrees of arrays.
        params: what is known before the images come: arrays, or `jax.ShapeDtypeStruct`s in their place. Gates that are
            the same for all images may be among them.
        *args: examples of the other arguments, arrays or shapes.

    Example:
        >>> def network(kernel, x, gates):
        ...     return gx.gate(x @ kernel, gates) @ kernel.T
        >>> kernel, x = jnp.arange(6.0).reshape(2, 3), jnp.ones((1, 2))
        >>> program = gx.skip_closed(network, kernel, x, jnp.ones((1, 3)))
        >>> program(program.prepare(kernel, [jnp.array([2])]), x, jnp.array([[0.0, 0.0, 1.0]]))
        Array([[14., 35.]], dtype=float32)
    """
    return SkipClosed(function, params, *args)


def _check_keep(sites: Sequence[GateSite], keep: Keep) -> list[Any]:
    """Gives the kept channels of each site, as int32 arrays; UserError where they are not channels of these sites."""
    if isinstance(keep, Mapping):
        names = [site.name for site in sites]
        _check_names(keep, names)
        if several := [name for name in keep if names.count(name) > 1]:
            raise UserError(f"several gates are named {several[:1]}; give `keep` as a list, in the order of {names}")
        keep = [keep.get(site.name) for site in sites]
    keep = [None] * len(sites) if keep is None else list(keep)
    if len(keep) != len(sites):
        raise UserError(f"the network has {len(sites)} gated sites, but the channels of {len(keep)} were given")
    return [_check(site, index) for site, index in zip(sites, keep, strict=True)]


def _check_names(given: Iterable[str], names: Sequence[str]) -> None:
    if unknown := set(given) - set(names):
        raise UserError(f"no gates are named {sorted(unknown)}; there are {list(names)}")


def _check(site: GateSite, index: Any) -> Any:
    if index is None:
        return np.arange(site.size, dtype=np.int32)
    wanted = f"'{site.name}' keeps some of its {site.size} channels: distinct integers below that, at least one"
    if not isinstance(index, Tracer):
        index = np.asarray(index)
        if index.size and (index.min() < 0 or index.max() >= site.size or np.unique(index).size != index.size):
            raise UserError(f"{wanted}; got {index.tolist()}")
    if index.ndim != 1 or not 0 < index.size <= site.size or not np.issubdtype(index.dtype, np.integer):
        raise UserError(f"{wanted}; got {index.dtype} of shape {list(index.shape)}")
    return index.astype(np.int32)


def _shapes(args: Any) -> Any:
    """Gives shapes, types and structure of arguments, as a key; `_example` is the inverse."""
    leaves, tree = jax.tree.flatten(shaped(args))
    return tuple(leaves), tree


def _example(shapes: Any) -> Any:
    leaves, tree = shapes
    return jax.tree.unflatten(tree, leaves)

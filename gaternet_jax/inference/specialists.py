"""Specialists: backbones for groups of images that open alike filters, exact for every image.

    images -> gater -> gates -> each image to the cheapest specialist that has all its open filters
                                (the whole network, where none has) -> masks for the rest -> logits, in order

Groups are run in parts (inference/parts.py), and padded to few sizes.

Specialists are made once, from the gates of calibration images. Their number, and how rare a filter may be in its
group before it is left out, are those with the least expected time: measured times of convolutions, batches drawn from
images that were held out from the grouping.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from sklearn.cluster import KMeans

from gaternet_jax.errors import UserError
from gaternet_jax.inference.compact import check_gates
from gaternet_jax.inference.narrow import check_gated, narrow_model
from gaternet_jax.inference.parts import PartsRunner
from gaternet_jax.inference.selection import everything, kept_gates, select
from gaternet_jax.inference.tuning import ConvTimes, choose_algorithms
from gaternet_jax.inference.widths import BackboneTimes, count_per_site, fill
from gaternet_jax.models.functional import split_model
from gaternet_jax.models.gaternet import GaterNet, Outputs
from gaternet_jax.models.gates import GateSite
from gaternet_jax.models.semhash import binary_gates

GROUPS = (1, 2, 3, 4, 6, 8, 10, 12, 16)  # numbers of specialists that are tried
RARE = (0.0, 0.01, 0.03, 0.1)  # a filter open for at most this fraction of its group is left out
TIERS = (1, 2)  # specialists of one tier have the same widths, hence one compiled program
DRAWS = 32  # batches of a simulation
CALL_SECONDS = 2e-4  # of starting one more program, about; measured on a CPU


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which filters each specialist has.

    Attributes:
        keep: bool [specialists, G], the cheapest first.
        seconds: expected, of a batch of convolutions, relative to the whole network's.
    """

    keep: np.ndarray
    seconds: float


def group_sizes(part_size: int) -> list[int]:
    """The sizes to which parts of groups are padded: few programs, little padding."""
    sizes = {part_size, *(size for power in range(12) for size in (2**power, 3 * 2**power))}
    return sorted(size for size in sizes if size <= part_size)


def pad_size(count: np.ndarray | int, part_size: int) -> np.ndarray:
    """The size of a group with its padding: full parts, and the rest padded to the next of `group_sizes`."""
    sizes = np.array([0, *group_sizes(part_size)])
    return count // part_size * part_size + sizes[np.searchsorted(sizes, count % part_size)]


def assign(gates: Any, keep: np.ndarray) -> np.ndarray:
    """The first specialist that covers each image's open filters; their number where none does.

    Args:
        gates: [N, G].
        keep: bool [specialists, G].

    Returns:
        int [N].
    """
    misses = (gates > 0).astype(np.float32) @ (~keep).T.astype(np.float32)  # [N, specialists]
    covers = np.concatenate([misses == 0, np.ones((len(gates), 1), bool)], axis=1)
    return covers.argmax(1)


def plan_specialists(
    gates: Any, sites: tuple[GateSite, ...], times: BackboneTimes | None, batch_size: int, seed: int = 0
) -> Plan:
    """Groups calibration images, for the least expected time of a batch.

    Args:
        gates: of the calibration images, [N, G].
        sites: of the model.
        times: None: time is taken to be proportional to the filters.
        batch_size: images per call.
        seed: of the grouping.

    Raises:
        UserError: no image, or gates of another model.
    """
    check_gates(gates, sites)
    part_size = times.part_size if times else batch_size
    opened, rng = gates > 0, np.random.default_rng(seed)
    shuffled = opened[rng.permutation(len(opened))]
    fitted, judged = shuffled[::2], shuffled[1::2] if len(shuffled) > 1 else shuffled
    sizes = np.array([site.size for site in sites])
    choose = times.choose if times else (lambda needed: needed)
    seconds = times.seconds if times else (lambda widths: float(widths.sum()))
    whole, call = seconds(sizes), CALL_SECONDS if times else 0.0
    batches = rng.integers(len(judged), size=(DRAWS, batch_size))

    def expected(keep: np.ndarray, costs: list[float]) -> float:
        groups = assign(judged, keep)[batches]  # [draws, batch]
        counts = (groups[..., None] == np.arange(len(keep) + 1)).sum(1)  # [draws, specialists + 1]
        per_image = np.array([*costs, whole])
        return float((pad_size(counts, part_size) * per_image + (counts > 0) * call).sum(1).mean())

    best = Plan(np.zeros((0, len(opened[0])), bool), 1.0)
    for number in (number for number in GROUPS if number <= len(np.unique(fitted, axis=0))):
        groups = KMeans(number, random_state=seed).fit_predict(fitted.astype(np.float32))
        rates = np.stack([fitted[groups == group].mean(0) for group in range(number)])
        for rare, tiers in itertools.product(RARE, TIERS):
            keep, costs = _widen(rates, rates > rare, sites, tiers, choose, seconds)
            total = expected(keep, costs) / (whole * batch_size + call)
            if total < best.seconds - 0.01:  # a program more must be worth it
                best = Plan(keep, total)
    return best


def _widen(rates, keep, sites, tiers, choose, seconds) -> tuple[np.ndarray, list[float]]:
    """Gives the specialists of a tier the same widths; returns them and their costs, the cheapest first."""
    needed = count_per_site(keep, sites)
    order = np.argsort([needed[group].sum() for group in range(len(keep))], kind="stable")
    widened, costs = [], []
    for tier in np.array_split(order, min(tiers, len(order))):
        widths = choose(np.maximum(needed[tier].max(0), 1))
        widened += [fill(keep[group], widths, sites, rates[group]) for group in tier]
        costs += [seconds(widths)] * len(tier)
    return np.stack(widened), costs


class Specialists:
    """Runs a model by its specialists.

    Args:
        model: with a global gater, in evaluation mode.
        plan: which specialists.
        image_size: pixels.
        runner: of the parts of a batch.
        times: algorithms are chosen by these; None: XLA's convolutions.

    Raises:
        UserError: the model has no gates, or decides them block by block.
    """

    def __init__(
        self, model: GaterNet, plan: Plan, image_size: int, runner: PartsRunner, times: ConvTimes | None = None
    ):
        check_global(model)
        sites = model.gate_sites
        whole = choose_algorithms(narrow_model(model, everything(sites)), image_size, times)
        gater, gater_state = nnx.split(whole.gater)
        run_gater = jax.jit(functools.partial(_run_gater, gater))
        self.gater: Callable[[Any, Any], tuple[Any, Any]] = functools.partial(run_gater, gater_state)
        self.plan, self._runner, self._members = plan, runner, []
        programs: dict[nnx.GraphDef, Callable] = {}  # specialists of one structure share theirs
        for keep in [*plan.keep, None]:
            selection = everything(sites) if keep is None else select(sites, keep, np.ones_like(keep))
            member = whole if keep is None else choose_algorithms(narrow_model(model, selection), image_size, times)
            graphdef, params, stats = split_model(member.backbone)
            run = programs.setdefault(graphdef, jax.jit(functools.partial(_run_backbone, graphdef)))
            self._members.append((kept_gates(sites, selection), functools.partial(run, params, stats)))

    def __call__(self, images: jax.Array, count: int) -> Outputs:
        """Outputs, arrays of NumPy, for the first `count` images [B, H, W, C]; the others are padding."""
        gates, scores = self._runner(self.gater, images, count)
        groups, size = assign(gates, self.plan.keep), self._runner.parts.size

        def run(part: tuple[int, np.ndarray]) -> np.ndarray:
            member, chosen = part
            padded = np.resize(chosen, pad_size(len(chosen), size))
            columns, backbone = self._members[member]
            return np.asarray(backbone(images, padded, gates[padded][:, columns]))[: len(chosen)]

        members = [(member, np.flatnonzero(groups == member)) for member in np.unique(groups)]
        parts = [(member, of[start : start + size]) for member, of in members for start in range(0, len(of), size)]
        found = self._runner.map(run, parts)
        logits = np.zeros((count, found[0].shape[1]), np.float32)
        logits[np.concatenate([chosen for _, chosen in parts])] = np.concatenate(found)
        arrays: list[Any] = [logits, gates, scores]
        return Outputs(*arrays)


def check_global(model: GaterNet) -> None:
    """Raises UserError unless a global gater decides all gates before the backbone runs."""
    check_gated(model)
    if model.gater is None:
        raise UserError(
            "specialists need all gates before the backbone runs, but this model decides them block by block "
            "(model.gater.scope=local); use mode 'dynamic' or 'dense'"
        )


def _run_gater(graphdef, state, images, chosen):
    scores = nnx.merge(graphdef, state)(images[chosen])
    return binary_gates(scores), scores


def _run_backbone(graphdef, params, stats, images, chosen, gates):
    backbone = nnx.merge(graphdef, params, stats)
    return backbone(images[chosen], gates)

"""Which filter has which gate: what training, inference and analysis read."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from gaternet_jax.errors import UserError, check_choice
from gaternet_jax.gating.gate import GateSite, gate
from gaternet_jax.gating.local import LocalHead, LocalPass


def group_gates(sites: Sequence[GateSite], by: Literal["unit", "stage"]) -> dict[str, np.ndarray]:
    """Lists the numbers of the gates of each unit or stage, in forward order."""
    check_choice("group of gates", by, ("unit", "stage"))
    groups: dict[str, list[np.ndarray]] = {}
    for site in sites:
        groups.setdefault(getattr(site, by), []).append(np.arange(site.offset, site.offset + site.size))
    return {name: np.concatenate(parts) for name, parts in groups.items()}


def number_sites(network: nnx.Module) -> tuple[GateSite, ...]:
    """Numbers the gates of a network, once it is built, in the order in which its layers were set.

    A layer is gated if it has a `site`, of which only the size matters before: it gets the layer's path as its name. A
    `LocalHead` is told which sites are its own: those of the module that has it, but for those of heads within.
    """
    sites: list[GateSite] = []
    seen: set[int] = set()

    def walk(module: Any, path: tuple[str, ...]) -> list[GateSite]:
        if id(module) in seen:  # a layer that stands in two places has one set of gates
            return []
        seen.add(id(module))
        if isinstance(site := getattr(module, "site", None), GateSite):
            module.site = GateSite(".".join(path), sites[-1].gates.stop if sites else 0, site.size)
            sites.append(module.site)
            return [module.site]
        children = [(name, child) for name, child in vars(module).items() if isinstance(child, nnx.Module)]
        undecided = [site for name, child in children for site in walk(child, (*path, name))]
        heads = [child for _, child in children if isinstance(child, LocalHead)]
        for head in heads:
            head.sites = tuple(undecided)
        return [] if heads else undecided

    walk(network, ())
    return tuple(sites)


# What a backbone takes: the gate vector [B, G], or the gates of a locally gated pass; None for a plain network.
Gates = jax.Array | LocalPass | None


def apply_gates(maps: jax.Array, gates: Gates, site: GateSite | None) -> jax.Array:
    """Computes O_i = maps_i * g_i, of maps [B, H, W, C] and those gates of this pass that `site` says.

    Without a site the maps stay as they are. UserError: there is one, and no gates were given.
    """
    if site is None:
        return maps
    if gates is None:
        raise UserError(f"{site.name} is gated, but no gates were given; pass gates of shape [B, G]")
    of_site = gates.of(site) if isinstance(gates, LocalPass) else gates[:, site.gates]
    return gate(maps, of_site, site.name)

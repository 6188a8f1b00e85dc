"""Local gating, the strongest counterpart of a global gater: each block gates itself, from its own pooled input.

The same binary gates with the same SemHash and the same loss; only who decides differs (assumed; the paper compares
with other methods' local gates).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from gaternet_jax.gating.gate import GateSite
from gaternet_jax.gating.semhash import binary_gates, sampled_gates
from gaternet_jax.nn.layers import at_least_float32, linear


class LocalHead(nnx.Module):
    """Maps a block's pooled input [B, C] to the gate scores of the block's sites, through a hidden layer (two FCs)."""

    def __init__(
        self, in_channels: int, bottleneck: int, sites: Sequence[GateSite], *, initial_bias: float = 0.0, rngs: nnx.Rngs
    ):
        self.sites = tuple(sites)
        self.bottleneck = linear(in_channels, bottleneck, rngs=rngs)
        self.scores = linear(bottleneck, sum(site.size for site in sites), initial_bias=initial_bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        pooled = at_least_float32(x).mean((1, 2))
        return self.scores(jax.nn.relu(self.bottleneck(pooled)))


class LocalPass:
    """Holds the gates of one forward pass, filled in by the blocks as the image comes to them.

    Args:
        noise_key, mix_key: PRNG keys of `sampled_gates`; None in evaluation, where gates are binary.
    """

    def __init__(self, noise_key: jax.Array | None, mix_key: jax.Array | None):
        self.noise_key, self.mix_key = noise_key, mix_key
        self.decided: dict[str, tuple[jax.Array, jax.Array]] = {}  # site name -> gates, scores

    def decide(self, head: LocalHead, x: jax.Array) -> None:
        """Lets a block's head decide the gates of its sites from the block's input [B, H, W, C]."""
        scores = head(x)
        if self.noise_key is None or self.mix_key is None:
            gates = binary_gates(scores)
        else:  # each block its own noise; whether a sample's gates are binary is one draw for the whole network
            noise_key = jax.random.fold_in(self.noise_key, head.sites[0].offset)
            gates = sampled_gates(scores, noise_key, self.mix_key)
        start = 0
        for site in head.sites:
            part = slice(start, start + site.size)
            self.decided[site.name] = gates[:, part], scores[:, part]
            start += site.size

    def of(self, site: GateSite) -> jax.Array:
        """Gives the gates of a site, [B, site.size]."""
        return self.decided[site.name][0]

    def collect(self, sites: tuple[GateSite, ...]) -> tuple[jax.Array, jax.Array]:
        """Collects gates and gate scores of the whole pass, float32 [B, G] each."""
        gates, scores = zip(*(self.decided[site.name] for site in sites), strict=True)
        return jnp.concatenate(gates, -1), jnp.concatenate(scores, -1)

"""Per-image execution: the filters that are open, gathered into one of few width profiles of the whole network.

    images -> gater -> gates -> the narrowest profile in which all open filters have a place -> logits
                                (the whole network, masked, where there is none, or none that is faster)

A profile says how many filters each site has; which, its program sees from the gates. The host chooses the profile,
before the backbone starts. On CPUs image by image, on accelerators for all images of a batch together.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from gaternet_jax.gating import GateSite
from gaternet_jax.inference.engines import Batching, Engine, Jobs
from gaternet_jax.inference.network import Network
from gaternet_jax.inference.selection import count_per_site, widths_for

TIERS = (0.5, 1.0)  # of the images, those that open the fewest filters; each tier has a profile
WORTH = 0.9  # of the whole network's multiply-accumulates, at most, for a profile
FASTER = 0.9  # of the whole network's time, at most, for a profile
MEASURED = 8  # images, at most, where each runs alone
DRAWS = 64  # of batches, where their images run together

Widths = tuple[int, ...]


def plan_profiles(opened: np.ndarray, sites: Sequence[GateSite], work: Callable[[Widths], float]) -> list[Widths]:
    """Chooses the widths of each site, of a few profiles, narrowest first, for filters open together, bool [N, G]."""
    counts = count_per_site(opened, sites)
    order = np.argsort(counts.sum(1), kind="stable")
    profiles: dict[Widths, None] = {}
    for tier in TIERS:
        widths = widths_for(counts[order[: max(round(tier * len(order)), 1)]], sites)
        if work(widths) <= WORTH:
            profiles[widths] = None
    return list(profiles)


class Dynamic:
    """Decides which engine runs which images of a network with a global gater.

    Args:
        gates: like those to come, [N, G].
        batching: of the batches to come.
        seconds: of jobs for images with gates [B, G]: what is not faster than the whole network is left out.
    """

    def __init__(
        self, network: Network, gates: np.ndarray, batching: Batching, seconds: Callable[..., float] | None = None
    ):
        self.sites, self.whole = network.model.gate_sites, network.make("backbone", threads=batching.threads)
        self.one_by_one = jax.default_backend() == "cpu"
        opened, together = np.asarray(gates > 0), 1 if self.one_by_one else batching.microbatch
        if together > 1:
            draws = np.random.default_rng(0).integers(len(opened), size=(DRAWS, together))
            opened = np.any(opened[draws], axis=1)
        self.profiles = [
            (np.array(widths), network.profile(widths)) for widths in plan_profiles(opened, self.sites, network.work)
        ]
        if seconds is not None and self.profiles:
            number = min(batching.microbatch * batching.at_once, MEASURED) if self.one_by_one else together
            rows = np.arange(number)
            limit = FASTER * seconds([(self.whole, rows)], np.resize(gates, (number, gates.shape[1])))

            def is_faster(widths: np.ndarray, engine: Engine) -> bool:
                gates = [np.arange(site.size) < width for site, width in zip(self.sites, widths, strict=True)]
                alike = np.tile(np.concatenate(gates).astype(np.float32), (number, 1))  # that open as many as have room
                return seconds(self._jobs(engine, rows), alike) < limit

            self.profiles = [profile for profile in self.profiles if is_faster(*profile)]

    def __call__(self, gates: np.ndarray) -> Jobs:
        opened = np.asarray(gates > 0)
        counts = count_per_site(opened if self.one_by_one else np.any(opened, axis=0, keepdims=True), self.sites)
        fits = np.array([(counts <= widths).all(1) for widths, _ in self.profiles] + [np.ones(len(counts), bool)])
        chosen = np.broadcast_to(fits.argmax(0), len(gates))
        jobs: Jobs = []
        for number, (_, engine) in enumerate(self.profiles):
            jobs += self._jobs(engine, np.flatnonzero(chosen == number))
        rows = np.flatnonzero(chosen == len(self.profiles))
        return [*jobs, (self.whole, rows)] if len(rows) else jobs

    def _jobs(self, engine: Engine, rows: np.ndarray) -> Jobs:
        """Lists what a profile's engine has to do for some images."""
        return [(engine, part) for part in (rows[:, None] if self.one_by_one else [rows]) if len(part)]

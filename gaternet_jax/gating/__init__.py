"""Gates on any network: one operation, and what follows from where it stands."""

from gaternet_jax.gating import losses
from gaternet_jax.gating.explain import MacCount, count_macs
from gaternet_jax.gating.gate import GateSite, gate
from gaternet_jax.gating.program import find_sites
from gaternet_jax.gating.skip import Prepared, SkipClosed, skip_closed

__all__ = ["GateSite", "MacCount", "Prepared", "SkipClosed"]
__all__ += ["count_macs", "find_sites", "gate", "losses", "skip_closed"]

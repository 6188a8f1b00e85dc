"""Random arrays that are the same in every run, and their comparison."""

import jax.numpy as jnp
import numpy as np

RNG = np.random.default_rng(0)  # conftest.py begins it anew for every test


def weights(*shape, rng=RNG):
    """Normal numbers, the same ones whichever tests ran before; at the top of a module give an `rng` of its own."""
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def assert_close(out, wanted, tolerance=1e-5):
    """Compares arrays; they may differ by the tolerance, relative to the largest number (at least 1).

    A small difference of large sums is as wrong as the sums; how wrong depends on the machine.
    """
    wanted = np.asarray(wanted, np.float32)
    np.testing.assert_allclose(
        np.asarray(out, np.float32), wanted, rtol=0, atol=tolerance * max(1, np.abs(wanted).max(initial=0))
    )

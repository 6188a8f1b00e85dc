import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.errors import UserError
from gaternet_jax.gating import GateSite, find_sites, gate


def plain(maps, gates):
    return maps * gates[:, None, None, :]


MAPS, GATES = jnp.arange(2 * 3 * 3 * 4.0).reshape(2, 3, 3, 4), jnp.array([[1, 0, 0.5, 1], [0, 0, 1, 1]])


def test_gate_multiplies_each_channel():
    np.testing.assert_array_equal(gate(MAPS, GATES), plain(MAPS, GATES))
    np.testing.assert_array_equal(gate(MAPS[:, 0, 0], GATES, "head"), MAPS[:, 0, 0] * GATES)
    assert gate(MAPS.astype(jnp.bfloat16), GATES).dtype == jnp.bfloat16


def test_gate_has_the_gradient_of_a_multiplication():
    gradients = [jax.grad(lambda *xs: (f(*xs) ** 2).sum(), (0, 1))(MAPS, GATES) for f in (gate, plain)]  # noqa: B023
    for one, two in zip(*gradients, strict=True):
        np.testing.assert_array_equal(one, two)


def test_gate_can_be_mapped_and_exported():
    many = jnp.stack([MAPS, 2 * MAPS])
    np.testing.assert_array_equal(jax.vmap(gate, (0, None))(many, GATES)[1], 2 * plain(MAPS, GATES))
    (batch,) = jax.export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in (MAPS, GATES)]
    exported = jax.export.export(jax.jit(lambda *xs: gate(*xs, "stage1.conv")))(*shapes)
    restored = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(restored.call(MAPS, GATES), plain(MAPS, GATES))


@pytest.mark.parametrize(
    ("maps", "gates", "message"),
    [
        ((2, 4, 4, 3), (2, 4), r"need gates of shape \[2, 3\].*'conv1' have \[2, 4\].*slice"),
        ((2, 4, 4, 3), (3,), r"need gates of shape \[2, 3\]"),
        ((2, 4, 4, 3), (1, 3), r"need gates of shape \[2, 3\]"),
        ((2, 4, 4, 3), (2, 1, 1, 3), r"need gates of shape \[2, 3\]"),
        ((3,), (3,), r"'conv1' must have the shape \[batch, ..., channels\]; got \[3\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(maps, gates, message):
    with pytest.raises(UserError, match=message):
        gate(jnp.zeros(maps), jnp.zeros(gates), "conv1")


def network(kernel, x, gates):
    x = gate(x @ kernel, gates[:, :3], "first")
    x = jax.checkpoint(jax.jit(lambda x: gate(x, gates[:, 3:6])))(jax.nn.relu(x))
    return gate(x @ kernel.T, gates[:, 6:], "last")


def test_sites_are_found_by_tracing_in_their_order():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 3), (1, 2), (1, 8))]
    sites = find_sites(network, *shapes)
    assert [tuple(site) for site in sites] == [("first", 0, 3), ("gate1", 3, 3), ("last", 6, 2)]
    assert sites[1].gates == slice(3, 6)
    assert find_sites(lambda x: x + 1, shapes[0]) == ()


def test_a_site_that_is_in_no_block_is_its_own():
    names = [GateSite(name, 0, 1).unit for name in ("stage2.block1.conv2", "stage2.block1.branch1.conv2", "last")]
    assert names == ["stage2.block1", "stage2.block1", "last"]


def test_gates_that_are_mapped_or_looped_are_no_sites():
    def looped(x, gates):
        return jax.lax.scan(lambda x, _: (gate(x, gates, "inner"), None), x, None, 3)[0]

    assert find_sites(looped, MAPS, GATES) == ()
    assert find_sites(jax.vmap(gate), MAPS[None], GATES[None]) == ()
    assert find_sites(jax.vmap(gate, (0, None)), jnp.stack([MAPS, MAPS]), GATES) == ()
    assert len(find_sites(jax.value_and_grad(lambda x, g: gate(x, g).sum()), MAPS, GATES)) == 0

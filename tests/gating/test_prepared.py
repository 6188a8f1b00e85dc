"""Programs without closed channels are prepared once, for batches and gates of any kind; what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.errors import UserError
from gaternet_jax.gating import GateSite, gate, skip_closed
from tests.gating.foreign import foreign


def affine(params, x, gates):
    return gate(x @ params["in"], gates, "hidden") @ params["out"]


AFFINE = {"in": jnp.arange(6.0).reshape(2, 3), "out": jnp.ones((3, 2))}


def small_program():
    return skip_closed(affine, AFFINE, jnp.ones((2, 2)), jnp.ones((2, 3)))


def test_batches_of_other_sizes_take_what_was_prepared():
    program = small_program()
    prepared = program.prepare(AFFINE, {"hidden": [2, 0]})
    for batch in (1, 3):
        x, gates = jnp.arange(2.0 * batch).reshape(batch, 2), jnp.tile(jnp.array([[0.5, 0, 1]]), (batch, 1))
        np.testing.assert_allclose(program(prepared, x, gates), affine(AFFINE, x, gates))
    np.testing.assert_allclose(program(program.prepare(AFFINE), x, gates), affine(AFFINE, x, gates))


@pytest.mark.parametrize("change", [jnp.cos, jnp.sin, lambda x: jnp.cos(x) + jnp.arange(3.0)[None, :, None]])
def test_a_single_image_takes_what_was_prepared_for_several(change):
    """Where absent channels are put back among those that are there, zeros or constants, and of one position, too."""

    def function(kernel, x, gates):
        return jnp.sort(change(gate(x @ kernel, gates)), -1)

    kernel, gates = jnp.arange(9.0).reshape(3, 3), jnp.array([[1.0, 0, 1]])
    program = skip_closed(function, kernel, jnp.ones((2, 3, 3)), jnp.ones((2, 3)))
    prepared = program.prepare(kernel, [np.array([2, 0])])
    for batch in (1, 2, 3):
        x, own = jnp.arange(9.0 * batch).reshape(batch, 3, 3), jnp.tile(gates, (batch, 1))
        np.testing.assert_allclose(program(prepared, x, own), function(kernel, x, own), rtol=1e-5)


def test_numbers_of_the_size_of_the_batch_are_not_prepared():
    """As RMSNorm's mean of zero, and a causal mask."""

    def function(kernel, x, gates):
        zeros = jnp.expand_dims(jnp.zeros(x.shape[:-1]), -1)
        places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:-1])
        mask = places[:, :, None] >= places[:, None, :]
        return jnp.where(mask, 1.0, 0.5) @ (gate(jax.nn.relu(x @ kernel), gates) - zeros)

    kernel = jnp.arange(9.0).reshape(3, 3)
    program = skip_closed(function, kernel, jnp.ones((1, 2, 3)), jnp.ones((1, 3)))
    prepared = program.prepare(kernel, [np.array([2, 0])])
    for batch in (1, 3):
        x, gates = jnp.arange(6.0 * batch).reshape(batch, 2, 3), jnp.tile(jnp.array([[0.5, 0, 1]]), (batch, 1))
        np.testing.assert_allclose(program(prepared, x, gates), function(kernel, x, gates), rtol=1e-5)


def test_inputs_that_need_other_constants_are_refused():
    """The positional table of each image size is made of the parameters."""

    def function(params, x, gates):
        return gate(x + jnp.cumsum(jnp.broadcast_to(params, x.shape[1:]), 0)[None], gates)

    params = jnp.arange(3.0)
    program = skip_closed(function, params, jnp.ones((2, 4, 3)), jnp.ones((2, 3)))
    prepared = program.prepare(params)
    x = jnp.ones((1, 4, 3))
    np.testing.assert_allclose(program(prepared, x, jnp.ones((1, 3))), function(params, x, jnp.ones((1, 3))))
    with pytest.raises(UserError, match=r"shapes \[\(2, 5, 3\), \(2, 3\)\] other constants are needed"):
        program(prepared, jnp.ones((2, 5, 3)), jnp.ones((2, 3)))


def test_a_batch_of_any_size_can_be_exported():
    (batch,) = jax.export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct((batch, size), jnp.float32) for size in (2, 3)]
    program = skip_closed(affine, AFFINE, *shapes)
    prepared = program.prepare(AFFINE, [np.array([1])])
    exported = jax.export.export(jax.jit(lambda *args: program(prepared, *args)))(*shapes)
    x, gates = jnp.ones((4, 2)), jnp.tile(jnp.array([[0, 1.0, 0]]), (4, 1))
    np.testing.assert_allclose(exported.call(x, gates), affine(AFFINE, x, gates))


def test_gates_outside_what_is_kept_count_as_closed():
    x, gates = jnp.ones((1, 2)), jnp.ones((1, 3))
    program = small_program()
    out = program(program.prepare(AFFINE, [np.array([1])]), x, gates)
    np.testing.assert_allclose(out, affine(AFFINE, x, jnp.array([[0, 1.0, 0]])))


def test_what_was_transformed_can_be_transformed_again():
    """So that what depends on all parameters is computed once, and the choice of channels for each image."""
    x, gates, program = jnp.ones((2, 2)), jnp.tile(jnp.array([[0, 0.5, 1.0]]), (2, 1)), small_program()
    prepared = program.prepare(AFFINE)
    again = skip_closed(program.__call__, prepared, x, gates)
    assert again.sites == program.sites == (GateSite("hidden", 0, 3),)
    out = again(again.prepare(prepared, [np.array([2, 1])]), x, gates)
    np.testing.assert_allclose(out, affine(AFFINE, x, gates))
    (hidden, _) = again.explain([1]).layers
    assert hidden.outputs is not None and hidden.outputs.count([1]) == 1


def test_sites_that_are_always_open_need_no_gates():
    program = small_program()
    out = program(
        program.prepare(AFFINE, [np.array([1, 2])], always_open=["hidden"]), jnp.ones((1, 2)), jnp.zeros((1, 3))
    )
    np.testing.assert_allclose(out, affine(AFFINE, jnp.ones((1, 2)), jnp.array([[0, 1.0, 1.0]])))


def test_nan_in_a_closed_channel_is_skipped():
    """NaN times zero is NaN where closed channels are multiplied by their gates."""
    params = AFFINE | {"in": AFFINE["in"].at[:, 0].set(jnp.nan)}
    x, gates = jnp.ones((1, 2)), jnp.array([[0, 1.0, 1.0]])
    program = small_program()
    assert np.isnan(affine(params, x, gates)).all()
    kept = program(program.prepare(params, [np.array([1, 2])]), x, gates)
    np.testing.assert_allclose(kept, affine(AFFINE, x, gates))
    assert np.isnan(program(program.prepare(params), x, gates)).all(), "a kept channel is multiplied by its gate"


def test_gradients_pass():
    x, gates = jnp.ones((1, 2)), jnp.array([[0, 0.5, 1.0]])
    program = small_program()

    def skipping(params, gates):
        return (program(program.prepare(params, [np.array([2, 1])]), x, gates) ** 2).sum()

    ours = jax.grad(skipping, (0, 1))(AFFINE, gates)
    theirs = jax.grad(lambda params, gates: (affine(params, x, gates) ** 2).sum(), (0, 1))(AFFINE, gates)
    np.testing.assert_allclose(ours[0]["out"], theirs[0]["out"])
    np.testing.assert_allclose(ours[1][:, 1:], theirs[1][:, 1:])
    assert ours[1][0, 0] == 0, "the gate of a channel that is not kept has no influence"


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ([[0], [1]], "1 gated sites, but the channels of 2 were given"),
        ([[3]], r"'hidden' keeps some of its 3 channels.*got \[3\]"),
        ([[-1]], r"got \[-1\]"),
        ([[1, 1]], r"distinct integers.*got \[1, 1\]"),
        ([[]], "at least one"),
        ([[0.5]], "float"),
        ([[True, False, True]], "distinct integers.*True"),
        ([[[0]]], r"of shape \[1, 1\]"),
        ({"other": [0]}, r"no gates are named \['other'\]; there are \['hidden'\]"),
    ],
)
def test_channels_that_do_not_exist_are_refused(keep, message):
    with pytest.raises(UserError, match=message):
        small_program().prepare(AFFINE, keep)


def test_other_parameters_are_refused():
    with pytest.raises(UserError, match=r"'out' was traced with the shape \(3, 2\); got"):
        small_program().prepare(AFFINE | {"out": jnp.ones((3, 1))})
    with pytest.raises(UserError, match="no gates are named"):
        small_program().prepare(AFFINE, always_open=["other"])
    with pytest.raises(UserError, match=r"what \.prepare\(params, keep\) gave; got a dict"):
        small_program()(AFFINE, jnp.ones((1, 2)), jnp.ones((1, 3)))


def test_a_name_that_several_gates_have_does_not_say_which_is_meant():
    """As where one layer stands in two places."""

    def function(kernel, x, gates):
        for place in range(2):
            x = gate(x @ kernel, gates[:, 2 * place : 2 * place + 2], "layer")
        return x

    kernel, x, gates = jnp.array([[1.0, 2], [3, 4]]), jnp.ones((1, 2)), jnp.array([[0.0, 1, 1, 0]])
    program = skip_closed(function, kernel, x, gates)
    with pytest.raises(UserError, match=r"several gates are named \['layer'\]; give `keep` as a list, in the order of"):
        program.prepare(kernel, {"layer": [1]})
    np.testing.assert_allclose(program(program.prepare(kernel, [[1], [0]]), x, gates), function(kernel, x, gates))


def test_explain_says_where_one_gate_meets_another():
    function, state, num_gates = foreign()
    text = str(skip_closed(function, state, jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, num_gates))).explain())
    assert "gate stem: skips outputs of stem, depthwise; then gate depthwise decides" in text
    assert "gate depthwise: what is gated has the channels that another gate leaves; skips inputs of project" in text
    assert "gate gate3: skips outputs of left; whole again at conv_general_dilated (foreign.py" in text


def test_explain_says_which_gates_only_mask():
    def function(kernel, x, gates):
        def body(x, _):
            return gate(x, gates, "looped"), None

        x = jax.lax.scan(body, x, None, 2)[0]
        x = jax.vmap(lambda x, gates: gate(x, gates, "mapped"), (1, None), 1)(x[:, None], gates)[:, 0]
        return gate(jnp.sort(x @ kernel, -1), gates, "sorted") @ kernel

    shapes = jnp.ones((3, 3)), jnp.ones((2, 3)), jnp.ones((2, 3))
    program = skip_closed(function, *shapes)
    text = str(program.explain())
    assert "gate looped: only masks: it stands within scan" in text
    assert "gate mapped: only masks: it was changed by vmap" in text
    assert "gate sorted: what is gated comes from sort (test_prepared.py:" in text and "skips inputs of" in text
    np.testing.assert_allclose(program(program.prepare(shapes[0]), *shapes[1:]), function(*shapes), rtol=1e-6)

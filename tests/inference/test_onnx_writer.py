"""What is written computes in ONNX Runtime what JAX computes."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx
from jax import lax

from gaternet_jax.errors import UserError
from gaternet_jax.gating import gate, skip_closed
from gaternet_jax.inference.onnx_writer import write_onnx
from tests.arrays import RNG, assert_close, weights
from tests.gating.foreign import foreign
from tests.gating.test_skip import SIZE, backbone, selection


def shapes_of(**arrays):
    return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in arrays.items()}


def run(serialized, **arrays):
    session = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(x) for name, x in arrays.items()})


def kinds(serialized):
    return [node.op_type for node in onnx.load_from_string(serialized).graph.node]


CONV = ("NHWC", "HWIO", "NHWC")
OWN = np.random.default_rng(0)
KERNEL, DEPTHWISE = weights(3, 3, 6, 4, rng=OWN), weights(3, 2, 1, 12, rng=OWN)
MATRIX, VECTOR = weights(6, 5, rng=OWN), weights(6, rng=OWN)
INDEX = np.array([4, 0, 3])
OPERATIONS = {
    "convolution": lambda x: lax.conv_general_dilated(x, KERNEL, (2, 1), ((1, 0), (2, 1)), dimension_numbers=CONV),
    "dilated": lambda x: lax.conv_general_dilated(
        x, KERNEL, (1, 1), "SAME", rhs_dilation=(2, 1), dimension_numbers=CONV
    ),
    "depthwise": lambda x: lax.conv_general_dilated(
        x, DEPTHWISE, (1, 1), "VALID", feature_group_count=6, dimension_numbers=CONV
    ),
    "product": lambda x: x @ MATRIX,
    "einsum": lambda x: jnp.einsum("bhwc,bhvc,cd->bwvd", x, x, MATRIX),
    "relu": jax.nn.relu,
    "activations": lambda x: jax.nn.gelu(x) + jax.nn.silu(x) * jax.nn.elu(x) - jax.nn.softplus(x) / 2 + jax.nn.relu6(x),
    "numbers": lambda x: jnp.sqrt(jnp.abs(x)) + lax.rsqrt(x * x + 1) + jnp.sign(x) * x**3 + jnp.round(x) + jnp.expm1(x),
    "comparisons": lambda x: jnp.where((x > 0) & ~(x >= 1) | (x != x), x, -x).clip(-1, 2).astype(jnp.int32),
    "per channel": lambda x: jnp.maximum(x * VECTOR[None, None, None] - VECTOR[None, None, None], 0),
    "softmax": lambda x: jax.nn.softmax(x, -1),
    "log-softmax over space": lambda x: jax.nn.log_softmax(x, (1, 2)),
    "reductions": lambda x: x.mean((1, 2)) + x.max((1, 2)) - x.min(1).prod(1),
    "no reduction": lambda x: x.sum(()),
    "argmax": lambda x: x.argmax(-1),
    "max-pooling": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (0, 1), (0, 0))
    ),
    "average pooling": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 3, 1), (1, 2, 1, 1), "SAME"),
    "shapes": lambda x: jnp.squeeze(x[:, ::2, 1:3, None].transpose(0, 2, 3, 1, 4)[:, :1], 1).reshape(x.shape[0], -1),
    "concatenate": lambda x: jnp.concatenate([x[..., :2], jnp.flip(x, -1), jnp.ones_like(x)], -1),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 3)), constant_values=2.0),
    "channels": lambda x: x.at[..., INDEX].get(mode="promise_in_bounds"),
    "add channels": lambda x: x.at[..., INDEX].add(x[..., :3], unique_indices=True, mode="promise_in_bounds"),
    "channels of a convolution": lambda x: x.at[..., INDEX].add(
        lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME", dimension_numbers=CONV)[..., :3]
    ),
    "broadcast": lambda x: jnp.broadcast_to(x.mean((1, 2))[:, None, :, None], (x.shape[0], 2, 6, 3)),
    "twice the batch": lambda x: jnp.concatenate([jnp.concatenate([x, x]), jnp.ones((2 * x.shape[0], 5, 4, 1))], -1),
    "constants": lambda x: jnp.stack([jnp.arange(6.0), VECTOR]).sum(0)[None, None, None] + x,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    """Traced for another batch than those that run."""
    x = weights(3, 5, 4, 6)
    serialized = write_onnx(OPERATIONS[name], shapes_of(x=x[:1]), ["y"])
    for batch in (3, 1):
        (out,) = run(serialized, x=x[:batch])
        wanted = OPERATIONS[name](x[:batch])
        assert out.dtype == wanted.dtype
        assert_close(out, wanted)


def test_several_inputs_and_outputs_and_metadata():
    images, scale = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.ones((2, 1, 4), np.float32)
    serialized = write_onnx(
        lambda images, scale: {"y": images.astype(jnp.float32) * scale, "z": images},
        shapes_of(images=images, scale=scale),
        ["y", "z"],
        labels="[]",
    )
    y, z = run(serialized, images=images, scale=scale)
    np.testing.assert_array_equal(y, images)
    np.testing.assert_array_equal(z, images)
    assert onnx.load_from_string(serialized).metadata_props[0].key == "labels"


@pytest.mark.parametrize(
    "network", [foreign, lambda: backbone("resnet11_bottleneck", 4), lambda: backbone("densenet10", 4, se_ratio=2)]
)
def test_networks_without_their_closed_channels(network):
    function, params, num_gates = network()
    x = weights(3, SIZE, SIZE, 3)
    program = skip_closed(function, params, x, jnp.zeros((3, num_gates)))
    keep, may_open = selection(program.sites)
    gates = jnp.asarray(np.concatenate(may_open) & (RNG.random((3, num_gates)) < 0.7), jnp.float32)
    prepared = program.prepare(params, keep)
    serialized = write_onnx(lambda *args: program(prepared, *args), shapes_of(x=x, gates=gates), ["logits"])
    (out,) = run(serialized, x=x, gates=gates)
    assert_close(out, jax.jit(function)(params, x, gates), 1e-4)


def test_a_key_of_random_numbers_may_be_captured():
    """As of a network with Dropout; numbers drawn with it, whatever the images, are those of JAX."""
    key, x = jax.random.key(0), weights(2, 3)
    (unused,) = run(write_onnx(lambda x: (jax.random.split(key), nnx.relu(x))[1], shapes_of(x=x), ["y"]), x=x)
    (drawn,) = run(write_onnx(lambda x: x + jax.random.normal(key, (1, 3)), shapes_of(x=x), ["y"]), x=x)
    np.testing.assert_array_equal(unused, nnx.relu(x))
    assert_close(drawn, x + jax.random.normal(key, (1, 3)))


def test_channels_are_added_to_wide_maps_without_a_constant_beside():
    def function(kernel, x, gates):
        maps = gate(x, gates)
        return (maps @ kernel, x + maps)

    kernel, x, gates = weights(6, 2), weights(2, 3, 3, 6), jnp.tile(jnp.array([[0, 1.0, 0, 0, 1, 0]]), (2, 1))
    program = skip_closed(function, kernel, x, gates)
    prepared = program.prepare(kernel, [[4, 1]])
    serialized = write_onnx(lambda *args: program(prepared, *args), shapes_of(x=x, gates=gates), ["narrow", "wide"])
    for out, wanted in zip(run(serialized, x=x, gates=gates), function(kernel, x, gates), strict=True):
        assert_close(out, wanted)
    assert kinds(serialized).count("Add") == 1


@pytest.mark.parametrize("gated", [False, True])
def test_onnx_runtime_transposes_images_only_and_fuses_biases(gated, tmp_path):
    function, params, num_gates = backbone("resnet8", 4)
    x, gates = weights(1, SIZE, SIZE, 3), jnp.ones((1, num_gates))
    program = skip_closed(function, params, x, gates)
    prepared = program.prepare(params, always_open=() if gated else [site.name for site in program.sites])
    written = write_onnx(lambda *args: program(prepared, *args), shapes_of(x=x, gates=gates), ["logits"])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(written, options, providers=["CPUExecutionProvider"])
    ran = kinds((tmp_path / "optimized.onnx").read_bytes())
    counts = {kind: ran.count(kind) for kind in ("Transpose", "Conv", "Relu", "Add", "Mul", "Max")}
    assert counts == {"Transpose": 1, "Conv": 9, "Relu": 7, "Add": 3, "Mul": 6 * gated, "Max": 0}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x, -1), r"sort \(test_onnx_writer.py:\d+\) is not written as ONNX"),
        (lambda x: jnp.fft.fft(x).real, "fft"),
        (lambda x: lax.conv_general_dilated(x, KERNEL, (1, 1), [(1, 1)] * 2, (2, 2), dimension_numbers=CONV), "holes"),
        (
            lambda x: lax.conv_general_dilated(x, KERNEL, (1, 1), [(-1, 0)] * 2, dimension_numbers=CONV),
            "negative padding",
        ),
        (
            lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1,) * 4, "VALID", None, (1, 2, 2, 1)),
            "dilations",
        ),
        (lambda x: x.at[..., INDEX].set(x[..., :3]), "maps that are not known"),
        (lambda x: x.at[INDEX[1:2]].add(VECTOR, wrap_negative_indices=False), "other than channels"),
        (lambda x: x.at[..., x[0, 0, 0, :3].astype(int)].get(), "slice .* with the images of a batch together"),
        (lambda x: x - x.max(0, keepdims=True), "the images of a batch together"),
        (lambda x: jnp.einsum("ahwc,bhwc->ab", x, x), "the images of a batch together"),
        (lambda x: x[1:], "slice .* with the images of a batch together"),
        (lambda x: jnp.pad(x, ((0, 1), (0, 0), (0, 0), (0, 0))), "pad .* with the images of a batch together"),
        (lambda x: x / x.shape[0], "a number that depends on the size of the batch"),
        (lambda x: jnp.arange(x.shape[0]), "iota"),
    ],
)
def test_what_is_not_written_is_refused(function, message):
    with pytest.raises(UserError, match=message):
        write_onnx(function, shapes_of(x=weights(1, 5, 4, 6)), ["y"])


@pytest.mark.parametrize("names", ["xx", ["/relu_0", "y"], ["x", "y", "z"], ["x"]])
def test_names_that_cannot_be_are_refused(names):
    x = jax.ShapeDtypeStruct((1, 2), jnp.float32)
    with pytest.raises(UserError, match=r"different names, none beginning with '/', the last 1 for outputs"):
        write_onnx(jax.nn.relu, {names[0]: x}, names[1:])
    onnx.load_from_string(write_onnx(jax.nn.relu, {"relu_0": x}, ["relu_1"]))


def test_the_line_of_the_network_is_named_also_of_a_prepared_program():
    def function(kernel, x, gates):
        return jnp.sort(gate(jax.nn.relu(x @ kernel), gates), -1)

    kernel, x, gates = weights(6, 6), weights(1, 5, 4, 6), jnp.ones((1, 6))
    program = skip_closed(function, kernel, x, gates)
    prepared = program.prepare(kernel, [[1, 2]])
    line = inspect.getsourcelines(function)[1] + 1
    with pytest.raises(UserError, match=rf"sort \(test_onnx_writer.py:{line}\) is not written"):
        write_onnx(lambda x, gates: program(prepared, x, gates), {"x": x, "gates": gates}, ["y"])

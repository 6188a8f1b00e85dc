"""Gates on a network of your own: train it, count what closed filters save, and leave them out.

    python examples/own_network.py        (under a minute on 2 CPU cores; handwritten digits that scikit-learn brings)

The network is plain Flax NNX. It is gated by one call, `gx.gate(maps, gates)`; the rest follows from where that stands.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import gaternet_jax as gx


class Block(nnx.Module):
    """Expands 1x1, filters each channel 3x3 (a depthwise convolution), projects 1x1, and adds what came in."""

    def __init__(self, channels, hidden, rngs):
        self.expand, self.bn1 = nnx.Conv(channels, hidden, (1, 1), rngs=rngs), nnx.BatchNorm(hidden, rngs=rngs)
        self.depthwise = nnx.Conv(hidden, hidden, (3, 3), feature_group_count=hidden, rngs=rngs)
        self.bn2, self.project = nnx.BatchNorm(hidden, rngs=rngs), nnx.Conv(hidden, channels, (1, 1), rngs=rngs)

    def __call__(self, x, gates, name):
        maps = gx.gate(nnx.relu(self.bn1(self.expand(x))), gates, name)
        return x + self.project(nnx.relu(self.bn2(self.depthwise(maps))))


class Network(nnx.Module):
    """What classifies: images [B, 8, 8, 1] and gates [B, 160] to logits [B, 10]."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(1, 24, (3, 3), rngs=rngs)
        self.block1, self.block2 = Block(24, 48, rngs), Block(24, 48, rngs)
        self.last, self.bn = nnx.Conv(24, 64, (3, 3), strides=2, rngs=rngs), nnx.BatchNorm(64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images, gates):
        block1, block2, last = jnp.split(gates, [48, 96], axis=1)
        x = self.block2(self.block1(self.stem(images), block1, "block1"), block2, "block2")
        return self.head(gx.gate(nnx.relu(self.bn(self.last(x))), last, "last").mean((1, 2)))


class Gater(nnx.Module):
    """What decides: images to one score for each gate, from a look at the whole image."""

    def __init__(self, rngs):
        self.conv1, self.conv2 = (nnx.Conv(*sizes, (3, 3), strides=2, rngs=rngs) for sizes in ((1, 8), (8, 16)))
        self.scores = nnx.Linear(16, 160, rngs=rngs)

    def __call__(self, images, key=None):
        x = nnx.relu(self.conv2(nnx.relu(self.conv1(images)))).mean((1, 2))
        return gx.sem_hash(self.scores(x), key)  # with a key noisy, for training; without one 0 or 1


def main(steps=600):
    images, labels = load_digits(return_X_y=True)
    images = np.float32(images.reshape(-1, 8, 8, 1) / 16)
    train, test = (images[:1437], labels[:1437]), (images[1437:], labels[1437:])

    # The gates are found, and multiply-accumulates counted, by tracing: nothing is computed.
    model = nnx.Dict(gater=Gater(nnx.Rngs(0)), network=Network(nnx.Rngs(1)))
    model.network.eval()
    graphdef, arrays = nnx.split(model.network)
    network = lambda arrays, images, gates: nnx.merge(graphdef, arrays, copy=True)(images, gates)  # noqa: E731
    example = images[:1], np.ones((1, 160), np.float32)
    macs = gx.count_macs(network, arrays, *example)
    print("gates:", ", ".join(f"{site.name} ({site.size})" for site in gx.find_sites(network, arrays, *example)))

    # Training: the gradient goes through gates as SemHash says. What open filters cost is part of the loss.
    @nnx.jit
    def train_step(model, optimizer, images, labels, key):
        def loss_of(model):
            gates = model.gater(images, key)
            losses = optax.softmax_cross_entropy_with_integer_labels(model.network(images, gates), labels)
            return losses.mean() + 0.5 * macs.fraction(gates).mean()

        optimizer.update(model, nnx.grad(loss_of)(model))

    model.network.train()
    optimizer, rng = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param), np.random.default_rng(0)
    for step, batch in enumerate(rng.integers(0, 1437, (steps, 64))):
        train_step(model, optimizer, train[0][batch], train[1][batch], jax.random.fold_in(jax.random.key(1), step))
    arrays = nnx.state(model.network)

    # Analysis: which gates are open for which images.
    decide = nnx.jit(lambda gater, images: gater(images))
    opened, gates = decide(model.gater, train[0]), decide(model.gater, test[0])
    rate = np.asarray(opened).mean(0)
    for site in macs.sites:
        on, off = (rate[site.gates] == 1).sum(), (rate[site.gates] == 0).sum()
        print(f"{site.name}: {on} gates always open, {off} always closed, {site.size - on - off} by the image")

    # Without the filters that no training image opens. A site keeps one filter at least; its gate stays closed.
    keep = {site.name: np.argsort(-rate[site.gates])[: max((rate[site.gates] > 0).sum(), 1)] for site in macs.sites}
    program = gx.skip_closed(network, arrays, *example)
    prepared = program.prepare(arrays, keep)
    masked, compact = jax.jit(network)(arrays, train[0], opened), program(prepared, train[0], opened)
    explanation = program.explain([len(keep[site.name]) for site in macs.sites])
    print(explanation, f"logits differ from the masked network's by {jnp.abs(masked - compact).max():.1e}", sep="\n")
    correct, share = (program(prepared, test[0], gates).argmax(-1) == test[1]).mean(), macs.fraction(gates).mean()
    print(f"test accuracy {correct:.1%}; {macs.dense:,} multiply-accumulates, with the gates {share:.0%} of them")

    # Export: images of any number to logits, the gater included.
    classify = lambda images: program(prepared, images, model.gater(images))  # noqa: E731
    batch = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), 8, 8, 1), np.float32)
    files = {"StableHLO": jax.export.export(jax.jit(classify))(batch).serialize()}
    if importlib.util.find_spec("onnx"):
        files["ONNX"] = gx.write_onnx(classify, {"images": jax.ShapeDtypeStruct((1, 8, 8, 1), np.float32)}, ["logits"])
    print("exported:", ", ".join(f"{name} ({len(content):,} bytes)" for name, content in files.items()))
    return macs, keep, explanation, masked, compact, files


if __name__ == "__main__":
    main()

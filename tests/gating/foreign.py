"""A network of plain Flax layers, gated as anyone would: nothing of this package but `gate`."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gaternet_jax.gating import gate


class Foreign(nnx.Module):
    """Convolutions of all kinds, two norms, squeeze-and-excitation, concatenation, a skip connection."""

    sizes = (12, 12, 8, 4, 8, 16)  # of its gate sites

    def __init__(self, rngs: nnx.Rngs, dtype=jnp.float32):
        conv = lambda *args, **options: nnx.Conv(*args, dtype=dtype, rngs=rngs, **options)  # noqa: E731
        norm = lambda channels: nnx.BatchNorm(channels, use_running_average=True, dtype=dtype, rngs=rngs)  # noqa: E731
        self.stem, self.bn1 = conv(3, 12, (3, 3), strides=2), norm(12)
        self.depthwise, self.bn2 = conv(12, 12, (3, 3), feature_group_count=12), norm(12)
        self.project, self.bn3 = conv(12, 8, (1, 1), use_bias=False), norm(8)
        self.squeeze, self.excite = nnx.Linear(8, 4, rngs=rngs), nnx.Linear(4, 8, rngs=rngs)
        self.left, self.right, self.bn4 = conv(8, 4, (1, 1)), conv(8, 8, (3, 3), kernel_dilation=2), norm(12)
        self.grouped, self.layer_norm = conv(12, 8, (3, 3), feature_group_count=2), nnx.LayerNorm(8, rngs=rngs)
        self.hidden, self.head = nnx.Linear(8 * 16, 16, rngs=rngs), nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x: jax.Array, gates: jax.Array) -> jax.Array:
        stem, depthwise, project, left, right, hidden = jnp.split(gates, np.cumsum(self.sizes)[:-1], axis=1)
        x = gate(nnx.gelu(self.bn1(self.stem(x))), stem, "stem")
        x = gate(nnx.relu6(self.bn2(self.depthwise(x))), depthwise, "depthwise")
        x = gate(self.bn3(self.project(x)), project, "project")
        weights = nnx.sigmoid(self.excite(nnx.relu(self.squeeze(x.mean((1, 2))))))
        x = nnx.swish(x * weights[:, None, None])
        joined = jnp.concatenate([gate(self.left(x), left), gate(self.right(x), right)], -1)
        joined = nnx.leaky_relu(self.bn4(joined))
        x = x + self.layer_norm(self.grouped(joined))
        x = nnx.avg_pool(x, (2, 2), (2, 2))
        x = gate(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))), hidden, "hidden")
        return self.head(x).astype(jnp.float32)


def foreign(dtype=jnp.float32):
    """The network as a function of (state, images [B, 16, 16, 3], gates), its state, and how many gates it has."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Foreign(nnx.Rngs(0), dtype)))
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-2].key in ("var", "scale"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 4)), leaf.dtype)

    state = jax.tree_util.tree_map_with_path(fill, state)
    return lambda state, x, gates: nnx.merge(graphdef, state)(x, gates), state, sum(Foreign.sizes)

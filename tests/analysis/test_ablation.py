import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.analysis.ablation import ablate
from gaternet_jax.analysis.observe import Observations
from gaternet_jax.data.preprocess import normalize
from gaternet_jax.gating.local import LocalPass
from gaternet_jax.models.build import build_model
from gaternet_jax.models.functional import merge_model, split_model
from tests.helpers import digits_config


class Forced(LocalPass):
    """Blocks decide, and one gate is set."""

    def __init__(self, gate, value):
        super().__init__(None, None)
        self.gate, self.value = gate, value

    def of(self, site):
        index = jnp.arange(site.size)[None] + site.offset
        return jnp.where(index == self.gate, self.value, super().of(site))


@pytest.mark.parametrize("scope", ["global", "local"])
def test_accuracies_are_those_of_forced_gates(scope):
    config = digits_config(**{"model.gater.scope": scope})
    model = build_model(config.model, seed=1)
    model.eval()
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (30, 8, 8, 1), np.uint8), random.integers(0, 10, 30).astype(np.int32)
    graphdef, params, stats = split_model(model)

    @jax.jit
    def forced(images, gate, value):
        merged, images = merge_model(graphdef, params, stats), normalize(images, config.data)
        outputs = merged(images)
        index = jnp.arange(outputs.gates.shape[1])[None]
        given = jnp.where(index == gate, value, outputs.gates) if scope == "global" else Forced(gate, value)
        return outputs.gates, merged.backbone(images, given).argmax(-1)

    gates, predictions = map(np.asarray, forced(images, -1, 0.0))
    labels[:20] = predictions[:20]  # so that there is something to lose
    labels[4] = -1
    filters = np.flatnonzero(gates.any(0) & ~gates.all(0))[:3]
    filters = np.concatenate([filters, [0, 50]])
    numbers = np.arange(0, 30, 2)  # a sample of the images, the one of unknown class among them
    observations = Observations(
        gates=gates > 0,
        labels=labels,
        predictions=predictions.astype(np.int32),
        confidences=np.ones(30, np.float32),
        macs=np.ones(30, np.float32),
        sites=model.gate_sites,
        class_names=tuple("0123456789"),
    )
    found = ablate(model, config, images[numbers], numbers, observations, filters)
    assert found is not None

    def by_class(predictions):
        right = [(predictions[numbers] == label)[labels[numbers] == label] for label in range(10)]
        return np.array([part.mean() if part.size else np.nan for part in right])

    np.testing.assert_allclose(found.as_is, by_class(predictions))
    changed = False
    for place, gate in enumerate(filters):
        for accuracies, value in ((found.shut, 0.0), (found.opened, 1.0)):
            expected = by_class(np.asarray(forced(images, gate, value)[1]))
            np.testing.assert_allclose(accuracies[place], expected)
            changed |= not np.array_equal(expected, found.as_is, equal_nan=True)
    assert changed, "forcing these filters changes something"
    assert found.images_by_class.sum() == 14
    unknown = np.flatnonzero(labels == -1)
    assert ablate(model, config, images[unknown], unknown, observations, filters) is None
    assert ablate(model, config, images, np.arange(30), observations, filters[:0]) is None

import numpy as np

from gaternet_jax.analysis.portraits import RARE, filter_portrait, image_portrait, unusual_images
from gaternet_jax.analysis.statistics import compute_statistics
from tests.helpers import random_observations


def test_portrait_of_a_filter():
    observations = random_observations(0, images=60, unknown=10)
    statistics = compute_statistics(observations)
    gate = int(statistics.most_specific(1)[0])
    found = filter_portrait(observations, statistics, gate, count=9)
    assert observations.gates[found["opened_by"], gate].all() and len(found["opened_by"]) == 9
    assert not observations.gates[found["shut_by"], gate].any() and len(found["shut_by"]) == 9
    opened = [(observations.labels[i], observations.gates[i, gate]) for i in range(60)]
    assert found["open_by_class"].tolist() == [opened.count((label, True)) for label in range(3)]
    assert filter_portrait(observations, statistics, 18)["shut_by"].size == 0, "a gate that is always on"


def test_portrait_of_an_image_names_filters_rare_for_its_class():
    observations = random_observations(0, images=60, unknown=1)
    observations.gates[observations.labels == 1, 4] = False
    odd = np.flatnonzero(observations.labels == 1)[5]
    observations.gates[odd, 4] = True
    statistics = compute_statistics(observations)
    found = image_portrait(observations, statistics, odd)
    rate = 1 / statistics.images_by_class[1]
    assert found["rare"][0] == {"gate": 4, "open_rate_in_class": rate} and rate < RARE
    assert found["open_gates"] == observations.gates[odd].sum()
    assert image_portrait(observations, statistics, 0)["rare"] == []
    counts = [len(image_portrait(observations, statistics, image)["rare"]) for image in range(60)]
    unusual = unusual_images(observations, statistics, 5)
    assert [counts[image] for image in unusual] == sorted(counts, reverse=True)[:5]

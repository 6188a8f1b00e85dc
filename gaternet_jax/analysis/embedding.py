"""How much gate vectors tell about the class: a linear probe, and a map of the images by their gates.

Whether a gater specialises is a question, not a premise: every number stands beside what chance gives.

gates -> ridge regression -> held-out accuracy
gates -> PCA -> t-SNE -> points in the plane -> classes of the nearest neighbours
"""

import dataclasses

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

PCA_DIMENSIONS = 400  # GaterNet, section on the gates' distribution; fewer where there are fewer gates or images
PERPLEXITY = 30.0  # scikit-learn's own; the paper is silent
MAP_IMAGES = 2000  # at most; t-SNE's time grows faster than their number
PROBE_IMAGES = 10_000  # at most
HELD_OUT = 0.25  # of the probe's images
PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # of the ridge; chosen by leave-one-out on the images it learns from
NEIGHBOURS = 10
SHUFFLES = 5
FEWEST = 20  # images


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Describes a linear classifier that sees nothing but gate vectors.

    Attributes:
        learned_from: images.
        held_out: images, of which the accuracies are.
        accuracy: fraction of the held-out images that it classifies rightly.
        majority: the same for the class that is most frequent among those it learned from.
        shuffled: the same for classifiers that learned from shuffled labels, mean of SHUFFLES.
    """

    learned_from: int
    held_out: int
    accuracy: float
    majority: float
    shuffled: float


@dataclasses.dataclass(frozen=True)
class Map:
    """Holds places of images in the plane, near each other where their gate vectors are alike.

    Attributes:
        images: int64 [M], which they are.
        points: float32 [M, 2].
        dimensions: that PCA left to t-SNE.
        purity: fraction of the NEIGHBOURS nearest neighbours in the plane that are of an image's own class, mean over
            the images of known class; NaN if there are too few.
        shuffled: the same with shuffled labels, mean of SHUFFLES.
    """

    images: np.ndarray
    points: np.ndarray
    dimensions: int
    purity: float
    shuffled: float


def probe_gates(gates: np.ndarray, labels: np.ndarray, seed: int = 0) -> LinearProbe | None:
    """Fits a ridge classifier (least squares onto +1 for the class and -1 for the others) and tests it on other images.

    Args:
        gates: bool [N, G].
        labels: int [N]; images with label -1 are left out.
        seed: of the choice of images and of the shuffles.

    Returns:
        None with fewer than FEWEST images or fewer than two classes among them.
    """
    random = np.random.default_rng(seed)
    images = random.permutation(np.flatnonzero(labels >= 0))[:PROBE_IMAGES]
    held_out = round(len(images) * HELD_OUT)
    test, train = images[:held_out], images[held_out:]
    if len(images) < FEWEST or len(np.unique(labels[train])) < 2:
        return None
    with _one_thread():
        classifier = _Ridge(gates[train], gates[test])
        shuffles = [classifier.accuracy(random.permutation(labels[train]), labels[test]) for _ in range(SHUFFLES)]
        accuracy = classifier.accuracy(labels[train], labels[test])
    most_frequent = np.bincount(labels[train]).argmax()
    return LinearProbe(
        learned_from=len(train),
        held_out=held_out,
        accuracy=accuracy,
        majority=float((labels[test] == most_frequent).mean()),
        shuffled=float(np.mean(shuffles)),
    )


class _Ridge:
    """Fits ridge classifiers of the same images with several labelings, which share all of the heavy work."""

    def __init__(self, train: np.ndarray, test: np.ndarray):
        mean = train.mean(0)
        centred = train - mean
        self._eigenvalues, axes = np.linalg.eigh(centred.T @ centred)
        self._train, self._test = centred @ axes, (test - mean) @ axes  # columns of train are orthogonal

    def predict(self, labels: np.ndarray, penalty: float | None = None) -> np.ndarray:
        """Predicts labels of the test images, for these labels of the training images; None: the penalty is chosen."""
        classes, place = np.unique(labels, return_inverse=True)
        targets = 2.0 * np.eye(len(classes))[place] - 1
        mean = targets.mean(0)
        projected = self._train.T @ (targets - mean)  # [G, K]
        penalty = penalty or min(PENALTIES, key=lambda penalty: self._error(targets - mean, projected, penalty))
        scores = self._test @ (projected / (self._eigenvalues + penalty)[:, None]) + mean
        return classes[scores.argmax(-1)]

    def _error(self, targets: np.ndarray, projected: np.ndarray, penalty: float) -> float:
        """Gives the mean squared error of predicting each training image from the others (Allen 1974)."""
        shrunk = 1 / (self._eigenvalues + penalty)
        residuals = targets - self._train @ (projected * shrunk[:, None])
        own_share = (self._train**2) @ shrunk + 1 / len(targets)
        return float(((residuals / (1 - own_share)[:, None]) ** 2).mean())

    def accuracy(self, train_labels: np.ndarray, test_labels: np.ndarray) -> float:
        return float((self.predict(train_labels) == test_labels).mean())


def _one_thread() -> threadpool_limits:
    """Limits BLAS and OpenMP to one thread: threads that wait for each other slow t-SNE fivefold on a busy machine."""
    return threadpool_limits(1)


def map_images(gates: np.ndarray, labels: np.ndarray, seed: int = 0) -> Map | None:
    """Brings gate vectors into the plane: PCA, then t-SNE, as in the paper.

    Args:
        gates: bool [N, G].
        labels: int [N]; -1 where the class is not known.
        seed: of the choice of at most MAP_IMAGES images, of t-SNE and of the shuffles.

    Returns:
        None with fewer than FEWEST images, or fewer than two gates that depend on the image.
    """
    random = np.random.default_rng(seed)
    images = np.sort(random.permutation(len(gates))[:MAP_IMAGES])
    chosen = gates[images]
    chosen = chosen[:, chosen.any(0) & ~chosen.all(0)].astype(np.float64)  # constant ones add nothing
    if len(images) < FEWEST or chosen.shape[1] < 2:
        return None
    dimensions = min(PCA_DIMENSIONS, *chosen.shape)
    perplexity = min(PERPLEXITY, (len(images) - 1) / 3)
    with _one_thread():
        reduced = PCA(dimensions, random_state=seed).fit_transform(chosen)
        points = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)
    known = labels[images] >= 0
    purity, shuffled = neighbour_purity(points[known], labels[images][known], random)
    return Map(images, points.astype(np.float32), dimensions, purity, shuffled)


def neighbour_purity(points: np.ndarray, labels: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """Gives the fraction of nearest neighbours that have a point's own label, and the same after shuffling the labels.

    Args:
        points: float [M, D].
        labels: int [M].
        random: shuffles.
    """
    if len(points) <= NEIGHBOURS:
        return float("nan"), float("nan")
    _, neighbours = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(points).kneighbors()  # a point is not its own

    def purity(labels: np.ndarray) -> float:
        return float((labels[neighbours] == labels[:, None]).mean())

    return purity(labels), float(np.mean([purity(random.permutation(labels)) for _ in range(SHUFFLES)]))

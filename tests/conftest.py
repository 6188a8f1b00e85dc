"""Eight CPU devices, strict shapes, a dataset folder and compiled programs of the test session's own."""

import os

import jax
import numpy as np
import pytest
from absl import flags

from tests.arrays import RNG

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()

# Optimised code costs more than it saves in programs that run once; what XLA makes of a model stays the same.
QUICK = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=2"]
if jax.__version_info__ < (0, 11):  # later ones have no other emitters
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([*QUICK, os.environ.get("XLA_FLAGS", "")])


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """A folder of prepared datasets, with the digits made on first use; nothing outside the repository is read."""
    folder = tmp_path_factory.mktemp("tfds")
    os.environ["TFDS_DATA_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """Many tests train the same small model. What one worker, or a process that a test starts, compiles, all have."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "compiled"
    for name, value in (("compilation_cache_dir", str(folder)), ("persistent_cache_min_compile_time_secs", 0.0)):
        jax.config.update(f"jax_{name}", value)
        os.environ[f"JAX_{name.upper()}"] = str(value)


@pytest.fixture(autouse=True)
def same_numbers():
    """Random numbers of a test do not depend on the tests that ran before it."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    """Programs in memory are those of one file of tests."""
    yield
    jax.clear_caches()


@pytest.fixture
def use_devices(monkeypatch):
    """A function: runs from here on use the first n of the eight devices."""
    devices = jax.devices()
    return lambda n: monkeypatch.setattr(jax, "devices", lambda *_: devices[:n])

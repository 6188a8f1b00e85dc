"""Eight CPU devices, strict shapes, a dataset folder and compiled programs of the test session's own."""

import os

import jax
import pytest
from absl import flags

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session", autouse=True)
def data_dir(tmp_path_factory):
    """A folder of prepared datasets, with the digits made on first use; nothing outside the repository is read."""
    folder = tmp_path_factory.mktemp("tfds")
    os.environ["TFDS_DATA_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """Many tests train the same small model; within a worker it is compiled once. Processes that tests start do not
    see this cache: what they compute must not depend on who compiled it."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def use_devices(monkeypatch):
    """A function: runs from here on use the first n of the eight devices."""
    devices = jax.devices()
    return lambda n: monkeypatch.setattr(jax, "devices", lambda *_: devices[:n])

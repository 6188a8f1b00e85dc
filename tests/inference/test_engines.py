"""How batches are cut, which engine runs them, and what is remembered of measurements."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gaternet_jax.errors import UserError
from gaternet_jax.inference import batching, engines
from gaternet_jax.inference.batching import Batching, Runner, candidates, choose_batching, few_sizes
from gaternet_jax.inference.engines import choose_engine
from gaternet_jax.inference.onnx_writer import write_onnx


def test_onnx_runtime_on_cpus_where_it_is_installed(monkeypatch):
    assert choose_engine("auto") == "onnxruntime" and choose_engine("xla") == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose_engine("auto") == "xla"
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else name)
    assert choose_engine("auto") == "xla"
    with pytest.raises(UserError, match="engine 'onnxruntime' needs onnx and onnxruntime: pip install"):
        choose_engine("onnxruntime")


def test_an_idle_session_leaves_the_cores_to_others():
    def double(images):
        return [images * 2]

    run = engines.OnnxRuntime(write_onnx(double, {"images": jax.ShapeDtypeStruct((1, 2), "float32")}, ["out"]), 2)
    np.testing.assert_array_equal(run(np.array([1]), np.array([[1, 2], [3, 4]], np.float32))[0], [[6, 8]])
    assert run._session.get_session_options().get_session_config_entry("session.force_spinning_stop") == "1"


def test_rows_are_taken_from_every_array():
    images, gates = np.arange(6.0).reshape(3, 2), np.arange(3.0)[:, None]
    run = engines.by_rows(lambda prepared, images, gates: (prepared + images * gates,))
    (found,) = engines.XLA(run, 1.0)(np.array([2, 0, 2]), images, gates)
    np.testing.assert_array_equal(found, (1 + images * gates)[[2, 0, 2]])


@pytest.mark.parametrize(("backend", "cores"), [("cpu", 2), ("cpu", 64), ("gpu", 16)])
def test_a_batch_is_cut_for_the_machine(monkeypatch, backend, cores):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(batching, "CORES", cores)
    cut = {
        ("xla", "cpu", 2): [Batching(1, 1), Batching(2, 2), Batching(8, 4), Batching(1, 4)],
        ("xla", "cpu", 64): [Batching(1, 1), Batching(1, 3), Batching(1, 64), Batching(1, 64)],
        ("onnxruntime", "cpu", 2): [Batching(1), Batching(2, 2), Batching(8, 2), Batching(1, 1, 2)],
        ("onnxruntime", "cpu", 64): [Batching(1), Batching(1, 3), Batching(1, 64), Batching(1, 1, 64)],
        ("xla", "gpu", 16): [Batching(1), Batching(3), Batching(64), Batching(64)],
    }
    for engine in engines.ENGINES if backend == "cpu" else ("xla",):
        found = [candidates(engine, *sizes)[0] for sizes in ((1, 32), (3, 32), (64, 32), (64, 224))]
        assert found == cut[engine, backend, cores]
        network = SimpleNamespace(engine=engine)
        assert choose_batching(network, np.zeros((64, 32, 32, 3)), None) == found[2], "nothing is measured"


def test_few_sizes_are_compiled_for_groups():
    assert few_sizes(20) == [1, 2, 3, 4, 6, 8, 12, 16, 20]


@pytest.mark.parametrize("cut", [Batching(4, 1), Batching(4, 3), Batching(11, 1)])
@pytest.mark.parametrize("sizes", [[], [4, 11]])
def test_rows_come_back_in_order_without_the_padding(cut, sizes):
    x, seen = np.arange(20.0), []

    def times(factor):
        def engine(rows, x):
            seen.append(len(rows))
            return [factor * x[rows], rows]

        return engine

    jobs = [(times(2), np.array([0, 7, 3, 9, 8, 4])), (times(3), np.array([5, 6, 1, 2]))]
    product, rows = Runner(cut, sizes)(jobs, x)
    np.testing.assert_array_equal(rows, np.arange(10))
    np.testing.assert_array_equal(product, [0, 3, 6, 6, 8, 15, 18, 14, 16, 18])
    assert set(seen) <= {4, 11} if sizes else sum(seen) == 10


def test_the_fastest_way_to_cut_is_measured_once_and_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(batching, "CORES", 4)
    seconds = {found: 1.0 + number for number, found in enumerate(candidates("onnxruntime", 64, 32)[::-1])}
    fastest, measured, clock = min(seconds, key=seconds.get), [], [0.0]
    monkeypatch.setattr(batching.time, "perf_counter", lambda: clock[0])

    def make(way):
        measured.append(way)

        def run(images, count):
            clock[0] += seconds[way] * count

        return run

    def choose(program="a network"):
        measured.clear()
        network = SimpleNamespace(engine="onnxruntime", layers=lambda kind: (kind, program))
        return choose_batching(network, np.zeros((64, 32, 32, 3)), make)

    assert choose() == fastest and set(measured) == set(seconds)
    assert choose() == fastest and not measured
    assert choose("another network") == fastest and measured
    folder = tmp_path / "gaternet-jax" / "batching"
    remembered = list(folder.iterdir())
    assert [file.read_text() for file in remembered] == 2 * [str(fastest)]
    for damaged in (b"", b"\xff", b"Batching(microbatch=3, at_once=3, threads=3)"):
        for file in remembered:
            file.write_bytes(damaged)
        assert choose() == fastest and measured
        assert choose() == fastest and not measured, "it is mended"
    shutil.rmtree(folder)
    folder.write_text("a file where the folder would be")
    assert choose() == fastest and measured, "what cannot be written is measured again"

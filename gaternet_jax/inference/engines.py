"""Who computes a program: XLA, or ONNX Runtime on CPUs, whose convolutions are the faster ones there.

What an engine computes is a function of (prepared, *arrays), as `skip_closed` makes them; all arrays have the images of
a batch along their first axis.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gaternet_jax.errors import UserError, check_choice

ENGINES = ("xla", "onnxruntime")

Array = Any  # of JAX or NumPy
Function = Callable[..., Any]  # of (prepared, *arrays) to a tuple of arrays
Engine = Callable[..., Sequence[Array]]  # of (rows, *arrays): computes the outputs for these rows of a batch


def choose_engine(engine: str) -> str:
    """Chooses the engine for this machine: as given; for "auto" ONNX Runtime on CPUs where it is installed, else XLA.

    UserError: an engine that there is not, or not here.
    """
    installed = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
    if engine == "auto":
        return "onnxruntime" if installed and jax.default_backend() == "cpu" else "xla"
    check_choice("engine", engine, ("auto", *ENGINES))
    if engine == "onnxruntime" and not installed:
        raise UserError("engine 'onnxruntime' needs onnx and onnxruntime: pip install -e '.[onnx]'; or take 'xla'")
    return engine


@dataclasses.dataclass(frozen=True)
class XLA:
    """Runs a function as XLA compiles it, once for each number of rows."""

    run: Function  # as of `by_rows`; engines that share it share its programs
    prepared: Any  # its first argument

    def __call__(self, rows: np.ndarray, *arrays: Array) -> Sequence[Array]:
        return self.run(self.prepared, rows, *arrays)


def by_rows(function: Function) -> Function:
    """Compiles a function of (prepared, *arrays) so that it takes the rows of its arrays from a batch on the device."""
    return jax.jit(lambda prepared, rows, *arrays: function(prepared, *(array[rows] for array in arrays)))


class OnnxRuntime:
    """Runs what `write_onnx` wrote, for any number of rows; UserError where ONNX Runtime does not."""

    def __init__(self, serialized: bytes, threads: int):
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
        # Threads wait busily for the next operation, but not for the next call: that would take the cores from the
        # session that runs next, as the backbone's after the gater's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it has its own for each reason
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"onnxruntime {onnxruntime.__version__} does not run this model: {reason}") from error
        self._names = [given.name for given in self._session.get_inputs()]

    def __call__(self, rows: np.ndarray, *arrays: Array) -> Sequence[Array]:
        feeds = zip(self._names, (np.asarray(array)[rows] for array in arrays), strict=True)
        return self._session.run(None, dict(feeds))

"""Reads files of safetensors (github.com/huggingface/safetensors): named tensors, and no code.

Eight bytes, the length of the header; the header, JSON {name: {"dtype", "shape", "data_offsets"}}; the tensors' bytes.
"""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from gaternet_jax.errors import UserError

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file, by name.

    Raises:
        UserError: no such file, not one of safetensors, cut short, or with tensors of a type beyond DTYPES.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        if not 8 < start <= len(content):
            raise ValueError("its header is cut short")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        return {name: _tensor(name, entry, content[start:]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a whole file of safetensors: {error}") from None


def _tensor(name: str, entry: dict, data: bytes) -> np.ndarray:
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has the type {entry['dtype']}; known are {', '.join(DTYPES)}")
    dtype, (begin, end) = np.dtype(DTYPES[entry["dtype"]]), entry["data_offsets"]
    if not 0 <= begin <= end <= len(data) or end - begin != math.prod(entry["shape"]) * dtype.itemsize:
        raise ValueError(f"the bytes of {name} are not there")
    return np.frombuffer(data[begin:end], dtype).reshape(entry["shape"])

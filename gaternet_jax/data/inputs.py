"""What people pass to a `Predictor`: files, pictures, arrays, tensors; brought to one array."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gaternet_jax.config import DataConfig
from gaternet_jax.data.images import read_files
from gaternet_jax.errors import UserError

ACCEPTED = "an array or tensor [batch, size, size, channels], a list of arrays, image files, or PIL images"
PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


class Picture:
    """Holds a PIL image that is read like a file: turned upright, and its transparency dealt with, in the same way."""

    def __init__(self, image: Image.Image, number: int):
        self._image, self._number = image, number

    def read_bytes(self) -> bytes:
        """Gives the picture in a format that keeps every pixel."""
        file = io.BytesIO()
        kind = "PNG" if self._image.mode in PNG_MODES else "TIFF"
        try:
            self._image.save(file, kind, exif=self._image.getexif(), compress_level=1)
        except Exception as error:  # Pillow reads a picture that was opened only now, and raises anything
            raise UserError(f"{self} cannot be read: {error}") from None
        return file.getvalue()

    def __str__(self) -> str:
        return f"PIL image {self._number}"


def to_array(images: Any, data: DataConfig | None, channels: int) -> np.ndarray:
    """Makes one array of many images.

    Args:
        images: see ACCEPTED; a single file or picture is a batch of one.
        data: the `data` part of the run's config, by which files and pictures are read.
        channels: of the model's images.

    Raises:
        UserError: anything else, arrays of different shapes, or files that cannot be read.
    """
    if _is_picture(images):
        images = [images]
    if not isinstance(images, (list, tuple)):
        if not hasattr(images, "__array__"):
            raise UserError(f"images are a {type(images).__name__}; expected {ACCEPTED}")
        return _as_array(images, "images")
    pictures = [_is_picture(image) for image in images]
    if images and all(pictures):
        if data is None:
            raise UserError(
                "image files and PIL images need the run's preprocessing: Predictor(..., "
                "data=load_config(workdir).data)"
            )
        sources: list[Any] = [
            Picture(image, number) if isinstance(image, Image.Image) else Path(image)
            for number, image in enumerate(images)
        ]
        return read_files(sources, data, channels)
    if any(pictures):
        raise UserError("images are files or PIL images, and something else; give all of them as files or as arrays")
    arrays = [_as_array(image, f"image {number}") for number, image in enumerate(images)]
    shapes = list(dict.fromkeys(array.shape for array in arrays))
    if len(shapes) > 1:
        raise UserError(f"a list of arrays must be of one shape; got {shapes[0]} and {shapes[1]}")
    return np.stack(arrays) if arrays else np.empty(0, np.float32)


def _is_picture(image: Any) -> bool:
    return isinstance(image, (str, os.PathLike, Image.Image))


def _as_array(images: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)  # of PyTorch
    except Exception as error:  # each library has its own
        raise UserError(f"{what}, a {type(images).__name__}, is not an array: {error}; expected {ACCEPTED}") from None

"""The tensors of a GGUF file, dequantised one at a time.

Guarantees: whatever type the ``gguf`` package can dequantise is read, block by block, so that the
largest tensor in single precision is the most that is ever held; values that are not numbers and
files that end early are refused. Does not know what the tensors mean.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from nodes.converted_model import UnsupportedModel
from nodes.model_manifest import CorruptModel

Weights = NDArray[np.float32]

# Values dequantised at a time; the intermediate arrays of K-quants are several times as large.
_BLOCK_VALUES = 1 << 22


def open_gguf(path: Path) -> gguf.GGUFReader:
    """Map the file into memory and read its header. Raises ``CorruptModel``."""
    try:
        return gguf.GGUFReader(path)
    except FileNotFoundError as error:
        raise CorruptModel(f"{path} does not exist. Check the path.") from error
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, struct.error) as error:
        raise CorruptModel(f"{path} is not a complete GGUF file ({error}). Download it again.") from error


class GgufTensors:
    """The tensors of a file by name. ``require_none_left`` finds those that nobody asked for."""

    def __init__(self, reader: gguf.GGUFReader) -> None:
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._unread = set(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def read(self, name: str, *, shape: tuple[int, ...]) -> Weights:
        """A tensor in single precision, rows first. Raises ``CorruptModel`` and ``UnsupportedModel``."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CorruptModel(f"The GGUF file has no tensor {name}. Download it again.")
        found = tuple(int(size) for size in reversed(tensor.shape))
        if found != shape:
            raise CorruptModel(
                f"Tensor {name} has the shape {found}, the file's metadata say {shape}. Download it again."
            )
        self._unread.discard(name)
        weights = _dequantised(tensor, name=name, shape=shape)
        if not np.isfinite(weights.min()) or not np.isfinite(weights.max()):
            raise CorruptModel(f"Tensor {name} holds values that are not numbers. Download it again.")
        return weights

    def read_if_present(self, name: str, *, shape: tuple[int, ...]) -> Weights | None:
        """As ``read``; None if the file has no such tensor."""
        return self.read(name, shape=shape) if name in self else None

    def vocabulary_rows(self, name: str) -> int:
        """The number of rows of a matrix. Raises ``CorruptModel``."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise CorruptModel(f"The GGUF file has no tensor {name}. Download it again.")
        return int(tensor.shape[-1])

    def require_none_left(self) -> None:
        """Raise ``UnsupportedModel`` if the file holds weights that the model as understood does not use."""
        if self._unread:
            listed = ", ".join(sorted(self._unread)[:5])
            raise UnsupportedModel(
                f"The GGUF file has {len(self._unread)} tensors that its architecture is not known to have"
                f" ({listed}). Choose a plain model of the Llama family."
            )


def _dequantised(tensor: Any, *, name: str, shape: tuple[int, ...]) -> Weights:
    data = tensor.data.view(np.ndarray)  # plain arrays of the mapped file: numpy's memmap is slow to slice
    rows = max(1, _BLOCK_VALUES // max(1, shape[-1])) if len(shape) > 1 else len(data)
    weights = np.empty(shape, dtype=np.float32)
    try:
        for start in range(0, len(data), rows):
            block = gguf.quants.dequantize(data[start : start + rows], tensor.tensor_type)
            weights[start : start + rows] = block
    except NotImplementedError as error:
        raise UnsupportedModel(
            f"Tensor {name} has the type {tensor.tensor_type.name}, which cannot be converted."
            " Choose a Q4, Q5, Q6, Q8, BF16 or F16 file of this model."
        ) from error
    return weights

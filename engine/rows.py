"""Host values to the device without waiting for it, and work on some rows of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def upload(values: np.ndarray, device: torch.device) -> Tensor:
    """Returns `values` on the device. They are copied from pinned memory: a copy of pageable memory
    would wait until the device has done all that it was given before."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def upload_all(arrays: Sequence[np.ndarray], dtype: type, device: torch.device) -> list[Tensor]:
    """Returns the arrays as tensors of their shapes on the device, after one copy for all."""
    tensor = upload(np.concatenate([array.ravel() for array in arrays], dtype=dtype), device)
    parts = tensor.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def column(values: Sequence[float], dtype: type, device: torch.device) -> Tensor:
    """Returns [n, 1] values of a numpy type on the device."""
    return upload(np.array(values, dtype=dtype)[:, None], device)


def on_rows(values: Tensor, rows: Sequence[int], change: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns `values` [n, …] with `change` made to these rows, which must ascend. `values` itself
    stays as it is."""
    if len(rows) == len(values):
        return change(values)
    index = upload(np.array(rows, dtype=np.int64), values.device)
    return values.index_copy(0, index, change(values.index_select(0, index)))

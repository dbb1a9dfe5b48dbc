"""Matrix products of a forward pass on a processor, by the faster one of the two libraries that torch brings along.

torch multiplies 32-bit matrices by MKL, which uses AVX-512 on Intel's processors and AVX2 on all others. oneDNN, the other library, uses
what there is: on an AMD EPYC with AVX-512 it is 2.5 times as fast. Both compute the same sums in 32 bits, in another order.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_ROWS, _MATRIX = 32, 2**14
"""Fewest rows, and numbers of a matrix, that are worth the way there and back: oneDNN lays the matrix out anew."""
_LAYER = 2**23
"""Multiplications of a layer from which on it pays that each of torch's functions looks here first (about a microsecond each)."""

_TABLE = 2**18
"""Numbers of a table from which on a product with it is worth the asking."""


def fast_products(rows: int, width: int, outputs: int | None = None) -> AbstractContextManager[Any]:
    """Within it, linear layers multiply by oneDNN where that pays: 32-bit, on a processor that MKL neglects, and without gradients.

    Args:
        rows: about how many states go through the layers.
        width: of a state.
        outputs: of a layer; as many as inputs when None.
    """
    matrix = width * (outputs or width)
    pays = rows * matrix >= _LAYER and matrix >= _MATRIX and not torch.is_grad_enabled()
    there = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return _OneDNN() if pays and there and _neglected() else nullcontext()


def table_product(rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """`rows @ table.T`, by oneDNN where that pays: as above, and a table whose columns are whole and contiguous, which it reads as it is.

    Shape: rows (B, W), table (V, W) -> (B, V).
    """
    ready = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled and not torch.is_grad_enabled()
    plain = rows.device.type == "cpu" and rows.dtype == table.dtype == torch.float32
    if ready and plain and len(rows) > 1 and table.numel() >= _TABLE and table.T.is_contiguous() and _neglected():
        return _product(rows, table, None)
    return rows @ table.T


def _product(rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`linear` of oneDNN, which reads plain tensors where they lie. Shape: rows (..., D), matrix (C, D), bias (C,) -> (..., C)."""
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows.contiguous(), matrix, bias, "none", [], "")
    return found


@cache
def _neglected() -> bool:
    """Whether this is a processor with AVX-512 that is not Intel's, and this torch has the operator."""
    info, there = Path("/proc/cpuinfo"), hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and torch.backends.cpu.get_cpu_capability() == "AVX512" and info.is_file() and "GenuineIntel" not in info.read_text()


class _OneDNN(TorchFunctionMode):
    """Hands `linear` to oneDNN, everything else to torch."""

    def __torch_function__(self, called: Any, types: Any, given: tuple[Any, ...] = (), named: dict[str, Any] | None = None) -> Any:
        if called is torch.nn.functional.linear and not named and _worth(*given):
            return _product(*given, *[None] * (3 - len(given)))
        return called(*given, **(named or {}))


def _worth(rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Shape: rows (..., D), matrix (C, D), bias (C,)."""
    plain = type(matrix) in (torch.Tensor, torch.nn.Parameter) and rows.device.type == "cpu"
    kind = rows.dtype == matrix.dtype == torch.float32 and (bias is None or bias.dtype == torch.float32)
    whole = matrix.is_contiguous()  # a part of a matrix goes through a slow loop
    return plain and kind and whole and matrix.numel() >= _MATRIX and rows.numel() >= _ROWS * matrix.shape[1]

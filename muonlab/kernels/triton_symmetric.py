"""Products that are symmetric, as Triton kernels that compute only the lower triangle of tiles.

A Newton-Schulz step is X X^T, then alpha A A + beta A, then a full product. The first two are symmetric, and so is
every product of polynomials of one Gram matrix: half of the tiles are copies of the other half. Optional: without
Triton, or off its devices, `available` is False.
"""

from __future__ import annotations  # the kernel names `tl` in its signature before it is imported

import functools
import importlib.util
import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

__all__ = ["available", "gram", "multiply", "multiply_add"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGE = 512  # from this size on, large tiles
CAPABILITY = (8, 0)  # the first CUDA generation whose tensor cores take bfloat16
Tiles = tuple[int, int, int, int]  # side and depth of a tile, warps, pipeline stages
FOUND = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton reads it once too, when it is imported


def available(x: Tensor) -> bool:
    """Whether `gram` and `multiply_add` can run on `x`: Triton is installed, and takes its device and dtype.

    Differs  in Triton's interpreter (TRITON_INTERPRET=1): CPU tensors, and no bfloat16, which it multiplies wrongly

    >>> import torch
    >>> available(torch.eye(2, dtype=torch.float64))
    False
    """
    if not FOUND or x.dtype not in DTYPES:
        return False
    if INTERPRETED:
        return x.device.type == "cpu" and x.dtype != torch.bfloat16
    return x.is_cuda and _capability(x.device) >= CAPABILITY


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def gram(x: Tensor) -> Tensor:
    """Inner products of the rows of each matrix.

    Math     x x^T, summed in float32; no TF32
    Shapes   x (..., n, m), any strides -> (..., n, n), same dtype; symmetric bit for bit off the diagonal tiles
    Raises   ValueError for fewer than 2 dims; RuntimeError where `available` is False
    Differs  from x @ x.mT: not differentiable
    """
    if x.ndim < 2:
        raise ValueError(f"gram needs a matrix or a batch of matrices, got shape {tuple(x.shape)}")
    return symmetric_product(x, x, alpha=1.0, beta=0.0)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Product of symmetric matrices that commute.

    Math     a b = a b^T, summed in float32; no TF32
    Shapes   a, b (..., n, n), symmetric, any strides -> same shape and dtype
    Raises   ValueError unless the matrices are square and alike; RuntimeError where `available` is False
    Differs  from a @ b: takes the symmetry of the product on trust; not differentiable
    """
    if a.ndim < 2 or a.shape[-1] != a.shape[-2] or a.shape != b.shape:
        raise ValueError(f"multiply needs square matrices of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    return symmetric_product(a, b, alpha=1.0, beta=0.0)


def multiply_add(a: Tensor, *, alpha: float, beta: float) -> Tensor:
    """The quadratic part of a Newton-Schulz step, on symmetric matrices.

    Math     alpha a a + beta a, computed as alpha a a^T + beta a in float32; no TF32
    Shapes   a (..., n, n), symmetric, any strides -> same shape and dtype
    Raises   ValueError unless the matrices are square; RuntimeError where `available` is False
    Differs  from torch.baddbmm: takes the symmetry of `a` on trust; not differentiable
    """
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"multiply_add needs square matrices, got shape {tuple(a.shape)}")
    return symmetric_product(a, a, alpha=alpha, beta=beta)


def symmetric_product(x: Tensor, y: Tensor, tiles: Tiles | None = None, *, alpha: float, beta: float) -> Tensor:
    """alpha x y^T + beta x; `beta` needs square matrices. `tiles` are for benchmarks: None means the right ones."""
    if not available(x):
        raise RuntimeError(f"no Triton kernel for {x.dtype} on {x.device}: ask triton_symmetric.available(x) first")
    *batch, n, m = x.shape
    flat, other = (matrix.reshape(math.prod(batch), n, m) for matrix in (x, y))
    out = torch.empty(len(flat), n, n, dtype=x.dtype, device=x.device)
    tile, tile_k, num_warps, num_stages = tiles or _tiles(n, x.element_size())
    num_tiles = -(-n // tile)
    if out.numel():
        with _on(x):
            _kernel()[(len(flat) * num_tiles**2,)](
                flat, other, out, n, m, num_tiles, *flat.stride(), *other.stride(), *out.stride(), alpha, beta,
                ADD=beta != 0.0, TILE=tile, TILE_K=tile_k, num_warps=num_warps, num_stages=num_stages,
            )  # fmt: skip
    return out.reshape(*batch, n, n)


def _on(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, whichever that is."""
    elsewhere = x.is_cuda and x.device.index != torch.cuda.current_device()
    return torch.cuda.device_of(x) if elsewhere else nullcontext()


def _tiles(n: int, element_size: int) -> Tiles:
    """Fixed, so that nothing is timed, cached or kept alive.

    Large tiles in half precision are what benchmarks/triton_tiles.py found fastest on an H200, from 768 on at every
    size and for both products; they take 96 KiB of shared memory, which every GPU of `CAPABILITY` has. The others
    stage 64 KiB at most, and are for what nobody takes these kernels for.
    """
    if n >= LARGE and element_size == 2:
        return 128, 64, 4, 3
    tile_k = 64 // element_size
    return (128, tile_k, 8, 3) if n >= LARGE else (64, tile_k, 4, 3)


@functools.cache
def _kernel():
    """`_lower_triangle` as a Triton kernel, made when first used: the import takes a while, and may not be there."""
    global tl
    import triton
    import triton.language as tl

    return triton.jit(_lower_triangle)


def _lower_triangle(
    x, y, out, n, m, num_tiles, x_batch, x_row, x_col, y_batch, y_row, y_col, out_batch, out_row, out_col,
    alpha, beta, ADD: tl.constexpr, TILE: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """One program per tile (i, j) of each matrix: where i >= j, it writes the tile and its mirror image."""
    batch = (tl.program_id(0) // (num_tiles * num_tiles)).to(tl.int64)  # offsets pass 2^31 on large batches
    i = tl.program_id(0) // num_tiles % num_tiles
    j = tl.program_id(0) % num_tiles
    if i < j:  # the mirror image of another program's tile
        return
    rows = i.to(tl.int64) * TILE + tl.arange(0, TILE)
    cols = j.to(tl.int64) * TILE + tl.arange(0, TILE)
    depth = tl.arange(0, TILE_K).to(tl.int64)
    x += batch * x_batch
    y += batch * y_batch
    out += batch * out_batch
    left = x + rows[:, None] * x_row + depth[None, :] * x_col
    right = y + cols[None, :] * y_row + depth[:, None] * y_col
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, m, TILE_K):
        inside = depth < m - start
        a = tl.load(left, mask=(rows[:, None] < n) & inside[None, :], other=0.0)
        b = tl.load(right, mask=(cols[None, :] < n) & inside[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        left += TILE_K * x_col
        right += TILE_K * y_col
    total *= alpha
    kept = (rows[:, None] < n) & (cols[None, :] < n)
    if ADD:
        total += beta * tl.load(x + rows[:, None] * x_row + cols[None, :] * x_col, mask=kept, other=0.0).to(tl.float32)
    tile = total.to(out.dtype.element_ty)
    tl.store(out + rows[:, None] * out_row + cols[None, :] * out_col, tile, mask=kept)
    if i != j:
        tl.store(out + cols[None, :] * out_row + rows[:, None] * out_col, tile, mask=kept)

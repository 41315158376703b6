"""Products of a matrix with its own transpose, as Triton kernels that compute only the lower triangle of tiles.

A Newton-Schulz step is X X^T, then alpha A A + beta A, then a full product. The first two are symmetric, so that half
of their tiles are copies of the other half. Optional: without Triton, or off its devices, `available` is False.
"""

from __future__ import annotations  # the kernel names `tl` in its signature before it is imported

import functools
import importlib.util
import math
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import triton.language as tl

__all__ = ["available", "gram", "multiply_add"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGE = 512  # from this size on, large tiles; our choice, like every number of `_tiles`: not measured on a GPU
CAPABILITY = (8, 0)  # the first CUDA generation whose tensor cores take bfloat16
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
    return x.is_cuda and torch.cuda.get_device_capability(x.device) >= CAPABILITY


def gram(x: Tensor) -> Tensor:
    """Inner products of the rows of each matrix.

    Math     x x^T, summed in float32; no TF32
    Shapes   x (..., n, m), any strides -> (..., n, n), same dtype; symmetric bit for bit off the diagonal tiles
    Raises   ValueError for fewer than 2 dims; RuntimeError where `available` is False
    Differs  from x @ x.mT: not differentiable
    """
    if x.ndim < 2:
        raise ValueError(f"gram needs a matrix or a batch of matrices, got shape {tuple(x.shape)}")
    return _symmetric_product(x, alpha=1.0, beta=0.0)


def multiply_add(a: Tensor, *, alpha: float, beta: float) -> Tensor:
    """The quadratic part of a Newton-Schulz step, on symmetric matrices.

    Math     alpha a a + beta a, computed as alpha a a^T + beta a in float32; no TF32
    Shapes   a (..., n, n), symmetric, any strides -> same shape and dtype
    Raises   ValueError unless the matrices are square; RuntimeError where `available` is False
    Differs  from torch.baddbmm: takes the symmetry of `a` on trust; not differentiable
    """
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"multiply_add needs square matrices, got shape {tuple(a.shape)}")
    return _symmetric_product(a, alpha=alpha, beta=beta)


def _symmetric_product(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """alpha x x^T + beta x; `beta` needs square matrices."""
    if not available(x):
        raise RuntimeError(f"no Triton kernel for {x.dtype} on {x.device}: ask triton_symmetric.available(x) first")
    *batch, n, m = x.shape
    flat = x.reshape(math.prod(batch), n, m)
    out = torch.empty(len(flat), n, n, dtype=x.dtype, device=x.device)
    tile, tile_k, num_warps, num_stages = _tiles(n, x.element_size())
    num_tiles = -(-n // tile)
    if out.numel():
        with torch.cuda.device_of(x):  # Triton launches on the current device, whichever that is
            _kernel()[(len(flat) * num_tiles**2,)](
                flat, out, n, m, num_tiles, *flat.stride(), *out.stride(), alpha, beta,
                ADD=beta != 0.0, TILE=tile, TILE_K=tile_k, num_warps=num_warps, num_stages=num_stages,
            )  # fmt: skip
    return out.reshape(*batch, n, n)


def _tiles(n: int, element_size: int) -> tuple[int, int, int, int]:
    """Side and depth of a tile, warps and pipeline stages: fixed, so that nothing is timed, cached or kept alive.

    A row of a tile is 64 bytes deep: what the compiler then stages is 64 KiB at most, and every GPU has that.
    """
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
    x, out, n, m, num_tiles, x_batch, x_row, x_col, out_batch, out_row, out_col, alpha, beta,
    ADD: tl.constexpr, TILE: tl.constexpr, TILE_K: tl.constexpr,
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
    out += batch * out_batch
    left = x + rows[:, None] * x_row + depth[None, :] * x_col
    right = x + cols[None, :] * x_row + depth[:, None] * x_col
    total = tl.zeros((TILE, TILE), dtype=tl.float32)
    for start in range(0, m, TILE_K):
        inside = depth < m - start
        a = tl.load(left, mask=(rows[:, None] < n) & inside[None, :], other=0.0)
        b = tl.load(right, mask=(cols[None, :] < n) & inside[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
        left += TILE_K * x_col
        right += TILE_K * x_col
    total *= alpha
    kept = (rows[:, None] < n) & (cols[None, :] < n)
    if ADD:
        total += beta * tl.load(x + rows[:, None] * x_row + cols[None, :] * x_col, mask=kept, other=0.0).to(tl.float32)
    tile = total.to(out.dtype.element_ty)
    tl.store(out + rows[:, None] * out_row + cols[None, :] * out_col, tile, mask=kept)
    if i != j:
        tl.store(out + cols[None, :] * out_row + rows[:, None] * out_col, tile, mask=kept)

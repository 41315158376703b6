"""The symmetric Triton kernels against torch: in Triton's interpreter on a CPU, compiled on a GPU.

The interpreter has to be chosen before triton is imported, for the whole process; so this file, run as a program,
is the process that computes, and the tests read what it found.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from muonlab.kernels import triton_symmetric
from muonlab.kernels.triton_symmetric import available, gram, multiply, multiply_add

TOLERANCE = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}  # a rounding or two of the result
HUGE = "offsets beyond 2^31"


def normal(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """Reproducible, of singular values near 1, so that neither product leaves the range of float16."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) / max(shape[-2:]) ** 0.5
    return x.to(device, dtype)


def layouts(dtype: torch.dtype, device: str = "cpu") -> dict[str, torch.Tensor]:
    make = {"dtype": dtype, "device": device}
    return {
        "one element": normal(1, 1, **make),
        "odd": normal(37, 53, **make),
        "tall": normal(90, 7, **make),
        "several tiles": normal(130, 70, **make),
        "exact tiles": normal(128, 64, **make),
        "large tiles": normal(520, 40, **make),
        "batch": normal(3, 65, 33, **make),
        "two batch dims": normal(2, 3, 20, 40, **make),
        "transposed": normal(33, 65, **make).mT,
        "every other": normal(2, 40, 60, **make)[:, ::2, ::3],
        "expanded": normal(20, 40, **make).expand(3, 20, 40),
        "batch last": normal(20, 40, 3, **make).permute(2, 0, 1),
        "no rows": normal(0, 5, **make),
        "no columns": normal(3, 5, 0, **make),
        "empty batch": torch.empty(0, 4, 4, **make),
    }


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the largest entry; infinite if shape, dtype, device or layout are not what was promised."""
    alike = found.shape == expected.shape and found.is_contiguous() and bool(found.isfinite().all())
    if not alike:
        return float("inf")
    if not expected.numel():
        return 0.0
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def errors(dtype: torch.dtype, device: str = "cpu") -> dict[str, float]:
    found = {}
    for name, x in layouts(dtype, device).items():
        before, wide = x.clone(), x.double()
        product = gram(x)
        assert product.dtype == x.dtype and product.device == x.device
        found[f"gram, {name}"] = error(product, wide @ wide.mT)
        for a in (product, product.mT):
            wide = a.double()
            found[f"multiply_add, {name}, stride {a.stride()}"] = error(
                multiply_add(a, alpha=2.0315, beta=-4.775), 2.0315 * wide @ wide - 4.775 * wide
            )
            square = multiply_add(a, alpha=1.0, beta=0.5)
            found[f"multiply, {name}, stride {a.stride()}"] = error(multiply(a, square), wide @ square.double())
            for result in (product, square):
                assert off_the_diagonal(result).equal(off_the_diagonal(result.mT))
        assert torch.equal(x, before)
    return found


def off_the_diagonal(x: torch.Tensor) -> torch.Tensor:
    """`x` without the tiles that are no copies of others: those are as symmetric as the processor's products are."""
    n, tile = x.shape[-1], triton_symmetric._tiles(x.shape[-1], x.element_size())[0]
    tiles = torch.arange(n, device=x.device) // tile
    return x.masked_fill(tiles[:, None] == tiles, 0.0)


def beyond_int32() -> float:
    """Batch index x batch stride passes 2^31 though each fits; the memory between is never touched."""
    memory = torch.empty(2**31 + 2**16, dtype=torch.float16)
    x = memory.as_strided((3, 40, 24), (2**30, 24, 1))
    x.copy_(normal(3, 40, 24))
    return error(gram(x), x.double() @ x.double().mT)


def main() -> None:
    found = {str(dtype).removeprefix("torch."): errors(dtype) for dtype in (torch.float32, torch.float16)}
    found[HUGE] = {HUGE: beyond_int32()}
    found["available"] = {name: available(torch.eye(2, dtype=getattr(torch, name))) for name in TOLERANCE}
    print(json.dumps(found))


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, float]]:
    pytest.importorskip("triton", reason="triton is not installed")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, for which the kernels are compiled")
    program = [sys.executable, "-W", "ignore", str(Path(__file__))]
    done = subprocess.run(program, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_products_in_the_interpreter(interpreted, dtype: str) -> None:
    assert len(interpreted[dtype]) >= 2 * len(layouts(torch.float32))
    assert {name: e for name, e in interpreted[dtype].items() if not e <= TOLERANCE[dtype]} == {}


def test_offsets_do_not_overflow(interpreted) -> None:
    assert interpreted[HUGE][HUGE] <= TOLERANCE["float16"]


def test_the_interpreter_is_offered_no_bfloat16(interpreted) -> None:
    assert interpreted["available"] == {"float32": True, "float16": True, "bfloat16": False}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_products_on_a_gpu(dtype: torch.dtype) -> None:
    if not available(torch.eye(2, dtype=dtype, device="cuda")):
        pytest.skip("needs triton and CUDA capability 8.0")
    found = errors(dtype, "cuda")
    assert {name: e for name, e in found.items() if not e <= TOLERANCE[str(dtype).removeprefix("torch.")]} == {}


def test_off_its_devices_it_says_so() -> None:
    x = torch.eye(3)
    assert not available(x)
    with pytest.raises(RuntimeError, match=r"no Triton kernel for torch.float32 on cpu"):
        gram(x)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"matrix or a batch of matrices, got shape \(3,\)"):
        gram(torch.ones(3))
    with pytest.raises(ValueError, match=r"square matrices of one shape, got \(3, 3\) and \(4, 4\)"):
        multiply(torch.ones(3, 3), torch.ones(4, 4))
    with pytest.raises(ValueError, match=r"square matrices, got shape \(3, 4\)"):
        multiply_add(torch.ones(3, 4), alpha=1.0, beta=1.0)


def test_without_triton_it_can_be_imported() -> None:
    code = (
        "import sys; sys.modules['triton'] = None; import importlib.util as u; u.find_spec = lambda name: None\n"
        "import torch; from muonlab.kernels.triton_symmetric import available; print(available(torch.eye(2)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr[-2000:]


def test_importing_it_imports_no_triton() -> None:
    code = "import sys, muonlab.kernels.triton_symmetric; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr[-2000:]


@pytest.mark.skipif(triton_symmetric.INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("n", [64, 1024])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("capability", [80, 90])
def test_it_compiles_for_gpus_that_are_not_here(monkeypatch, tmp_path, capability: int, dtype: str, n: int) -> None:
    """To machine code, with the strides of a contiguous matrix; float32 without TF32; tiles fit into shared memory."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    tile, tile_k, num_warps, num_stages = triton_symmetric._tiles(n, getattr(torch, dtype).itemsize)
    kernel = triton_symmetric._kernel()
    fixed = {"ADD": True, "TILE": tile, "TILE_K": tile_k, "x_col": 1, "y_col": 1, "out_col": 1}
    pointer = "*" + dtype.replace("bfloat", "bf").replace("float", "fp")
    types = {"x": pointer, "y": pointer, "out": pointer, "alpha": "fp32", "beta": "fp32"} | dict.fromkeys(
        fixed, "constexpr"
    )
    aligned = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in ("x", "y", "out", "x_row", "y_row", "m")
    }
    source = ASTSource(kernel, {name: types.get(name, "i32") for name in kernel.arg_names}, fixed, aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    assert ("mma" in compiled.asm["ptx"]) == (dtype != "float32")
    assert compiled.metadata.shared <= 96 * 2**10


if __name__ == "__main__":
    main()

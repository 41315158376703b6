"""What "auto" and the other methods resolve to."""

import pytest
import torch

from muonlab.kernels.polar import JORDAN, POLAR_EXPRESS, resolve
from muonlab.kernels.routes import TABLE, Route, refuse_tf32


@pytest.mark.parametrize(
    ("arguments", "description"),
    [
        ({}, "newton_schulz:jordan:5:bfloat16"),
        ({"dtype": torch.float32, "coefficients": POLAR_EXPRESS}, "newton_schulz:polar_express:5:float32"),
        ({"method": "gram"}, "gram:jordan:5:float32"),
        ({"method": "rational"}, "rational:3:float32"),
        ({"method": "rational", "num_poles": 4, "dtype": torch.float64}, "rational:4:float64"),
        ({"method": "exact", "dtype": torch.bfloat16}, "exact:float64"),
        ({"method": "auto", "device_type": "cuda"}, "newton_schulz:jordan:5:float16"),
        ({"method": "auto", "device_type": "mps"}, "newton_schulz:jordan:5:bfloat16"),
    ],
)
def test_descriptions_say_what_is_computed_and_can_be_read_back(arguments: dict, description: str) -> None:
    route = resolve(8, 4, **arguments)
    assert route.describe() == description
    assert Route.parse(description) == route


def test_the_table_has_a_route_for_every_matrix() -> None:
    bounds = [row["short_max"] for row in TABLE["cpu"]]
    assert bounds[-1] is None and bounds[:-1] == sorted(set(bounds[:-1]))
    assert all(Route.parse(row["route"]).describe() == row["route"] for row in TABLE["cpu"])
    for shape in [(0, 3), (1, 1), (1, 10**6), (64, 256), (768, 3072), (10**5, 10**5)]:
        routes = {resolve(*sides, method="auto") for sides in (shape, shape[::-1])}
        assert len(routes) == 1 and routes.pop().dtype == torch.float32


def test_auto_knows_neither_coefficients_nor_poles() -> None:
    assert resolve(64, 64, method="auto", coefficients=POLAR_EXPRESS, num_poles=1) == resolve(
        64, 64, method="auto", coefficients=JORDAN
    )


def test_tf32_is_refused_where_a_gram_matrix_would_lose_its_small_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    for method in ("gram", "rational"):
        refuse_tf32(resolve(4, 4, method=method), "cpu")
        refuse_tf32(resolve(4, 4, method=method, dtype=torch.float64), "cuda")
        with pytest.raises(ValueError, match="set_float32_matmul_precision"):
            refuse_tf32(resolve(4, 4, method=method), "cuda")
    refuse_tf32(resolve(4, 4), "cuda")

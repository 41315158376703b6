"""Every rule as its paper writes it, on one matrix: plain loops in float64 that share nothing with the package.

A transcription takes all gradients of a matrix, and hyperparameters under the package's names; it yields the direction
of each step. `additive` and `on_sphere` make weights of directions.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

Gradients = Sequence[Tensor]
Directions = Iterator[Tensor]


def additive(w: Tensor, directions: Iterable[Tensor], lr: float, weight_decay: float) -> Iterator[Tensor]:
    for u in directions:
        w = w - lr * (u + weight_decay * w)
        yield w


def on_sphere(w: Tensor, directions: Iterable[Tensor], lr: float, weight_decay: float) -> Iterator[Tensor]:
    assert weight_decay == 0
    radius = w.norm()
    for u in directions:
        w = w - lr * radius * u / u.norm()
        w = radius * w / w.norm()
        yield w


def ema(xs: Iterable[Tensor], beta: float) -> Iterator[Tensor]:
    m = 0.0
    for x in xs:
        m = beta * m + (1 - beta) * x
        yield m


def unbiased(xs: Iterable[Tensor], beta: float) -> Iterator[Tensor]:
    for t, m in enumerate(ema(xs, beta), 1):
        yield m / (1 - beta**t)


def squares(xs: Iterable[Tensor]) -> Iterator[Tensor]:
    return (x * x for x in xs)


def momenta(gs: Iterable[Tensor], momentum: float, nesterov: bool, momentum_form: str = "ema") -> Iterator[Tensor]:
    gain = 1 - momentum if momentum_form == "ema" else 1.0
    m = 0.0
    for g in gs:
        m = momentum * m + gain * g
        yield momentum * m + gain * g if nesterov else m


# Element by element


def adamw(gs: Gradients, betas: tuple = (0.9, 0.999), eps: float = 1e-8) -> Directions:
    """Kingma, Ba 2015, algorithm 1."""
    for m, v in zip(unbiased(gs, betas[0]), unbiased(squares(gs), betas[1]), strict=True):
        yield m / (v.sqrt() + eps)


def nadamw(
    gs: Gradients, betas: tuple = (0.9, 0.999), eps: float = 1e-8, momentum_decay: float | None = None
) -> Directions:
    """Dozat 2016, with his schedule mu_t = beta1 (1 - 0.96^(t psi) / 2) where psi is given."""

    def mu(t: int) -> float:
        return betas[0] if momentum_decay is None else betas[0] * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    moments = zip(gs, ema(gs, betas[0]), unbiased(squares(gs), betas[1]), strict=True)
    for t, (g, m, v) in enumerate(moments, 1):
        product = math.prod(mu(i) for i in range(1, t + 1))
        look_ahead = mu(t + 1) * m / (1 - product * mu(t + 1)) + (1 - mu(t)) * g / (1 - product)
        yield look_ahead / (v.sqrt() + eps)


def cautious(gs: Gradients, betas: tuple = (0.9, 0.999), eps: float = 1e-8) -> Directions:
    """Liang et al. 2024 (2411.16085), as their code: the mask over its mean, which counts for at least 1e-3."""
    for g, m, v in zip(gs, unbiased(gs, betas[0]), unbiased(squares(gs), betas[1]), strict=True):
        mask = (m * g > 0).double()
        yield mask / max(float(mask.mean()), 1e-3) * m / (v.sqrt() + eps)


def adam_mini(
    gs: Gradients, betas: tuple = (0.9, 0.999), eps: float = 1e-8, num_blocks: int | None = None
) -> Directions:
    """Zhang et al. 2024 (2406.16793), a block being equally many rows; a vector is one."""
    num_blocks = (len(gs[0]) if gs[0].ndim > 1 else 1) if num_blocks is None else num_blocks

    def block_means(g: Tensor) -> Tensor:
        means = [torch.full_like(part, float((part * part).sum()) / part.numel()) for part in g.chunk(num_blocks)]
        return torch.cat(means)

    for m, v in zip(unbiased(gs, betas[0]), unbiased(map(block_means, gs), betas[1]), strict=True):
        yield m / (v.sqrt() + eps)


def adopt(gs: Gradients, betas: tuple = (0.9, 0.9999), eps: float = 1e-6) -> Directions:
    """Taniguchi et al. 2024 (2411.02853), clipped at c_t = t^(1/4), t counted from the second gradient."""
    m, v = torch.zeros_like(gs[0]), gs[0] ** 2
    yield m
    for t, g in enumerate(gs[1:], 1):
        bound = t**0.25
        m = betas[0] * m + (1 - betas[0]) * (g / v.sqrt().clamp(min=eps)).clamp(-bound, bound)
        yield m
        v = betas[1] * v + (1 - betas[1]) * g**2


def ademamix(
    gs: Gradients,
    betas: tuple = (0.9, 0.999, 0.9999),
    eps: float = 1e-8,
    alpha: float = 5.0,
    mix_warmup_steps: int = 0,
) -> Directions:
    """Pagliardini et al. 2024 (2409.03137), with its schedulers of alpha and beta3."""
    slow = 0.0
    for t, (g, m, v) in enumerate(zip(gs, unbiased(gs, betas[0]), unbiased(squares(gs), betas[1]), strict=True), 1):
        mix, beta3 = alpha, betas[2]
        if mix_warmup_steps:
            share = t / mix_warmup_steps
            start, end = math.log(betas[0]), math.log(betas[2])
            mix = min(share * alpha, alpha)
            beta3 = min(math.exp(start * end / ((1 - share) * end + share * start)), betas[2])
        slow = beta3 * slow + (1 - beta3) * g
        yield (m + mix * slow) / (v.sqrt() + eps)


def mars(gs: Gradients, betas: tuple = (0.95, 0.99), eps: float = 1e-8, gamma: float = 0.025) -> Directions:
    """Yuan et al. 2024 (2411.10438), MARS-AdamW in its approximate form; the gradient before the first is zero."""
    last, corrected = torch.zeros_like(gs[0]), []
    for g in gs:
        c = g + gamma * betas[0] / (1 - betas[0]) * (g - last)
        corrected.append(c / c.norm() if c.norm() > 1 else c)
        last = g
    yield from adamw(corrected, betas, eps)


def sophia(
    gs: Gradients,
    observed: Sequence[tuple[Tensor, float] | None],
    betas: tuple = (0.965, 0.99),
    gamma: float = 0.0125,
    eps: float = 1e-12,
) -> Directions:
    """Liu et al. 2023 (2305.14342), Sophia-G: h moves towards B g_s * g_s before the step."""
    h = torch.zeros_like(gs[0])
    for m, seen in zip(ema(gs, betas[0]), observed, strict=True):
        if seen is not None:
            sampled, batch = seen
            h = betas[1] * h + (1 - betas[1]) * batch * sampled * sampled
        yield (m / (gamma * h).clamp(min=eps)).clamp(-1, 1)


def lion(gs: Gradients, betas: tuple = (0.9, 0.99)) -> Directions:
    """Chen et al. 2023 (2302.06675)."""
    m = torch.zeros_like(gs[0])
    for g in gs:
        yield (betas[0] * m + (1 - betas[0]) * g).sign()
        m = betas[1] * m + (1 - betas[1]) * g


def signum(gs: Gradients, momentum: float = 0.9, nesterov: bool = False) -> Directions:
    """Bernstein et al. 2018 (1802.04434)."""
    return (m.sign() for m in momenta(gs, momentum, nesterov))


# Orthogonal directions


def polar_factor(x: Tensor, polar: str = "newton_schulz") -> Tensor:
    """U f(S / |S|) V^T: f is 1 or five of Jordan's quintic steps."""
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u if polar == "exact" else u * s) @ vh


def rms_aligned(o: Tensor) -> Tensor:
    """Root mean square 0.2."""
    return 0.2 * math.sqrt(o.numel()) * o / o.norm()


def scion(gs: Gradients, momentum: float = 0.95, nesterov: bool = False, polar: str = "newton_schulz") -> Directions:
    """Pethick et al. 2025 (2502.07529), unconstrained, under the norm from rms to rms; momentum is 1 - alpha."""
    rows, columns = gs[0].shape
    return (math.sqrt(rows / columns) * polar_factor(m, polar) for m in momenta(gs, momentum, nesterov))


def orthogonal_sgdm(
    gs: Gradients,
    momentum: float = 0.95,
    nesterov: bool = False,
    momentum_form: str = "ema",
    polar: str = "newton_schulz",
) -> Directions:
    """Tuddenham et al. 2022 (2202.07052): heavy ball and the exact factor are theirs."""
    length = math.sqrt(max(1.0, gs[0].shape[0] / gs[0].shape[1]))
    directions = [polar_factor(g, polar) for g in gs]
    return (length * m for m in momenta(directions, momentum, nesterov, momentum_form))


def normuon(
    gs: Gradients,
    momentum: float = 0.95,
    nesterov: bool = True,
    beta2: float = 0.95,
    moment_eps: float = 1e-8,
    polar: str = "newton_schulz",
) -> Directions:
    """Li et al. 2025 (2510.05491), algorithm 1; nesterov=False is theirs on paper, True in their code."""
    v = 0.0
    for m in momenta(gs, momentum, nesterov):
        o = polar_factor(m, polar)
        v = beta2 * v + (1 - beta2) * torch.stack([(row * row).sum() / len(row) for row in o])
        yield rms_aligned(o / (v.sqrt() + moment_eps)[:, None])


def adamuon(
    gs: Gradients,
    momentum: float = 0.95,
    nesterov: bool = False,
    beta2: float = 0.95,
    moment_eps: float = 1e-8,
    momentum_form: str = "ema",
) -> Directions:
    """Si et al. 2025 (2507.11005), algorithm 1; heavy ball is theirs."""
    v = 0.0
    for m in momenta(gs, momentum, nesterov, momentum_form):
        o = polar_factor(m.sign())
        v = beta2 * v + (1 - beta2) * o * o
        yield rms_aligned(o / (v.sqrt() + moment_eps))


def muon_hyperball(
    gs: Gradients, momentum: float = 0.95, nesterov: bool = True, polar: str = "newton_schulz"
) -> Directions:
    """Wen et al. 2026 (2606.16899), MuonH; goes with `on_sphere`."""
    return (polar_factor(m, polar) for m in momenta(gs, momentum, nesterov))


def adam_hyperball(gs: Gradients, betas: tuple = (0.9, 0.95), eps: float = 1e-8) -> Directions:
    """Wen et al. 2026 (2606.16899), AdamH; goes with `on_sphere`."""
    return adamw(gs, betas, eps)


# Kronecker factors


def shampoo(
    gs: Gradients,
    momentum: float = 0.95,
    beta2: float = 0.95,
    eps: float = 1e-6,
    nesterov: bool = False,
    precondition_frequency: int = 10,
) -> Directions:
    """Gupta et al. 2018 (1802.09568), algorithm 1, and momentum after it; beta2 = 1, which sums, is theirs."""

    def inverse_fourth_root(a: Tensor) -> Tensor:
        s, q = torch.linalg.eigh(a)
        return q @ torch.diag(s.clamp(min=eps * float(s[-1])) ** -0.25) @ q.T

    left, right, preconditioned = 0.0, 0.0, []
    for t, g in enumerate(gs, 1):
        left, right = (
            total + gram if beta2 == 1 else beta2 * total + (1 - beta2) * gram
            for total, gram in ((left, g @ g.T), (right, g.T @ g))
        )
        if (t - 1) % precondition_frequency == 0:
            weight = 1 if beta2 == 1 else 1 - beta2**t
            roots = inverse_fourth_root(left / weight), inverse_fourth_root(right / weight)
        preconditioned.append(roots[0] @ g @ roots[1])
    return momenta(preconditioned, momentum, nesterov)


def eigenvectors(a: Tensor) -> Tensor:
    """As columns, by falling eigenvalue."""
    return torch.linalg.eigh(a)[1].flip(1)


def whitened(
    gs: Gradients,
    ms: Iterable[Tensor],
    beta2: float,
    shampoo_beta: float,
    eps: float,
    precondition_frequency: int,
    basis: Callable[[Tensor], Tensor] = eigenvectors,
) -> Directions:
    """First moments from the second gradient on, each element in the rotated space over its root mean square.

    Vyas et al. 2024 (2409.11321), algorithms 3 and 4. Their code sorts a basis by its Rayleigh quotients before each
    step of power iteration, and the second moment with it; nothing moves at the first step.
    """
    factors = [(1 - shampoo_beta) * gs[0] @ gs[0].T, (1 - shampoo_beta) * gs[0].T @ gs[0]]
    left, right = map(basis, factors)
    v = torch.zeros_like(gs[0])
    yield v
    for t, (g, m) in enumerate(zip(gs[1:], ms, strict=True), 1):
        v = beta2 * v + (1 - beta2) * (left.T @ g @ right) ** 2
        yield left @ ((left.T @ m @ right) / ((v / (1 - beta2**t)).sqrt() + eps)) @ right.T
        factors = [shampoo_beta * f + (1 - shampoo_beta) * x for f, x in zip(factors, (g @ g.T, g.T @ g), strict=True)]
        if t % precondition_frequency == 0:
            by_row, by_column = (
                torch.tensor([float(q @ f @ q) for q in old.T]).argsort(descending=True)
                for f, old in zip(factors, (left, right), strict=True)
            )
            v = v[by_row][:, by_column]
            left = torch.linalg.qr(factors[0] @ left[:, by_row])[0]
            right = torch.linalg.qr(factors[1] @ right[:, by_column])[0]


def soap(
    gs: Gradients,
    betas: tuple = (0.95, 0.95),
    shampoo_beta: float = 0.95,
    eps: float = 1e-8,
    precondition_frequency: int = 10,
    basis: Callable[[Tensor], Tensor] = eigenvectors,
) -> Directions:
    """Vyas et al. 2024 (2409.11321), with Adam's bias corrections counted from the second gradient."""
    return whitened(gs, unbiased(gs[1:], betas[0]), betas[1], shampoo_beta, eps, precondition_frequency, basis)


def soap_muon(
    gs: Gradients,
    momentum: float = 0.95,
    nesterov: bool = True,
    beta2: float = 0.95,
    shampoo_beta: float = 0.95,
    moment_eps: float = 1e-8,
    precondition_frequency: int = 10,
    polar: str = "newton_schulz",
    basis: Callable[[Tensor], Tensor] = eigenvectors,
) -> Directions:
    """SOAP's direction with Muon's momentum in it, orthogonalised: the package's own."""
    length = math.sqrt(max(1.0, gs[0].shape[0] / gs[0].shape[1]))
    first, *rest = whitened(
        gs, momenta(gs[1:], momentum, nesterov), beta2, shampoo_beta, moment_eps, precondition_frequency, basis
    )
    yield first
    yield from (length * polar_factor(u, polar) for u in rest)


def kron(
    gs: Gradients,
    probes: Sequence[Tensor | None],
    momentum: float = 0.95,
    precondition_lr: float = 0.2,
) -> Directions:
    """Li 2018 (1512.04202), as kron-torch computes it: a step of both factors where there is a probe."""

    def length(a: Tensor) -> float:
        """A lower bound of the spectral norm of a symmetric matrix: two products, from its longest row."""
        x = a @ a[int((a * a).sum(1).argmax())]
        return float((a @ x).norm() / x.norm())

    left, right = (torch.eye(size, dtype=gs[0].dtype) for size in gs[0].shape)
    for m, probe in zip(unbiased((g / (g * g).mean().sqrt() for g in gs), momentum), probes, strict=True):
        if probe is not None:
            a = left @ m @ right.T
            b = torch.linalg.inv(left).T @ probe @ torch.linalg.inv(right)
            moved = []
            for q, x, y in ((left, a @ a.T, b @ b.T), (right, a.T @ a, b.T @ b)):
                moved.append(q - precondition_lr / length(x + y) * torch.triu(x - y) @ q)
            left, right = moved
        u = left.T @ left @ m @ right.T @ right
        yield u * min(1.0, 1.1 / float((u * u).mean().sqrt()))


ELEMENTWISE = {f.__name__: f for f in (adam_mini, ademamix, adopt, cautious, lion, mars, nadamw, signum, sophia)}
MATRIX = {
    f.__name__: f
    for f in (
        adam_hyperball,
        adamuon,
        kron,
        muon_hyperball,
        normuon,
        orthogonal_sgdm,
        scion,
        shampoo,
        soap,
        soap_muon,
    )
}

"""How close is the loss of mixed samples to its second-order approximation? Theorem 1 of the paper, for logistic
regression.

The loss of θ on (x, y) is ℓ(z, y) = h(z) - y·z with z = θᵀx and h(z) = log(1 + e^z). Mixing takes it to

    L = E over pairs (i, j), λ, M of  ℓ(θᵀ(M⊙x_i + (1-M)⊙x_j), λy_i + (1-λ)y_j)

with i and j uniform over the data. ℓ is linear in y, so the label may be drawn as well: y_i with probability λ, y_j
with 1-λ. Where it is y_j, rename i and j, which turns M into 1-M. So L is the mean loss with each sample's own label,

    L = E over i, r, M' of  ℓ(θᵀ(x_i + δ), y_i),   δ = (1-M')⊙(r - x_i),                                   (*)

r uniform over the data, M' = M with weight λ and 1-M with weight 1-λ. Where 1-M at λ is distributed as M at 1-λ, as it
is for Mixup and Bernoulli masks, M' is the mask of λ' ~ D_λ = α/(α+β)·Beta(α+1, β) + β/(α+β)·Beta(β+1, α), the form of
the paper. With Taylor's theorem in δ, the data centred (E r = 0, C = E rrᵀ), u = E(1-M'), a_jk = E(1-M'_j)(1-M'_k):

    L ≈ R0 + R1 + R2
    R0 = mean_i ℓ(z_i, y_i)                                        the loss without mixing
    R1 = mean_i (y_i - h'(z_i))·Σ_j u_j θ_j x_ij
    R2 = ½ mean_i h''(z_i)·Σ_jk a_jk θ_j θ_k (x_ij x_ik + C_jk)

A further term, with the model's Hessian, vanishes for a linear model. |h'''| ≤ 1/(6√3), so what is left out is at most
E|θᵀδ|³/(36√3).

Everything here is an exact expectation in float64: over all pairs, over all masks, and over λ by a quadrature.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fusedmix import checks


class MaskDistribution(NamedTuple):
    """A distribution of masks over d coordinates with n values; float64.

    Attributes:
        masks: (n, d), in [0, 1]: the weights of the sample itself.
        probability: (n,), with sum 1.
        label_weight: (n,), in [0, 1]: the mean λ that comes with each mask.
    """

    masks: Tensor
    probability: Tensor
    label_weight: Tensor

    def with_own_label(self) -> tuple[Tensor, Tensor]:
        """(2n, d) masks M' and their (2n,) probabilities, of the form (*) in which every sample keeps its own label."""
        weights = torch.cat((self.label_weight, 1.0 - self.label_weight)) * self.probability.repeat(2)
        return torch.cat((self.masks, 1.0 - self.masks)), weights


class Expansion(NamedTuple):
    """The terms R0, R1 and R2 of the approximation, each () float64."""

    plain: Tensor
    first: Tensor
    second: Tensor

    @property
    def total(self) -> Tensor:
        """The approximation of the mixed loss."""
        return self.plain + self.first + self.second


def mixup_masks(dims: int, *, alpha: float = 1.0, beta: float | None = None, nodes: int = 16) -> MaskDistribution:
    """Mixup: all coordinates λ ~ Beta(α, β), by Gauss quadrature.

    Args:
        dims: d >= 1.
        alpha: α > 0.
        beta: β > 0; None: α.
        nodes: of the quadrature, 1 to 256; exact for polynomials in λ of degree 2·nodes - 1.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range.
    """
    dims = checks.integer("dims", dims, 1)
    lam, probability = _beta_quadrature(alpha, beta, checks.integer("nodes", nodes, 1, 256))
    return MaskDistribution(lam[:, None].expand(-1, dims).clone(), probability, lam)


def bernoulli_masks(dims: int, *, alpha: float = 1.0, beta: float | None = None) -> MaskDistribution:
    """Bernoulli masks: given λ ~ Beta(α, β) each coordinate is 1 with probability λ, independently; all 2^d masks.

    Args:
        dims: d in [1, 12].
        alpha: α > 0.
        beta: β > 0; None: α.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or range.
    """
    dims = checks.integer("dims", dims, 1, 12)
    # P(M | λ) is a polynomial of degree d, and with the λ of the label of d+1: the quadrature is exact
    lam, weights = _beta_quadrature(alpha, beta, (dims + 3) // 2)
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=dims)), dtype=torch.float64)
    ones = masks.sum(1, keepdim=True)
    joint = weights * lam**ones * (1.0 - lam) ** (dims - ones)  # (2^d, nodes)
    probability = joint.sum(1)
    return MaskDistribution(masks, probability, (joint * lam).sum(1) / probability)


def msda_loss(theta: Tensor, x: Tensor, y: Tensor, masks: MaskDistribution) -> Tensor:
    """The mean loss of mixed samples, over all m² pairs and all masks; () float64, differentiable in theta.

    Args:
        theta: (d,) parameters.
        x: (m, d) data.
        y: (m,) labels in [0, 1].
        masks: of d coordinates.

    Raises:
        TypeError, ValueError: tensors are of the wrong dtype or shape.
    """
    _check(theta, x, y, masks)
    total = theta.new_zeros(())
    for mask, probability, weight in zip(*masks, strict=True):
        z = (x @ (mask * theta))[:, None] + (x @ ((1.0 - mask) * theta))[None]
        label = weight * y[:, None] + (1.0 - weight) * y[None]
        total = total + probability * (F.softplus(z) - label * z).mean()
    return total


def second_order(theta: Tensor, x: Tensor, y: Tensor, masks: MaskDistribution) -> Expansion:
    """The second-order approximation of `msda_loss` (the equations above), differentiable in theta.

    Args and errors as those of `msda_loss`; x must be centred besides.
    """
    _check(theta, x, y, masks)
    centre = x.mean(0).abs().max()
    if centre > 1e-9 * x.abs().max():
        raise ValueError(f"x must be centred, each column of mean 0, but got a mean of {float(centre):.3g}.")
    own, probability = masks.with_own_label()
    rest = 1.0 - own
    u = probability @ rest
    a = rest.T @ (probability[:, None] * rest)
    z = x @ theta
    slope = z.sigmoid()
    quadratic = a * theta[:, None] * theta
    covariance = x.T @ x / len(x)
    first = ((y - slope) * (x @ (u * theta))).mean()
    spread = ((x @ quadratic) * x).sum(1) + (quadratic * covariance).sum()
    return Expansion((F.softplus(z) - y * z).mean(), first, 0.5 * (slope * (1.0 - slope) * spread).mean())


def remainder_bound(theta: Tensor, x: Tensor, masks: MaskDistribution) -> Tensor:
    """E|θᵀδ|³/(36√3), which |msda_loss - second_order| cannot exceed; () float64.

    Args and errors as those of `msda_loss`.
    """
    _check(theta, x, None, masks)
    own, probability = masks.with_own_label()
    shares = x @ ((1.0 - own) * theta).T  # (m, 2n)
    cubes = torch.stack([(s[:, None] - s[None]).abs().pow(3).mean() for s in shares.T])
    return probability @ cubes / (36.0 * math.sqrt(3.0))


def _beta_quadrature(alpha: float, beta: float | None, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1] and weights of E over Beta(α, β): Golub & Welsch, "Calculation of Gauss Quadrature Rules", 1969,
    with the recurrence of Jacobi's polynomials of exponents β-1 and α-1 on [-1, 1]."""
    alpha = checks.number("alpha", alpha, 0.0, open_low=True)
    beta = alpha if beta is None else checks.number("beta", beta, 0.0, open_low=True)
    p, q = beta - 1.0, alpha - 1.0
    k = torch.arange(1, nodes, dtype=torch.float64)
    diagonal = torch.empty(nodes, dtype=torch.float64)
    diagonal[0] = (q - p) / (p + q + 2.0)
    diagonal[1:] = (q * q - p * p) / ((2 * k + p + q) * (2 * k + p + q + 2.0))
    square = 4.0 * k * (k + p) * (k + q) * (k + p + q) / ((2 * k + p + q) ** 2 * ((2 * k + p + q) ** 2 - 1.0))
    if nodes > 1:  # at k = 1 a factor of numerator and denominator cancels, which is 0/0 for α + β = 1
        square[0] = 4.0 * (1 + p) * (1 + q) / ((2 + p + q) ** 2 * (3 + p + q))
    off = square.sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1))
    return ((values + 1.0) / 2.0).clamp(0.0, 1.0), vectors[0].square()


def _check(theta: Tensor, x: Tensor, y: Tensor | None, masks: MaskDistribution) -> None:
    named = {"theta": (theta, 1), "x": (x, 2)} | ({} if y is None else {"y": (y, 1)})
    for name, (tensor, dims) in named.items():
        checks.tensor(name, tensor)
        if tensor.dtype != torch.float64 or tensor.ndim != dims:
            raise ValueError(
                f"{name} must be a float64 tensor of {dims} dims, "
                f"but got {tensor.dtype} of shape {tuple(tensor.shape)}."
            )
    if not isinstance(masks, MaskDistribution):
        raise TypeError(f"masks must be a MaskDistribution, but got {type(masks).__name__}.")
    m, d = x.shape
    if not m or len(theta) != d or (y is not None and len(y) != m) or masks.masks.shape[1] != d:
        raise ValueError(
            f"theta (d,), x (m, d), y (m,) and masks (n, d) must fit each other and hold a sample, but got "
            f"{tuple(theta.shape)}, {tuple(x.shape)}, {None if y is None else tuple(y.shape)} and "
            f"{tuple(masks.masks.shape)}."
        )

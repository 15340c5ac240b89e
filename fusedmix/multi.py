"""Mixing more than two samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from fusedmix import checks
from fusedmix.arguments import Terms
from fusedmix.draws import Request, moved
from fusedmix.fourier import draw_of
from fusedmix.masks.constant import numbers
from fusedmix.methods import Column, Method
from fusedmix.one_method import BetaMethod
from fusedmix.operands import MOST_PARTNERS
from fusedmix.options import Options, spelled_out
from fusedmix.partners import further
from fusedmix.philox import Stream, sort_key, symmetric_logit, words
from fusedmix.plan import MixPlan

__all__ = ["MultiMix"]

_WEIGHTS = ("dirichlet", "zeta")


@spelled_out
class MultiMix(BetaMethod):
    """k samples mixed at once: Σ_t w_t·x[p_t(i)], the first of which is the sample itself, and their labels alike. With
    k=2 it is Mixup.

    weights="dirichlet": w ~ Dirichlet(α, ..., α), which for k = 2 is λ ~ Beta(α, α). "zeta": w_t ∝ r_t^-γ, where the
    rank r is 1 for the sample itself and 2 to k in random order for the others, as in ζ-mixup (Abhishek, Brown,
    Hamarneh, "Multi-Sample ζ-mixup: Richer, More Realistic Synthetic Samples from a p-Series Interpolant", Journal of
    Big Data 2024), where k is the size of the batch. From γ = 1.73 on a sample keeps more than half of itself.

    The first partner is that of `pairing`, the next one is the partner of that partner, and so on. With
    pairing="random" each is from a permutation of its own; with pairing="flip" the others are the samples before it.
    With per="batch" all samples have the same weights, with per="pair" the two of a pair. Such a batch is a new one: it
    cannot be mixed in place. What a sample keeps of itself, w_0, is `plan.lam`; one that is given to sample() stands,
    and the others share what it leaves.

    Args:
        k: how many samples, 2 to 8.
        alpha: α > 0 of "dirichlet".
        weights: the law of the weights.
        gamma: γ >= 0 of "zeta".
        **options: see `Options`. lam_range is of w_0.
    """

    _formulas: ClassVar = dict.fromkeys(("released", "paper"), Method.MIXUP)
    _refines = True
    _gathers = True
    _gamma: float

    def __init__(
        self,
        *,
        k: int = 3,
        alpha: float = 1.0,
        weights: Literal["dirichlet", "zeta"] = "dirichlet",
        gamma: float = 2.8,
        **options: Unpack[Options],
    ) -> None:
        self.__dict__.update(
            _k=checks.integer("k", k, 2, MOST_PARTNERS),
            _weights=checks.choice("weights", weights, _WEIGHTS),
            _gamma=checks.number("gamma", gamma, 0.0),
        )
        # The sampler draws partners, and λ = 0 for a sample that is mixed.
        super().__init__(options, alpha=alpha, lam=0.0)

    @property
    def k(self) -> int:
        """How many samples are mixed; fixed at construction."""
        return cast(int, self.__dict__["_k"])

    @property
    def weights(self) -> str:
        """The law of the weights, "dirichlet" or "zeta"; fixed at construction."""
        return cast(str, self.__dict__["_weights"])

    @property
    def gamma(self) -> float:
        """γ of "zeta". May be changed between steps."""
        return self._gamma

    @gamma.setter
    def gamma(self, value: float) -> None:
        self.__dict__["_gamma"] = checks.number("gamma", value, 0.0)

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Any) -> MixPlan:
        own = torch.arange(plan.batch_size, device=plan.device)
        index = draw_of(own, request.per, plan.batch_size).unsqueeze(1)
        alpha = moved(request.spec[0, Column.ALPHA], plan.device)
        if self.weights == "zeta":
            logs = -self._gamma * _ranks(seed, index, self.k).log()
        else:
            logs = _dirichlet(seed, index, torch.where(alpha > 0, alpha, 1.0), self.k)
        first = plan.lam.double()
        if request.lam is None:
            low, high = self.lam_range or (0.0, 1.0)
            drawn = logs.softmax(1)[:, 0].clamp(low, high)
            first = torch.where((first == 0.0) & (alpha > 0), drawn, 1.0)
        rest = (1.0 - first).unsqueeze(1) * logs[:, 1:].softmax(1)
        lam = first.float()
        partner = torch.cat((own.unsqueeze(1), further(plan.partner, plan.pairing, seed, self.k - 1)), dim=1)
        terms = Terms(partner, torch.cat((first.unsqueeze(1), rest), dim=1))
        return replace(plan, lam=lam, weight=first, masks=numbers(lam), terms=terms, blended=True)

    def _describe(self) -> dict[str, Any]:
        law = {"weights": self.weights, "gamma": self.gamma} if self.weights == "zeta" else {}
        return {"k": self.k, **super()._describe(), **law}


def _dirichlet(seed: Tensor, index: Tensor, alpha: Tensor, k: int) -> Tensor:
    """Logarithms (B, k) whose softmax is Dirichlet(α, ..., α), of draws (B, 1): exact for every α, without rejection.

    A whole is halved again and again, by shares that are Beta(α·n, α·n) where n of the last parts are in each half. So
    the parts, a power of two, are Dirichlet(α, ..., α), and k of them as well, relative to their sum. Logarithms
    neither underflow nor cancel where α is small.
    """
    logs = torch.zeros_like(index, dtype=torch.float64)
    halvings = (k - 1).bit_length()
    for level in range(halvings):
        node = torch.arange(2**level - 1, 2 ** (level + 1) - 1, device=index.device)
        logit = symmetric_logit(seed, index, alpha * 2 ** (halvings - 1 - level), Stream.TERMS, 2 * node)
        logs = torch.stack((logs + F.logsigmoid(logit), logs + F.logsigmoid(-logit)), dim=2).flatten(1)
    return logs[:, :k]


def _ranks(seed: Tensor, index: Tensor, k: int) -> Tensor:
    """(B, k) float64: 1, and 2 to k in random order, of draws (B, 1)."""
    high, low, _, _ = words(seed, index, Stream.RANKS, torch.arange(1, k, device=index.device))
    others = sort_key(high, low).argsort(dim=1, stable=True) + 2
    return torch.cat((torch.ones_like(index), others), dim=1).double()

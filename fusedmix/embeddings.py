"""Mixing token embeddings: sequences of different lengths, with their attention masks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import Unpack

from fusedmix import checks
from fusedmix.laws import LamLaw
from fusedmix.mixing import mix
from fusedmix.options import EmbeddingOptions, spelled_out
from fusedmix.plan import OF_PIXELS, MixPlan, SparseTargets, same_batch
from fusedmix.targets import mix_targets
from fusedmix.terms import per_sample
from fusedmix.transforms import MixUp

Padding = Literal["zeros", "keep"]
_check_padding = partial(checks.choice, allowed=get_args(Padding))


def mix_embeddings(
    embeddings: Tensor,
    plan: MixPlan,
    attention_mask: Tensor | None = None,
    *,
    padding: Padding = "zeros",
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Mixes token embeddings position by position: λ·e + (1-λ)·e[partner]. Differentiable in the embeddings.

    Args:
        embeddings: (B, T, D) of a dtype that `mix` takes.
        plan: a plan of constant masks (MixUp, EmbedMix) for B samples, on any device.
        attention_mask: (B, T) bool, integer or floating point, nonzero at tokens and 0 at padding; or (B,) integer
            lengths in [0, T]; None: there is no padding.
        padding: what a sample contributes where it is padded: "zeros", or "keep" for the embedding that stands there.
        backend: as in `mix`.

    Returns:
        The mixed embeddings, and their mask in the form and dtype of the one given: a position is a token if it is one
        of a sample that contributes to it, so the mask is the union of both, and one's own where λ is 1.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, dtype or shape.
    """
    _check(embeddings, attention_mask)
    _check_padding("padding", padding)
    same_batch("embeddings", embeddings, plan, refuse=OF_PIXELS)
    if not plan.constant:
        raise ValueError("plan must have constant masks, as those of MixUp and EmbedMix, but got another one.")
    if attention_mask is None:
        return mix(embeddings, plan, backend=backend), None
    checks.partners(plan.partner)
    dtype = attention_mask.dtype
    if dtype in checks.INTEGER_DTYPES:
        attention_mask = attention_mask.long()  # torch cannot do all of this with the wider unsigned types.
    tokens = attention_mask != 0
    if attention_mask.ndim == 1:
        tokens = torch.arange(embeddings.shape[1], device=attention_mask.device) < attention_mask.unsqueeze(1)
    if padding == "zeros":
        embeddings = torch.where(tokens.to(embeddings.device).unsqueeze(2), embeddings, 0.0)
    partner = plan.partner.to(attention_mask.device)
    lam = per_sample(plan.lam, attention_mask)
    own = torch.where(lam == 0.0, 0, attention_mask)
    lent = torch.where(lam == 1.0, 0, attention_mask[partner])
    return mix(embeddings, plan, backend=backend), torch.maximum(own, lent).to(dtype)


@spelled_out
class EmbedMix(MixUp):
    """EmbedMix: Mixup of token embeddings, with λ ~ Beta(α, α) and λ ← max(λ, 1-λ), so that the sample itself keeps at
    least half (Guo et al., "Augmenting Data with Mixup for Sentence Classification", 2019; the fold as in fastai).

    Call it with embeddings, not with a batch: `embeddings, attention_mask, targets = mix(embeddings, attention_mask,
    labels)`. It mixes in training and evaluation mode alike, unless it is made with training_only=True.

    Args:
        alpha: α > 0.
        fold: whether λ ← max(λ, 1-λ), unless λ is given.
        lam_law: as in `MixUp`.
        padding: as in `mix_embeddings`.
        **options: see `Options`.
    """

    padding: Padding

    _folds = True
    _in_sets = False  # A set mixes images.
    _takes_lengths = False  # The mask says which tokens there are.
    _checks: ClassVar = {"padding": _check_padding}

    def __init__(
        self,
        *,
        alpha: float = 0.2,
        fold: bool = True,
        lam_law: LamLaw | None = None,
        padding: Padding = "zeros",
        **options: Unpack[EmbeddingOptions],
    ) -> None:
        super().__init__(alpha=alpha, fold=fold, lam_law=lam_law, **options)
        self.padding = padding

    def _check_adjacent(self, values: Mapping[str, Any]) -> None:
        raise ValueError('pairing must not be "adjacent" for EmbedMix, which leaves a batch as many samples as it has.')

    def forward(  # type: ignore[override]
        self, embeddings: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | SparseTargets | None]:
        """Draws a plan and mixes by it. With training_only=True all is returned as it is in evaluation mode.

        Args:
            embeddings: as in `mix_embeddings`.
            attention_mask: as in `mix_embeddings`.
            labels: (B,) classes, (B, K) soft labels, or (B,) and larger floating-point targets, which are mixed by
                `mix_targets`; None: there are none.

        Returns:
            The mixed embeddings, their mask and the mixed labels (`SparseTargets` for targets="sparse").

        Raises:
            TypeError, ValueError: an argument does not fit; nothing has been drawn then.
        """
        if self._off():
            return embeddings, attention_mask, labels
        _check(embeddings, attention_mask)
        numbers = False
        if labels is not None:
            checks.tensor("labels", labels)
            numbers = labels.is_floating_point() and not (self.label_smoothing and labels.ndim == 2)
            if not numbers:
                self._check_labels(labels)
            elif labels.dtype not in checks.FLOATING_DTYPES:
                dtypes = checks.names(checks.FLOATING_DTYPES)
                raise ValueError(
                    f"Labels that are numbers must have one of the dtypes {dtypes}, but got {labels.dtype}."
                )
            if not labels.ndim or labels.shape[0] != embeddings.shape[0]:
                raise ValueError(
                    f"labels must have one entry for each of {embeddings.shape[0]} samples, but got shape "
                    f"{tuple(labels.shape)}."
                )
        plan = self.sample(
            embeddings.shape[0],
            (max(embeddings.shape[1], 1),),
            labels=labels if self._pairing.by_class else None,
            device=embeddings.device if self.sampling == "device" else None,
        )
        targets: Any = None
        if labels is not None and numbers and self.targets == "dense":
            targets = mix_targets(labels, plan)
        elif labels is not None:
            targets = self._mix_targets(labels, plan, embeddings.device)
        mixed, united = mix_embeddings(embeddings, plan, attention_mask, padding=self.padding, backend=self.backend)
        return mixed, united, targets


def _check(embeddings: Tensor, attention_mask: Tensor | None) -> None:
    checks.batch("embeddings", embeddings)
    if embeddings.ndim != 3 or not embeddings.is_floating_point():
        raise ValueError(
            "embeddings must be (batch_size, tokens, features) and floating point, but got "
            f"{embeddings.dtype} of shape {tuple(embeddings.shape)}."
        )
    if attention_mask is None:
        return
    checks.tensor("attention_mask", attention_mask)
    batch_size, tokens, _ = embeddings.shape
    lengths = attention_mask.shape == (batch_size,) and attention_mask.dtype in checks.INTEGER_DTYPES
    if attention_mask.shape != (batch_size, tokens) and not lengths:
        raise ValueError(
            f"attention_mask must be ({batch_size}, {tokens}), or ({batch_size},) integer lengths, but got "
            f"{attention_mask.dtype} of shape {tuple(attention_mask.shape)}."
        )

"""The theory of mixed-sample augmentation, beside what the kernels do: Park, Yun, Chun, "A Unified Analysis of Mixed
Sample Data Augmentation: A Loss Function Perspective", NeurIPS 2022 (arXiv 2208.09913).

`coefficients` measures the regularisation coefficients a(d) of any method from the masks that its kernels draw;
`exact` computes them by enumeration, `closed_form` as the paper prints them. `spectrum_for` goes the other way: it
finds masks with the coefficients that one wants. `msda_loss` and `second_order` are the two
sides of the paper's Theorem 1 for logistic regression.

    python -m fusedmix.analysis examples|coefficients|moons|designs|unbounded --out DIR [--quick]

draws the paper's Figures 3, 4 and 1, masks that are designed, and what stands beside its Figure 2. Importing this needs
nothing beyond torch.
"""

from fusedmix.analysis.design import Design, spectrum_for
from fusedmix.analysis.moments import Coefficients, closed_form, coefficients, exact, exact_mask_mean
from fusedmix.analysis.theory import (
    Expansion,
    MaskDistribution,
    bernoulli_masks,
    mixup_masks,
    msda_loss,
    remainder_bound,
    second_order,
)

__all__ = [
    "Coefficients",
    "Design",
    "Expansion",
    "MaskDistribution",
    "bernoulli_masks",
    "closed_form",
    "coefficients",
    "exact",
    "exact_mask_mean",
    "mixup_masks",
    "msda_loss",
    "remainder_bound",
    "second_order",
    "spectrum_for",
]

"""The `get_mixup_cutmix` of torchvision's reference training (references/classification/transforms.py), by one changed
import. torchvision itself is not needed.

Examples:
    >>> mixup_cutmix = get_mixup_cutmix(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=1000, use_v2=True)
    >>> def collate_fn(batch):
    ...     return mixup_cutmix(*default_collate(batch))
    >>> loader = DataLoader(dataset, batch_size=128, shuffle=True, num_workers=8, collate_fn=collate_fn)
    >>> for images, targets in loader:
    ...     loss = F.cross_entropy(model(images), targets, label_smoothing=0.1)
"""

from __future__ import annotations

from fusedmix import checks
from fusedmix.transforms import CutMix, MixTransform, MixUp, RandomMix


def get_mixup_cutmix(
    *, mixup_alpha: float, cutmix_alpha: float, num_classes: int, use_v2: bool = True
) -> RandomMix | None:
    """MixUp, CutMix, or for every batch one of the two, with equal chances: for a `collate_fn`, or on the device.

    The same seed of torch's generator gives the batches of `v2.RandomChoice([v2.MixUp(alpha=mixup_alpha, ...),
    v2.CutMix(alpha=cutmix_alpha, ...)])`. CutMix takes its own α; copies of the references of 2023 give it mixup_alpha.

    Args:
        mixup_alpha: α >= 0 of Mixup; 0: no Mixup.
        cutmix_alpha: α >= 0 of CutMix; 0: no CutMix.
        num_classes: number of classes K.
        use_v2: makes no difference: the batches are always those of v2, from which the older classes differ only in
            what they draw.

    Returns:
        A module, or None if both α are 0.

    Raises:
        TypeError, ValueError: an argument is of the wrong type or out of range.
    """
    checks.boolean("use_v2", use_v2)
    methods: list[MixTransform] = []
    if checks.number("mixup_alpha", mixup_alpha, 0.0) > 0:
        methods.append(MixUp(alpha=mixup_alpha))
    if checks.number("cutmix_alpha", cutmix_alpha, 0.0) > 0:
        methods.append(CutMix(alpha=cutmix_alpha))
    checks.integer("num_classes", num_classes, 1)
    return RandomMix(methods, num_classes=num_classes) if methods else None

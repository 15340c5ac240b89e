"""What the parity tests share: torchvision's transform and ours after one seed, and how alike they must be.

Boxes and targets must be equal bit for bit. Blended images may differ by rounding: torchvision rounds both products and
their sum to the images' dtype, we round once, so the difference stays below 2·eps·(1 + max|x|).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchvision import tv_tensors
from torchvision.transforms import v2

import fusedmix as fm
from conftest import images_of

K = 7
NAMES = ("MixUp", "CutMix")


def both(name: str, **options: Any) -> tuple[Any, Any]:
    """torchvision's transform and ours, of one name and with the same keywords."""
    return getattr(v2, name)(**options), getattr(fm, name)(**options)


def seeded(seed: int, transform: Any, *sample: Any) -> tuple[Any, Tensor]:
    """What a transform makes of a sample after torch.manual_seed, and the generator's state then."""
    torch.manual_seed(seed)
    return transform(*sample), torch.get_rng_state()


def classes_of(batch_size: int, seed: int, num_classes: int = K) -> Tensor:
    return torch.randint(num_classes, (batch_size,), generator=torch.Generator().manual_seed(seed))


def image(*shape: int, seed: int = 0) -> tv_tensors.Image:
    return tv_tensors.Image(images_of(shape, torch.float32, seed))


def assert_blended_alike(ours: Tensor, theirs: Tensor, x: Tensor) -> None:
    largest = x.abs().max().item() if x.numel() else 0.0
    bound = 2 * torch.finfo(x.dtype).eps * (1 + largest)
    assert ours.dtype == theirs.dtype
    error = (ours.double() - theirs.double()).abs()
    assert error.numel() == 0 or error.max().item() <= bound


def assert_same_leaf(ours: Any, theirs: Any, given: Any, exact: bool) -> None:
    """Equality of two outputs made of the input `given`; images (4-D and more) are blended unless `exact`."""
    if not isinstance(theirs, Tensor):
        assert ours is theirs
        return
    assert type(ours) is type(theirs)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    if theirs is given:
        assert ours is given
    elif exact or theirs.ndim < 4:
        assert torch.equal(ours, theirs)
    else:
        assert_blended_alike(ours.as_subclass(Tensor), theirs.as_subclass(Tensor), given.as_subclass(Tensor))


def assert_same_sample(ours: Any, theirs: Any, given: Any, exact: bool) -> None:
    """Two transformed samples have one structure and equal leaves."""
    our_leaves, our_spec = pytree.tree_flatten(ours)
    their_leaves, their_spec = pytree.tree_flatten(theirs)
    assert our_spec == their_spec
    for leaves in zip(our_leaves, their_leaves, pytree.tree_leaves(given), strict=True):
        assert_same_leaf(*leaves, exact=exact)


def assert_alike(seed: int, theirs: Any, ours: Any, *sample: Any, exact: bool) -> tuple[Any, Any]:
    """Runs both on one sample from one seed: same output, same generator state, input untouched."""
    before = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(sample)]
    expected, expected_state = seeded(seed, theirs, *sample)
    out, state = seeded(seed, ours, *sample)
    assert_same_sample(out, expected, sample if len(sample) > 1 else sample[0], exact)
    assert torch.equal(state, expected_state)
    for old, new in zip(before, pytree.tree_leaves(sample), strict=True):
        if isinstance(old, Tensor):
            assert torch.equal(old, new)
        else:
            assert old is new
    return out, expected


def chosen(seed: int, weights: list[float] | None) -> int:
    """Which of two transforms v2.RandomChoice takes after a seed, by the call it documents: one multinomial draw."""
    weights = weights or [1, 1]
    torch.manual_seed(seed)
    return int(torch.multinomial(torch.tensor([w / sum(weights) for w in weights]), 1))

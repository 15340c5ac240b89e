"""Partners: the permutation that says which sample each sample is mixed with."""

from __future__ import annotations

import torch
from torch import Tensor

from fusedmix.methods import Pairing
from fusedmix.philox import Stream, sort_key, uniform, words


def formula(pairing: Pairing, batch_size: int, device: torch.device) -> Tensor:
    """(B,) int64 of the pairings that nothing random enters: i-1 (torchvision) or B-1-i (timm)."""
    index = torch.arange(batch_size, device=device)
    return index.roll(1) if pairing == Pairing.ROLL else index.flip(0)


def random(seed: Tensor, batch_size: int, device: torch.device, call: int = 0) -> Tensor:
    """(B,) int64, a uniform permutation for each `call`: the rank of each sample's key (fixed points allowed)."""
    index = torch.arange(batch_size, device=device)
    high, low, _, _ = words(seed, index, Stream.PARTNER, call)
    order = sort_key(high, low).argsort(stable=True)
    return torch.empty_like(order).scatter_(0, order, index)


def further(partner: Tensor, pairing: Pairing, seed: Tensor, count: int) -> Tensor:
    """(B, count) int64: for methods with several partners the given one and others, each of a permutation if it is.

    The next is the partner of the partner; with FLIP the sample before it, because the partner of the partner is the
    sample itself; with RANDOM one of a permutation of its own, so that all of them are independent.
    """
    found, batch_size = [partner], partner.shape[0]
    for t in range(1, count):
        if pairing == Pairing.RANDOM:
            found.append(random(seed, batch_size, partner.device, call=t))
        elif pairing == Pairing.FLIP:
            found.append((found[-1] - 1) % max(batch_size, 1))
        else:
            found.append(partner[found[-1]])
    return torch.stack(found, dim=1)


def among(pairing: Pairing, batch_size: int, others: int, seed: Tensor | None, device: torch.device) -> Tensor:
    """(B,) int64 in [0, others), of a batch that finds its partners in another one: by the formula of the pairing, or
    those of a random permutation of the others, from its beginning again if it has fewer than B."""
    index = torch.arange(batch_size, device=device)
    if pairing == Pairing.ROLL:
        return (index - 1) % others
    if pairing == Pairing.FLIP:
        return (others - 1 - index) % others
    assert seed is not None
    return random(seed, others, device)[index % others]


def by_class(seed: Tensor, labels: Tensor, pairing: Pairing) -> Tensor:
    """(B,) int64 permutation within the classes, or across them, of int64 labels (B,).

    SAME_CLASS: every class is one random cycle, so only a class of one sample keeps itself.

    CROSS_CLASS: the classes lie on a circle in random order, and everyone's partner is `shift` further on. With m
    samples in the largest class, every shift from m to B-m leaves each class entirely; it is drawn from these. If
    m > B/2 no permutation can pair everyone across; a shift of m pairs as many as can be: all of the other
    classes, and as many of the largest. The rest of the largest class keep partners of their own class.
    """
    batch_size = labels.shape[0]
    index = torch.arange(batch_size, device=labels.device)
    if batch_size == 0:
        return index
    high, low, _, _ = words(seed, index, Stream.PARTNER)
    order = sort_key(high, low).argsort(stable=True)
    order = order[labels[order].argsort(stable=True)]
    classes = labels[order].contiguous()
    first = torch.searchsorted(classes, classes)
    stop = torch.searchsorted(classes, classes, right=True)
    if pairing == Pairing.SAME_CLASS:
        following = torch.where(index + 1 < stop, index + 1, first)
    else:
        high, low, _, _ = words(seed, classes, Stream.CLASS)
        order = order[sort_key(high, low).argsort(stable=True)]
        largest = (stop - first).max()
        choices = (batch_size - 2 * largest + 1).clamp_min(1)
        high, low, _, _ = words(seed, torch.zeros_like(largest), Stream.SHIFT)
        following = (index + largest + (uniform(high, low) * choices).long()) % batch_size
    return torch.empty_like(order).scatter_(0, order, order[following])

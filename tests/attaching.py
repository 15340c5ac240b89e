"""What the tests of attach share: a batch, and models with layers to be mixed."""

from __future__ import annotations

import torch
from torch import nn

B, K = 6, 5
Y = torch.tensor([0, 1, 2, 3, 4, 4])


class Net(nn.Module):
    """Two hidden states with a height and a width, and a vector. `mixing`, if given, is how a user would mix by hand:
    the name of the place ("" for the input) and the plan."""

    def __init__(self, seed=0, dtype=None):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3, stride=2)
        self.vector = nn.LazyLinear(8)
        self.head = nn.Linear(8, K)
        self.seen = []
        self(torch.zeros(1, 3, 12, 10))
        self.to(dtype)

    def forward(self, x, mixing=(None, None)):
        place, plan = mixing

        def by_hand(name, h):
            if name != place:
                return h
            mask = plan.mask().to(h.dtype)
            mask = mask.unsqueeze(1) if h.ndim == 4 else mask
            return mask * h + (1 - mask) * h[plan.partner]

        self.seen.append(x)
        x = by_hand("", x)
        x = by_hand("first", self.first(x)).tanh()
        x = by_hand("second", self.second(x)).tanh()
        x = by_hand("vector", self.vector(x.flatten(1))).tanh()
        return self.head(x)


def images(dtype=torch.float32):
    return torch.rand(B, 3, 12, 10, generator=torch.Generator().manual_seed(1)).to(dtype)


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Identity(), nn.Tanh(), nn.Identity()

    def forward(self, x):
        return self.c(self.b(self.a(x)))

"""The labels of a grid of blocks that cost least, in PyTorch: the meaning of the operator `label_grid`, and what serves
where there is no kernel for it.

Every block gets a label 0, 1 or 2. The energy of a labelling is the sum of what each block's label costs, and for each
pair of blocks that share a side the square of the difference of their labels times the weight of the pair. This is
convex in the difference, and so the least energy is a minimum cut (Ishikawa, "Exact optimization for Markov random
fields with convex priors", PAMI 2003). A block has two nodes, one for each threshold k = 1 and 2: on the side of the
sink where the block's label is at least k. To pass a threshold costs cost[k] - cost[k-1]. An arc without a bound
from threshold 1 to threshold 2 forbids to pass the second one alone. Between two blocks of a pair there are arcs of its
weight both ways between equal thresholds, and arcs of twice the weight from threshold 1 of each to threshold 2 of the
other: a difference of one label cuts one arc of weight 1, one of two labels cuts two of weight 1 and one of weight 2.

The nodes from which the sink can be reached are the same after every maximal flow. They make the labelling with the
least labels, block by block, among all those that cost least. Costs are integers: every backend finds that very one,
whichever way it looks for the flow.

It is found by push and relabel (Goldberg, Tarjan, "A new approach to the maximum-flow problem", 1988), by all nodes of
all grids at the same time, and only as far as it gets to the sink. In between the distances to the sink are searched
anew, which end when nothing that is left over can get there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

LABELS = 3
MOST_BLOCKS = 16  # along a side
_ENDLESS = 1 << 60  # above all that flows: no bound
_NEVER = 1 << 30  # above all distances: there is no way
_STEPS = 32  # between two searches for the distances


def label_grid(unary: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """(B, h, w) int32: the labels of least energy, of equally good ones the least.

    Args:
        unary: (B, h, w, 3) int32: what the labels of each block cost; 1 <= h, w <= 16.
        right: (B, h, w-1) int32, not negative: the weight of a block and the one to its right.
        down: (B, h-1, w) int32, not negative: that of a block and the one below.
    """
    batch_size, height, width, _ = unary.shape
    arcs = _Arcs.of(height, width, unary.device)
    price = unary.long().diff(dim=3).movedim(3, 1).flatten(1)  # of passing each threshold
    flow = _Flow(_capacities(right, down), sink=(-price).clamp_min(0), excess=price.clamp_min(0))
    while True:
        distance = _distances(flow, arcs)
        if not ((flow.excess > 0) & (distance < _NEVER)).any():
            return (distance < _NEVER).reshape(batch_size, 2, height, width).sum(1, dtype=torch.int32)
        for _ in range(_STEPS):
            flow, distance = _step(flow, distance, arcs)


class _Arcs(NamedTuple):
    """Nine arcs from each of the N = 2·h·w nodes (those of threshold 1 come first): to the neighbours above, below,
    left and right at its threshold, to those at the other one, and to the other threshold of its block."""

    to: Tensor  # (9, N) int64: the node where each ends; N where there is none
    back: Tensor  # (9, N) int64: the number of its reverse among all 9·N; 9·N where there is none

    @classmethod
    def of(cls, height: int, width: int, device: torch.device) -> _Arcs:
        blocks = height * width
        node = torch.arange(2 * blocks, device=device)
        other = (node + blocks) % (2 * blocks)
        row, column = node % blocks // width, node % width
        there = torch.stack((row > 0, row < height - 1, column > 0, column < width - 1))
        step = torch.tensor([[-width], [width], [-1], [1]], device=device)
        none = 2 * blocks
        to = torch.cat((torch.where(there, node + step, none), torch.where(there, other + step, none), other[None]))
        reverse = torch.tensor([[1], [0], [3], [2], [5], [4], [7], [6], [8]], device=device)
        return cls(to, torch.where(to < none, reverse * none + to, 9 * none))

    def at_ends(self, of_nodes: Tensor, absent: int) -> Tensor:
        """(9, B, N) of (B, N): what the nodes have where the arcs end."""
        return pad(of_nodes, (0, 1), value=absent)[:, self.to].movedim(0, 1)

    def reversed(self, of_arcs: Tensor) -> Tensor:
        """(9, B, N) of (9, B, N): what the reverse of each arc has; 0 where there is none."""
        return pad(of_arcs.movedim(0, 1).flatten(1), (0, 1))[:, self.back].movedim(0, 1)


class _Flow(NamedTuple):
    """What is left: all int64."""

    residual: Tensor  # (9, B, N) of the arcs
    sink: Tensor  # (B, N) of the arcs to the sink
    excess: Tensor  # (B, N) at the nodes, not yet sent on


def _capacities(right: Tensor, down: Tensor) -> Tensor:
    """(9, B, N) int64. A weight that is negative is 0."""
    right, down = right.long().clamp_min(0), down.long().clamp_min(0)
    same = torch.stack((pad(down, (0, 0, 1, 0)), pad(down, (0, 0, 0, 1)), pad(right, (1, 0)), pad(right, (0, 1))))
    same = same.flatten(2)
    none = torch.zeros_like(same)
    endless = torch.full_like(same[:1], _ENDLESS)
    from_first = torch.cat((same, 2 * same, endless))
    from_second = torch.cat((same, none, none[:1]))
    return torch.cat((from_first, from_second), dim=2)


def _distances(flow: _Flow, arcs: _Arcs) -> Tensor:
    """(B, N): of how many arcs with something left the shortest way to the sink is."""
    distance = torch.where(flow.sink > 0, 1, _NEVER)
    while True:
        nearer = torch.minimum(distance, _next(flow, distance, arcs))
        if torch.equal(nearer, distance):
            return distance
        distance = nearer


def _next(flow: _Flow, distance: Tensor, arcs: _Arcs) -> Tensor:
    """(B, N): one more than the least distance at the ends of arcs that have something left."""
    least = torch.where(flow.residual > 0, arcs.at_ends(distance, _NEVER), _NEVER).amin(0)
    return torch.where(flow.sink > 0, 1, (least + 1).clamp_max(_NEVER))


def _step(flow: _Flow, distance: Tensor, arcs: _Arcs) -> tuple[_Flow, Tensor]:
    """Every node sends on what it can to those that are one nearer, one arc after the other. Then the distances of
    nodes that have some over are raised, where all such arcs are full."""
    drained = torch.where(distance == 1, torch.minimum(flow.excess, flow.sink), 0)
    excess = flow.excess - drained
    room = torch.where(arcs.at_ends(distance, _NEVER) + 1 == distance, flow.residual, 0)
    # Of arcs without a bound there is but one at a node, the last: the sum before it does not overflow.
    sent = torch.minimum((excess - (room.cumsum(0) - room)).clamp_min(0), room)
    received = arcs.reversed(sent)
    after = _Flow(flow.residual - sent + received, flow.sink - drained, excess - sent.sum(0) + received.sum(0))
    raised = torch.maximum(distance, _next(after, distance, arcs))
    return after, torch.where(after.excess > 0, raised, distance)

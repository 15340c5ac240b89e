"""Which way a batch takes through a module: the table of fusedmix/step.py has a batch for every condition."""

from __future__ import annotations

import pytest
import torch

import fusedmix as fm
from fusedmix import step

X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0])


def module(**options):
    return fm.CutMix(**{"num_classes": 3, "backend": "reference", **options})


class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def watched(mix):
    def call(*batch):
        with Watch():
            return mix(*batch)

    return call


def recorded(mix):
    def call(*batch):
        with fm.checkpoint_contexts()[0]:
            return mix(*batch)

    return call


BATCHES = {
    "a usual batch": ("plain", module, (X, Y)),
    "soft labels": ("plain", lambda: module(num_classes=None), (X, torch.rand(4, 5))),
    "sampling by the device": ("one call", lambda: module(sampling="device"), (X, Y)),  # reference: no step for it
    "a chance": ("one call", lambda: module(p=0.9), (X, Y)),
    "pairs": ("one call", lambda: module(per="pair"), (X, Y)),
    "partners by class": ("one call", lambda: module(pairing="cross_class"), (X, Y)),
    "a choice": ("one call", lambda: fm.RandomMix([fm.MixUp(), module()], backend="reference"), (X, Y)),
    "a generator": ("one call", lambda: module(generator=torch.Generator().manual_seed(0)), (X, Y)),
    "axes": ("one call", lambda: module(axes=(1, 2)), (X, Y)),
    "a getter": ("one call", lambda: module(labels_getter=lambda sample: sample[1]), (X, Y)),
    "a dict": ("one call", module, ({"image": X, "label": Y},)),
    "three tensors": ("one call", module, (X, Y, Y)),
    "five dims": ("one call", lambda: module(axes=(-2, -1)), (X.unsqueeze(1), Y)),
    "a watched batch": ("one call", lambda: watched(module()), (X, Y)),
    "stored masks": ("plan", lambda: fm.FMix(num_classes=3, backend="reference"), (X, Y)),
    "sparse targets": ("plan", lambda: module(targets="sparse"), (X, Y)),
    "union labels": ("plan", lambda: module(targets="union"), (X, Y)),
    "pairs that become one": ("plan", lambda: module(pairing="adjacent"), (X, Y)),
    "no labels": ("plan", lambda: module(labels_getter=None), (X,)),
    "two stacks": ("plan", lambda: module(images_getter=lambda sample: sample[::2]), (X, Y, X.flip(0))),
    "a gradient": ("plan", module, (X.clone().requires_grad_(), Y)),
    "a recorded plan": ("plan", lambda: recorded(module()), (X, Y)),
}


@pytest.mark.parametrize(("way", "make", "batch"), BATCHES.values(), ids=BATCHES)
def test_the_way_of_a_batch_and_that_of_a_plan_give_the_same(monkeypatch, way, make, batch):
    taken = []
    ways = {"_plain_step": "plain", "_mix_in_one_call": "one call", "_mix_by_plan": "plan"}
    for method, name in ways.items():
        own = getattr(fm.MixTransform, method)

        def spy(mix, *args, own=own, name=name):
            made = own(mix, *args)
            if name != "plain" or made is not None:
                taken.append(name)
            return made

        monkeypatch.setattr(fm.MixTransform, method, spy)
    torch.manual_seed(3)
    found = make()(*batch)
    assert taken == [way]
    monkeypatch.setattr(fm.MixTransform, "_plain_step", lambda *_: None)
    monkeypatch.setattr(step, "goes_in_one_call", lambda *_: False)
    torch.manual_seed(3)
    torch.testing.assert_close(found, make()(*batch), rtol=0, atol=0)
    assert taken == [way, "plan"]


def test_a_capture_and_labels_that_are_looked_at_leave_the_plain_way(monkeypatch):
    mix = module(backend="reference")
    holds = {name: [row(mix, X, Y) for row in rows] for name, rows in step.PLAIN.items()}
    assert all(map(all, holds.values()))
    monkeypatch.setenv("FUSEDMIX_CHECK_LABELS", "1")
    assert {name for name, rows in step.PLAIN.items() if not all(row(mix, X, Y) for row in rows)} == {"cuda", "triton"}
    monkeypatch.setattr(step, "capturing", lambda: True)
    assert not any(all(row(mix, X, Y) for row in rows) for rows in step.PLAIN.values())

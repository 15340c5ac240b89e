"""Wrong calls of what takes partners from another batch, and of the methods without partners."""

from __future__ import annotations

import pytest
import torch

import fusedmix as fm
from wrong_calls import GENERATOR, PLAN, X, Y, check, wrong_type, wrong_value

N = 7
X2, Y2 = torch.rand(N, 3, 8, 8), torch.arange(N) % 4
OTHER = fm.CutMix().sample(4, (8, 8), other_size=N)
MIX = fm.MixUp(num_classes=4, generator=GENERATOR)
SOFT2 = torch.rand(N, 4)
LAM = torch.full((4,), 0.5)

OF_PLANS = {
    "other_size zero": wrong_value(lambda: MIX.sample(4, (8, 8), other_size=0), "other_size", "0", ">= 1"),
    "other_size float": wrong_type(lambda: MIX.sample(4, (8, 8), other_size=7.0), "other_size", "7.0", "int"),
    "other_size by class": wrong_value(
        lambda: fm.MixUp(pairing="cross_class").sample(4, (8, 8), labels=Y, other_size=N),
        "pairing",
        "'cross_class'",
        "labels of both",
        "partner=",
    ),
    "other_size with finish": wrong_value(
        lambda: fm.MixUp(finish=fm.Finish(normalize=None)).sample(4, (8, 8), other_size=N),
        "other_size",
        "None",
        "finish",
    ),
    "other_size without partners": wrong_value(
        lambda: fm.Cutout(length=2).sample(4, (8, 8), other_size=N), "Cutout", "other_size", "None"
    ),
    "partner outside of other": wrong_value(
        lambda: MIX.sample(4, (8, 8), partner=torch.tensor([0, 7, 1, 2]), other_size=N), "partner", "[0, 7)", "7"
    ),
    "from_parts other_size": wrong_value(
        lambda: fm.MixPlan.from_parts(lam=LAM, other_size=-1), "other_size", "-1", ">= 1"
    ),
    "from_parts partner": wrong_value(
        lambda: fm.MixPlan.from_parts(lam=LAM, partner=torch.tensor([0, 1, 2, 3]), other_size=3), "partner", "[0, 3)"
    ),
}
OF_BATCHES = {
    "other a tensor": wrong_value(lambda: MIX(X, Y, other=X2), "other", "batch as the one", "(7, 3, 8, 8)"),
    "other a number": wrong_value(lambda: MIX(X, Y, other=3), "other", "batch as the one"),
    "other without images": wrong_value(lambda: MIX(X, Y, other=(Y2, Y2)), "other", "image"),
    "other of another dtype": wrong_value(
        lambda: MIX(X, Y, other=(X2.double(), Y2)), "images of other", "float32", "float64"
    ),
    "other of another size": wrong_value(
        lambda: MIX(X, Y, other=(X2[..., :4], Y2)), "images of other", "(samples, 3, 8, 8)", "(7, 3, 8, 4)"
    ),
    "other of no samples": wrong_value(lambda: MIX(X, Y, other=(X2[:0], Y2[:0])), "other_size", "0", ">= 1"),
    "other of two sizes": wrong_value(lambda: MIX(X, Y, other=(X2, Y2[:3])), "other", "one batch size", "(7,", "(3,)"),
    "other with soft labels": wrong_value(lambda: MIX(X, Y, other=(X2, SOFT2)), "labels of other", "(4,)", "(7, 4)"),
    "other with labels out of range": wrong_value(lambda: MIX(X, Y, other=(X2, Y2 + 1)), "other", "[0, 4)", "4"),
    "other of fewer stacks": wrong_value(
        lambda: fm.MixUp(labels_getter=None, images_getter=list)([X, X.clone()], other=[X2]), "other", "2", "1"
    ),
    "other in the same memory": wrong_value(
        lambda: fm.MixUp(num_classes=4, inplace=True)(X, Y, other=(X[:2], Y[:2])), "other", "share memory"
    ),
    "other by class": wrong_value(
        lambda: fm.MixUp(num_classes=4, pairing="same_class")(X, Y, other=(X2, Y2)), "pairing", "'same_class'"
    ),
    "other of a method without partners": wrong_value(
        lambda: fm.Cutout(length=2, num_classes=4)(X, Y, other=(X2, Y2)), "Cutout", "other", "None"
    ),
}
OF_LABELS = {
    "labels without other": wrong_value(lambda: fm.mix_labels(Y, OTHER, num_classes=4), "labels", "other="),
    "labels of too few": wrong_value(lambda: fm.mix_labels(Y, OTHER, other=Y, num_classes=4), "other", "7", "4"),
    "labels of another kind": wrong_value(
        lambda: fm.mix_labels(Y, OTHER, other=SOFT2, num_classes=4), "other", "(samples)", "(7, 4)"
    ),
    "labels out of range": wrong_value(
        lambda: fm.mix_labels(Y, OTHER, other=torch.full((N,), 4), num_classes=4), "labels", "[0, 4)", "4"
    ),
    "labels no tensor": wrong_type(lambda: fm.mix_labels(Y, OTHER, other=[0] * N, num_classes=4), "other", "list"),
    "targets without other": wrong_value(lambda: fm.mix_targets(LAM, OTHER), "targets", "other="),
    "targets of another shape": wrong_value(lambda: fm.mix_targets(LAM, OTHER, other=SOFT2), "other", "(7, 4)"),
    "partners outside of other": wrong_value(lambda: fm.mix_targets(LAM, PLAN, other=LAM[:2]), "partner", "[0, 2)"),
    "masks of another dtype": wrong_value(
        lambda: fm.mix_masks(X[:, 0].long(), OTHER, other=X2[:, 0]), "other", "int64", "float32"
    ),
    "loss without other": wrong_value(lambda: fm.mix_cross_entropy(X[:, 0, 0, :4], Y, OTHER), "labels", "other="),
    "loss of too few": wrong_value(lambda: fm.mix_cross_entropy(X[:, 0, 0, :4], Y, OTHER, other=Y), "other", "7", "4"),
    "loss of soft labels": wrong_value(
        lambda: fm.mix_binary_cross_entropy(X[:, 0, 0, :4], Y, OTHER, other=SOFT2), "other", "(samples)", "(7, 4)"
    ),
    "terms of another batch": wrong_value(
        lambda: fm.mix_labels(Y, fm.RICAP().sample(4, (8, 8), seed=0), other=Y2, num_classes=4),
        "other",
        "None",
        "terms",
    ),
    "accuracy of too few": wrong_value(lambda: fm.mix_accuracy(X[:, 0, 0, :4], Y, OTHER, other=Y), "other", "7", "4"),
}
OF_FILLING = {
    "neither length nor ratio": wrong_value(lambda: fm.Cutout(), "length=None", "ratio=None"),
    "length and ratio": wrong_value(lambda: fm.Cutout(length=2, ratio=0.5), "length=2", "ratio=0.5"),
    "length zero": wrong_value(lambda: fm.Cutout(length=0), "length", "0", ">= 1"),
    "ratio zero": wrong_value(lambda: fm.Cutout(ratio=0.0), "ratio", "0", "(0, 1]"),
    "length set beside ratio": wrong_value(lambda: setattr(fm.Cutout(ratio=0.5), "length", 2), "length", "ratio"),
    "fill a string": wrong_type(lambda: fm.Cutout(length=2, fill="mean"), "fill", "'mean'", "number"),
    "fill empty": wrong_value(lambda: fm.Cutout(length=2, fill=()), "fill", "()"),
    "fill infinite": wrong_value(lambda: fm.Cutout(length=2, fill=float("inf")), "fill", "inf", "finite"),
    "fill of other channels": wrong_value(
        lambda: fm.Cutout(length=2, fill=(0.0, 1.0), num_classes=4, generator=GENERATOR)(X, Y), "2 channels", "(4, 3, 8"
    ),
    "fill of uint8": wrong_value(
        lambda: fm.Cutout(length=2, fill=0.5, num_classes=4)(X.byte(), Y), "fill", "0 to 255", "0.5"
    ),
    "lam": wrong_value(lambda: fm.Cutout(length=2).sample(4, (8, 8), lam=0.5), "lam", "None", "0.5"),
    "pairing": wrong_type(lambda: fm.Cutout(length=2, pairing="flip"), "pairing", "unknown"),
    "finish": wrong_type(lambda: fm.GridMask(finish=fm.Finish(normalize=None)), "finish", "unknown"),
    "d1 zero": wrong_value(lambda: fm.GridMask(d1=0), "d1", "0", "[1, "),
    "d1 above d2": wrong_value(lambda: fm.GridMask(d1=9, d2=9), "d1", "d2", "9"),
    "d2 float": wrong_type(lambda: fm.GridMask(d2=9.0), "d2", "9.0", "int"),
    "ratio too large": wrong_value(lambda: fm.GridMask(ratio=1.5), "ratio", "1.5", "[0, 1]"),
    "rotate zero": wrong_value(lambda: fm.GridMask(rotate=0), "rotate", "0", ">= 1"),
    "rotate of signals": wrong_value(lambda: fm.GridMask().sample(4, (8,)), "rotate", "1", "360"),
    "mode": wrong_value(lambda: fm.GridMask(mode="grid"), "mode", "'grid'", "squares, lines"),
    "in a set": wrong_type(lambda: fm.RandomMix([fm.MixUp(), fm.Cutout(length=2)]), "methods[1]", "Cutout"),
    "attached": wrong_value(lambda: fm.attach(torch.nn.Identity(), fm.Cutout(length=2)), "mix", "Cutout"),
}
CASES = {**OF_PLANS, **OF_BATCHES, **OF_LABELS, **OF_FILLING}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_wrong_calls(case):
    check(*case)

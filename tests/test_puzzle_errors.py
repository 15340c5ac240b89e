"""Wrong calls of PuzzleMix."""

from __future__ import annotations

import pytest
import torch

import fusedmix as fm
from wrong_calls import X, Y, attached_to, check, wrong, wrong_type, wrong_value

MAPS = torch.rand(4, 8, 8)
OPTIONS = {"num_classes": 4, "backend": "reference"}
MIX = fm.PuzzleMix(**OPTIONS)
MADE = MIX.sample(4, (8, 8), importance=MAPS, images=X, seed=0)


def setting(name, value):
    return lambda: setattr(fm.PuzzleMix(), name, value)


CALLS = {
    "no block": wrong_value(lambda: fm.PuzzleMix(cells=0), "cells", "0", "[1, 16]"),
    "too many blocks": wrong_value(lambda: fm.PuzzleMix(cells=(4, 17)), "cells", "17", "[1, 16]"),
    "three numbers of blocks": wrong_type(lambda: fm.PuzzleMix(cells=(2, 2, 2)), "cells", "(2, 2, 2)", "a pair"),
    "blocks by name": wrong_type(lambda: fm.PuzzleMix(cells="44"), "cells", "'44'", "an int or a pair"),
    "blocks of a fraction": wrong_type(lambda: fm.PuzzleMix(cells=2.5), "cells", "2.5", "int"),
    "cells set": wrong_value(setting("cells", 32), "cells", "32", "[1, 16]"),
    "alpha": wrong_value(lambda: fm.PuzzleMix(alpha=0), "alpha", "0", "> 0"),
    "beta": wrong_value(lambda: fm.PuzzleMix(beta=-1), "beta", "-1", ">= 0"),
    "gamma": wrong_value(lambda: fm.PuzzleMix(gamma=float("nan")), "gamma", "nan", "finite"),
    "eta": wrong_type(lambda: fm.PuzzleMix(eta="a lot"), "eta", "a lot", "number"),
    "eta set": wrong_value(setting("eta", -0.1), "eta", "-0.1", ">= 0"),
    "distance_cost": wrong_value(lambda: fm.PuzzleMix(distance_cost=0), "distance_cost", "0", "> 0"),
    "std": wrong_value(lambda: fm.PuzzleMix(std=(0.2, 0.0, 0.2)), "std[1]", "0.0", "> 0"),
    "std of no channel": wrong_value(lambda: fm.PuzzleMix(std=()), "std", "()", "for each channel"),
    "std of other channels": wrong_value(
        lambda: fm.PuzzleMix(std=(0.2, 0.3), **OPTIONS)(X, Y, importance=MAPS), "std", "3 channels", "(0.2, 0.3)"
    ),
    "transport": wrong_type(lambda: fm.PuzzleMix(transport=1), "transport", "1", "bool"),
    "transport set": wrong(AttributeError, setting("transport", False), "transport", "fixed", "Make a new PuzzleMix"),
    "moves in place": wrong_value(lambda: fm.PuzzleMix(inplace=True), "inplace", "True", "PuzzleMix"),
    "finish": wrong_value(
        lambda: fm.PuzzleMix(finish=fm.Finish(normalize=((0.5,) * 3, (0.5,) * 3))), "finish", "None", "PuzzleMix"
    ),
    "importance a number": wrong_type(lambda: fm.PuzzleMix(importance=3), "importance", "3", "function"),
    "no importance": wrong_value(lambda: MIX(X, Y), "importance", "PuzzleMix", "a map for each"),
    "importance of another batch": wrong_value(
        lambda: MIX(X, Y, importance=MAPS[:3]), "importance", "(4, height, width)", "(3, 8, 8)"
    ),
    "importance below 0": wrong_value(lambda: MIX(X, Y, importance=-MAPS), "importance", ">= 0", "-0."),
    "importance NaN": wrong_value(lambda: MIX(X, Y, importance=MAPS * torch.nan), "importance", "finite", "NaN"),
    "blocks that do not divide": wrong_value(
        lambda: fm.PuzzleMix(cells=3, **OPTIONS)(X, Y, importance=MAPS), "cells", "(8, 8)", "(3, 3)"
    ),
    "signals": wrong_value(lambda: MIX(X[:, :, 0], Y, importance=MAPS[:, 0]), "two spatial sides", "(8,)"),
    "a plan without images": wrong_value(lambda: MIX.sample(4, (8, 8), importance=MAPS), "images", "gamma", "None"),
    "a plan without maps": wrong_value(lambda: MIX.sample(4, (8, 8), images=X), "importance", "a map for each"),
    "a plan of other images": wrong_value(
        lambda: MIX.sample(4, (8, 8), importance=MAPS, images=X[:, :, 1:]), "images", "(4, ..., 8, 8)", "(4, 3, 7, 8)"
    ),
    "a plan of a list": wrong_type(lambda: MIX.sample(4, (8, 8), importance=MAPS, images=[X]), "images", "list"),
    "lam outside": wrong_value(
        lambda: MIX.sample(4, (8, 8), importance=MAPS, images=X, lam=1.5), "lam", "1.5", "[0, 1]"
    ),
    "label maps": wrong_value(lambda: fm.mix_masks(X, MADE), "masks", "moves blocks"),
    "a plan in place": wrong(
        fm.InplaceError,
        lambda: fm.mix_(X, MADE),
        "x ",
        "moves blocks",
    ),
    "in a set": wrong_type(lambda: fm.RandomMix([fm.CutMix(), fm.PuzzleMix()]), "methods[1]", "PuzzleMix"),
    "attached": wrong_value(lambda: attached_to(fm.PuzzleMix()), "PuzzleMix", "images of a batch"),
    "an importance of CutMix": wrong_type(lambda: fm.CutMix(cells=4), "cells", "unknown", "PuzzleMix"),
}


@pytest.mark.parametrize("case", CALLS)
def test_wrong_calls(case):
    check(*CALLS[case])

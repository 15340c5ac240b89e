"""A finished mix: what is asked for and refused, and what each pixel becomes."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedmix as fm
from fusedmix import erasing
from fusedmix.arguments import MaskArguments
from fusedmix.backends import reference
from fusedmix.backends.finished import finish as finish_alone
from fusedmix.backends.finished import finish_mix
from fusedmix.finishing import FINISHED_DTYPES, Erase, Finish
from fusedmix.plan import MixPlan

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DTYPES = (torch.uint8, torch.float32, torch.float16, torch.bfloat16, torch.float64)
SIZE = (18, 22)
ERASES = (
    None,
    Erase(0.8, (0.1, 0.6), value=0.5, count=3),
    Erase(0.8, value="random", count=2),
    Erase(0.8, value="pixel"),
)


def images(
    dtype: torch.dtype, batch: int = 6, channels: int = 3, size: tuple[int, int] = SIZE, seed: int = 0
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, (batch, channels, *size), dtype=dtype, generator=generator)
    return torch.rand((batch, channels, *size), dtype=torch.float64, generator=generator).to(dtype)


def plan_of(mixer: fm.MixTransform, batch: int = 6, size: tuple[int, int] = SIZE, seed: int = 0) -> MixPlan:
    torch.manual_seed(seed)
    return mixer.sample(batch, size)


def mixed(x: Tensor, finish: Finish, plan: MixPlan, draws: Tensor | None = None) -> Tensor:
    return finish_mix(x, finish.arguments(x, draws), arguments_of(plan))


def alone(x: Tensor, finish: Finish, draws: Tensor | None = None) -> Tensor:
    return finish_alone(x, finish.arguments(x, draws))


def arguments_of(plan: MixPlan) -> MaskArguments:
    ndim = 0 if plan.constant else 2
    hints = int(plan.families), ndim, int(plan.pairing), int(plan.per)
    return MaskArguments(plan.partner, plan.masks, *hints, plan.pixels)


def masks_of(plan: MixPlan) -> Tensor:
    return reference.mask(plan.masks, int(plan.families), plan.size, int(plan.per), plan.pixels)


def draws_of(finish: Finish, batch: int = 6, size: tuple[int, int] = SIZE, seed: int = 3) -> Tensor | None:
    return erasing.draw(erasing.chances(finish), torch.tensor(seed), batch, size) if finish.is_random else None


def mixers() -> list[fm.MixTransform]:
    options: dict[str, Any] = {"per": "sample", "pairing": "random", "num_classes": 5}
    kinds = (fm.MixUp, fm.CutMix, fm.HMix, fm.GMix, fm.FMix, fm.SmoothMix)
    batchwise = [fm.MixUp(num_classes=5), fm.CutMix(num_classes=5), fm.GridMix(cells=(3, 4), num_classes=5)]
    return [kind(**options) for kind in kinds] + batchwise


# ---- What a pixel becomes ----


def exact_pixel(
    x: Tensor, finish: Finish, draws: Tensor | None, sample: int, channel: int, row: int, column: int
) -> Fraction:
    """A pixel of a sample that is finished alone, but for random fills, in rational numbers."""
    if draws is not None:
        holes = draws[sample, erasing.HEAD :].reshape(-1, 4).tolist()
        if any(top <= row < top + h and left <= column < left + w for top, left, h, w in holes):
            assert finish.erase is not None
            value = finish.erase.value
            return Fraction(value[channel] if isinstance(value, tuple) else value)  # type: ignore[arg-type]
        if draws[sample, 0]:
            column = x.shape[3] - 1 - column
    number = Fraction(x[sample, channel, row, column].item()) / (255 if x.dtype == torch.uint8 else 1)
    mean, std = finish.normalize or ((0.0,) * 3, (1.0,) * 3)
    return (number - Fraction(mean[channel])) / Fraction(std[channel])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [(MEAN, STD), None], ids=["normalized", "plain"])
@pytest.mark.parametrize(
    "erase", [None, Erase(0.8, (0.1, 0.6), value=(0.0, -1.5, 2.0), count=3)], ids=["whole", "erased"]
)
def test_a_pixel_is_the_mix_of_two_finished_ones(dtype: torch.dtype, normalize: Any, erase: Erase | None) -> None:
    """Against rational numbers: flip, then holes, normalised, then mixed by the mask."""
    x = images(dtype)
    finish = Finish(normalize, hflip=0.5, erase=erase, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    draws = draws_of(finish)
    std = 1.0 if normalize is None else min(STD)
    unit = 2.0 ** (-53 if dtype == torch.float64 else -24)
    for mixer in mixers():
        plan = plan_of(mixer)
        out, masks, partner = mixed(x, finish, plan, draws), masks_of(plan), plan.partner.tolist()
        for i, c, y, z in itertools.product(range(6), range(3), (0, 7, 17), (0, 9, 21)):
            w = Fraction(masks[i, y, z].item())
            own, lent = (exact_pixel(x, finish, draws, k, c, y, z) for k in (i, partner[i]))
            exact = w * own + (1 - w) * lent
            # The roundings of a pixel that is not erased are 3 units of u/std; in a hole there is one more for each of
            # the two that are blended, and those of a blend: of numbers up to 3/std.
            assert abs(Fraction(out[i, c, y, z].item()) - exact) <= 12 * unit / std


@pytest.mark.parametrize("erase", ERASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_the_mask_is_one_a_sample_is_finished_alone(dtype: torch.dtype, erase: Erase | None) -> None:
    """Bit for bit, and where it is 0 its partner is, holes and flip and noise included."""
    x = images(dtype)
    for made in FINISHED_DTYPES if dtype == torch.float64 else FINISHED_DTYPES[:3]:
        finish = Finish((MEAN, STD), dtype=made, hflip=0.5, erase=erase)
        draws = draws_of(finish)
        own = alone(x, finish, draws)
        assert own.dtype == made
        for mixer in mixers():
            plan = plan_of(mixer)
            out, masks = mixed(x, finish, plan, draws), masks_of(plan).unsqueeze(1)
            assert torch.equal(torch.where(masks == 1, out, 0), torch.where(masks == 1, own, 0))
            assert torch.equal(torch.where(masks == 0, out, 0), torch.where(masks == 0, own[plan.partner], 0))
        whole = mixed(x, finish, fm.MixUp(num_classes=5).sample(6, SIZE, lam=1.0), draws)
        assert torch.equal(whole, own)


def test_where_the_mask_is_zero_infinities_of_the_sample_are_gone() -> None:
    x = images(torch.float32)
    x[:, :, 5:9, 5:9] = math.inf
    x[:, :, 9:12, 5:9] = math.nan
    x[:3] = 0.25  # partners of some, without
    finish, plan = Finish((MEAN, STD)), plan_of(fm.CutMix(num_classes=5, per="sample"))
    out, masks = mixed(x, finish, plan), masks_of(plan).unsqueeze(1)
    expected = torch.where(masks == 1, x, x[plan.partner]).isfinite()
    assert torch.equal(out.isfinite(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("erase", ERASES, ids=str)
def test_short_types_are_float32_rounded(dtype: torch.dtype, erase: Erase | None) -> None:
    x = images(torch.uint8)
    for mixer in mixers():
        finish, plan = Finish((MEAN, STD), hflip=0.5, erase=erase), plan_of(mixer)
        draws = draws_of(finish)
        wide = mixed(x, finish, plan, draws)
        short = mixed(x, Finish((MEAN, STD), dtype, hflip=0.5, erase=erase), plan, draws)
        assert torch.equal(short, wide.to(dtype))


def test_holes_are_filled_as_asked_for() -> None:
    x = images(torch.uint8)
    for value in (0, 2.5, (1.0, 2.0, 3.0), "random", "pixel"):
        finish = Finish((MEAN, STD), hflip=0.5, erase=Erase(1.0, (0.2, 0.4), value=value, count=2))
        draws = draws_of(finish)
        assert draws is not None
        out, plain = alone(x, finish, draws), alone(x, Finish((MEAN, STD), hflip=0.5), draws[:, : erasing.HEAD])
        hole = erasing.inside(draws, SIZE)
        outside = (hole == 0).unsqueeze(1).expand_as(out)
        assert torch.equal(out[outside], plain[outside])
        for i in range(6):
            for k in (1, 2):
                there = out[i][:, hole[i] == k]
                if value == "random":
                    assert (there == there[:, :1]).all()
                    assert len({number for row in there[:, :1].tolist() for number in row}) == (
                        3 if there.numel() else 0
                    )
                elif value == "pixel":
                    assert there.unique().numel() == there.numel()
                else:
                    expected = torch.tensor(value if isinstance(value, tuple) else (value,) * 3)
                    assert (there == expected.unsqueeze(1)).all()


# ---- Layouts ----


@pytest.mark.parametrize("erase", ERASES, ids=str)
@pytest.mark.parametrize("asked", [None, torch.contiguous_format, torch.channels_last])
def test_layouts_change_nothing_but_where_numbers_are(asked: torch.memory_format | None, erase: Erase | None) -> None:
    x = images(torch.uint8)
    plan = plan_of(fm.HMix(num_classes=5, per="sample"))
    finish = Finish((MEAN, STD), hflip=0.5, erase=erase)
    draws = draws_of(finish)
    expected = mixed(x, finish, plan, draws)
    last = x.contiguous(memory_format=torch.channels_last)
    ways = [
        (x, "NCHW", torch.contiguous_format),
        (last, "NCHW", torch.channels_last),
        (x.permute(0, 2, 3, 1).contiguous(), "NHWC", torch.channels_last),
        (x.permute(0, 2, 3, 1), "NHWC", torch.channels_last),
        (torch.cat((x, x), 3)[..., : SIZE[1]], "NCHW", torch.contiguous_format),
    ]
    for given, input_format, natural in ways:
        made = Finish((MEAN, STD), torch.float32, asked, 0.5, erase, input_format)  # type: ignore[arg-type]
        out = mixed(given, made, plan, draws)
        assert torch.equal(out, expected)
        assert out.is_contiguous(memory_format=natural if asked is None else asked)


def test_pieces_of_a_batch_are_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(torch.uint8)
    finish = Finish((MEAN, STD), hflip=0.5, erase=ERASES[3])
    for mixer in mixers():
        plan, draws = plan_of(mixer), draws_of(finish)
        monkeypatch.setattr(reference, "_CHUNK", 1 << 22)
        whole = mixed(x, finish, plan, draws)
        monkeypatch.setattr(reference, "_CHUNK", 1)
        assert torch.equal(mixed(x, finish, plan, draws), whole)


@pytest.mark.parametrize("shape", [(0, 3, 5, 7), (1, 3, 5, 7), (2, 3, 1, 1), (2, 3, 0, 4)])
def test_small_batches(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, dtype=torch.uint8)
    finish = Finish((MEAN, STD), hflip=0.5, erase=ERASES[2])
    out = alone(x, finish, draws_of(finish, shape[0], (shape[2], shape[3])))
    assert out.shape == x.shape
    assert out.dtype == torch.float32


# ---- What is asked for ----


def test_a_finish_is_a_value() -> None:
    finish = Finish((list(MEAN), list(STD)), hflip=0, erase=Erase(0.25, count=[1, 3]))  # type: ignore[arg-type]
    same = Finish((MEAN, STD), hflip=0.0, erase=Erase(0.25, count=(1, 3)))
    assert finish == same
    assert hash(finish) == hash(same)
    assert len({finish, same}) == 1
    assert finish != Finish((MEAN, STD))
    for made in (pickle.loads(pickle.dumps(finish)), copy.deepcopy(finish)):
        assert made == finish
    for format in (torch.channels_last, torch.contiguous_format):
        made = Finish(None, torch.bfloat16, format)
        assert pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(AttributeError):
        finish.hflip = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"normalize": 0.5}, TypeError, r"normalize must be a pair \(mean, std\)"),
        ({"normalize": (MEAN, STD, STD)}, TypeError, r"normalize must be a pair \(mean, std\)"),
        ({"normalize": (0.5, 0.5)}, TypeError, "the mean, must be a sequence of numbers"),
        ({"normalize": (torch.tensor(MEAN), STD)}, TypeError, r"Call its \.tolist\(\)"),
        ({"normalize": ((), ())}, ValueError, "must have a number for each channel"),
        ({"normalize": (MEAN, STD[:2])}, ValueError, "as many means as stds, one for each channel, but got 3 and 2"),
        ({"normalize": (MEAN, (0.2, 0.0, 0.2))}, ValueError, r"an std, must be finite and > 0, but got 0\.0"),
        ({"normalize": (MEAN, (0.2, -0.1, 0.2))}, ValueError, "an std, must be finite and > 0"),
        ({"normalize": ((0.5,), (1e-45,))}, ValueError, "within the range of float32"),
        ({"normalize": ((math.nan,), (1.0,))}, ValueError, "the mean, number 0, must be finite"),
        ({"normalize": (("a",), (1.0,))}, TypeError, "the mean, number 0, must be a number"),
        ({"dtype": torch.uint8}, ValueError, "dtype must be one of float32, float16, bfloat16, float64"),
        ({"dtype": torch.int32}, ValueError, "normalised images are no integers"),
        ({"dtype": "float32"}, TypeError, "dtype must be one of"),
        ({"memory_format": torch.channels_last_3d}, ValueError, "memory_format must be"),
        ({"memory_format": "channels_last"}, TypeError, "memory_format must be"),
        ({"hflip": 1.1}, ValueError, r"hflip must be in \[0, 1\], but got 1.1"),
        ({"hflip": None}, TypeError, "hflip must be a number"),
        ({"erase": 0.25}, TypeError, "erase must be an Erase or None"),
        ({"erase": Erase(value=1e6), "dtype": torch.float16}, ValueError, r"erase\.value for float16 must be in"),
        ({"input_format": "HWC"}, ValueError, "input_format must be one of NCHW, NHWC"),
        ({"input_format": "channels_last"}, ValueError, "Did you mean 'NHWC'"),
    ],
)
def test_what_cannot_be_finished_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Finish(**{"normalize": (MEAN, STD), **options})


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(2, 4, 8, 8), {}, "are 3, but got 4 channels"),
        (torch.zeros(2, 8, 8, 3), {}, 'Is it input_format="NHWC"'),
        (torch.zeros(2, 3, 8, 8), {"input_format": "NHWC"}, 'Is it input_format="NCHW"'),
        (torch.zeros(2, 3, 8, 8), {"normalize": None, "erase": Erase(value=(0.0, 0.0))}, r"number of erase\.value"),
        (torch.zeros(3, 8, 8), {}, r"x must be \(B, C, H, W\) to be finished, but got shape \(3, 8, 8\)"),
        (torch.zeros(2, 8, 3), {"input_format": "NHWC"}, r"x must be \(B, H, W, C\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int32), {}, "x must have one of the dtypes"),
        (torch.zeros(2, 3, 8, 8), {"dtype": torch.float64}, "float64 must come from a float64 batch, but x is float32"),
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            {"dtype": torch.float64},
            "float64 must come from a float64 batch",
        ),
        (torch.zeros(2, 3, 8, 8, requires_grad=True), {}, "x must not require grad"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Finish(**{"normalize": (MEAN, STD), **options}).check(x)


def test_a_batch_that_fits_is_measured() -> None:
    assert Finish((MEAN, STD)).check(torch.zeros(2, 3, 4, 5, dtype=torch.uint8)) == (3, 4, 5)
    assert Finish((MEAN, STD), input_format="NHWC").check(torch.zeros(2, 4, 5, 3)) == (3, 4, 5)
    with torch.no_grad():
        assert Finish(None).check(torch.zeros(2, 7, 4, 5, requires_grad=True)) == (7, 4, 5)

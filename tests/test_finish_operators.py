"""The operators that finish a batch: the cpp backend against the reference, and what they refuse."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import fusedmix as fm
from callers import INTERPRETED
from fusedmix import backends, erasing
from fusedmix.arguments import MaskArguments
from fusedmix.finishing import FINISHED_DTYPES, MOST_HOLES, Erase, Finish

reference = torch.ops.fusedmix_reference


@pytest.fixture(scope="module")
def cpp() -> Any:
    try:
        return backends.operators("cpu", "cpp")
    except backends.BackendError as error:
        pytest.skip(str(error))


def case(seed: int) -> tuple[Tensor, Finish, Tensor | None, MaskArguments | None]:
    """A batch of an awkward size, layout and dtype, a finish, flips and holes, and a plan perhaps."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    batch, channels = chance.choice((1, 2, 5, 40)), chance.choice((1, 2, 3, 3, 3, 4, 5, 9))
    height, width = chance.choice((1, 2, 17, 40)), chance.choice((1, 2, 33, 64, 300))
    dtype = chance.choice((torch.uint8, torch.uint8, torch.float32, torch.float16, torch.bfloat16))
    input_format = chance.choice(("NCHW", "NHWC"))
    shape = (batch, channels, height, width) if input_format == "NCHW" else (batch, height, width, channels)
    x = torch.randint(0, 256, shape, dtype=torch.uint8) if dtype == torch.uint8 else torch.randn(shape).to(dtype)
    memory = chance.randrange(5)
    if memory == 1 and input_format == "NCHW":
        x = x.contiguous(memory_format=torch.channels_last)
    elif memory == 2:
        x = torch.cat((x, x), -1)[..., : shape[3]]
    elif memory == 3:
        x = x.repeat_interleave(2, 2)[:, :, ::2]
    elif memory == 4:
        x = x[:1].expand(shape)
    statistics = tuple(tuple(chance.random() + 0.1 for _ in range(channels)) for _ in range(2))
    value = chance.choice((0.0, 0.7, tuple(range(channels)), "random", "pixel"))
    finish = Finish(
        chance.choice((None, statistics, statistics)),  # type: ignore[arg-type]
        chance.choice(FINISHED_DTYPES[:3]),
        chance.choice((None, torch.channels_last, torch.contiguous_format)),
        hflip=chance.choice((0.0, 0.5)),
        erase=chance.choice((None, Erase(0.7, value=value, count=chance.choice((1, 3, (2, MOST_HOLES)))))),  # type: ignore[arg-type]
        input_format=input_format,  # type: ignore[arg-type]
    )
    draws = None
    if finish.is_random:
        draws = erasing.draw(erasing.chances(finish), torch.tensor(seed), batch, (height, width))
    kind = chance.choice((None, fm.MixUp, fm.CutMix, fm.HMix, fm.GMix, fm.FMix, fm.SmoothMix))
    if kind is None or height < 3 or width < 3:
        return x, finish, draws, None
    options: Any = {"per": chance.choice(("batch", "sample")), "pairing": chance.choice(("roll", "random"))}
    plan = kind(num_classes=3, **options).sample(batch, (height, width))
    hints = int(plan.families), 0 if plan.constant else 2, int(plan.pairing), int(plan.per)
    return x, finish, draws, MaskArguments(plan.partner, plan.masks, *hints, plan.pixels)


def finished(operators: Any, x: Tensor, finish: Finish, draws: Tensor | None, plan: MaskArguments | None) -> Tensor:
    how = finish.arguments(x, draws)
    return operators.finish(x, *how) if plan is None else operators.finish_mix(x, *how, *plan)


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_cpp_finishes_as_the_reference_does(first: int, cpp: Any) -> None:
    """Bit for bit, but for masks that the backends make in arithmetic of their own, and for normal fills, which are
    float32's."""
    for seed in range(first, first + 100):
        x, finish, draws, plan = case(seed)
        expected, out = (finished(of, x, finish, draws, plan) for of in (reference, cpp))
        assert (out.dtype, out.shape, out.stride()) == (expected.dtype, expected.shape, expected.stride())
        exact = plan is None or plan.ndim == 0 or plan.families < 8
        if exact and not (finish.erase is not None and isinstance(finish.erase.value, str)):
            assert torch.equal(out, expected), seed
            continue
        eps = torch.finfo(finish.dtype).eps
        size = 8 if finish.normalize is None else 8 / min(finish.normalize[1])
        assert (out.double() - expected.double()).abs().max() <= max(size * eps, 1e-5), seed


def test_every_instruction_set_finishes_alike() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "-k", "test_cpp_finishes_as_the_reference_does"]
    subprocess.run(command, env={**os.environ, "FUSEDMIX_ISA": "generic"}, check=True, timeout=300)


def test_threads_and_pieces_change_nothing(cpp: Any) -> None:
    threads = torch.get_num_threads()
    try:
        for seed in range(60):
            x, finish, draws, plan = case(seed)
            made = []
            for count in (1, 3):
                torch.set_num_threads(count)
                made.append(finished(cpp, x, finish, draws, plan))
            assert torch.equal(*made), seed
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(2, 3, 200, 300), (40, 3, 64, 64), (1, 1, 1, 100_000)])
def test_large_batches(shape: tuple[int, ...], cpp: Any) -> None:
    x = torch.randint(0, 256, shape, dtype=torch.uint8)
    finish = Finish(((0.4,) * shape[1], (0.3,) * shape[1]))
    plan = fm.MixUp(num_classes=3, per="sample").sample(shape[0], shape[2:])
    of = MaskArguments(plan.partner, plan.masks, int(plan.families), 0, int(plan.pairing), int(plan.per))
    assert torch.equal(*(finished(operators, x, finish, None, of) for operators in (reference, cpp)))


@pytest.mark.parametrize("erase", [None, Erase(0.6, (0.02, 0.9), (0.2, 4.0), count=(1, 5)), Erase(1.0)])
def test_cpp_draws_as_the_reference_does(erase: Erase | None, cpp: Any) -> None:
    numbers = erasing.chances(Finish(None, hflip=0.5, erase=erase))
    chances, holes = torch.tensor(numbers, dtype=torch.float64), int(numbers.most)
    for seed, size in ((0, (24, 40)), (-1, (224, 224)), (2**62, (1, 5)), (5, (700, 3))):
        request = chances, holes, torch.tensor(seed), 3000, *size, torch.device("cpu")
        assert torch.equal(cpp.draw_finish(*request), reference.draw_finish(*request))


@pytest.mark.parametrize("backend", ["reference", INTERPRETED, "cpp"])
def test_operators_refuse_what_does_not_fit(backend: str, cpp: Any) -> None:
    operators = cpp if backend == "cpp" else getattr(torch.ops, f"fusedmix_{backend.split()[0]}")
    x = torch.zeros((2, 3, 8, 8), dtype=torch.uint8)
    finish = Finish(((0.5,) * 3, (0.2,) * 3), hflip=0.5, erase=Erase(count=2))
    draws = erasing.draw(erasing.chances(finish), torch.tensor(1), 2, (8, 8))
    how = finish.arguments(x, draws)
    operators.finish(x, *how)
    too_many = draws.clone()
    too_many[:, erasing.Word.HOLES] = 3
    wrong = [
        (x[0], how),
        (x.int(), how),
        (x, how._replace(affine=how.affine.double())),
        (x, how._replace(affine=how.affine[:, :2])),
        (x, how._replace(draws=draws[:1])),
        (x, how._replace(draws=draws[:, :7].contiguous())),
        (x, how._replace(draws=draws.long())),
        (x, how._replace(fill=3)),
        (x, how._replace(dtype=torch.int32)),
        (x, how._replace(draws=too_many)),
    ]
    for batch, arguments in wrong:
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            operators.finish(batch, *arguments)
    plan = fm.CutMix(num_classes=3).sample(2, (8, 8))
    hints = int(plan.families), 2, int(plan.pairing), int(plan.per)
    masks = MaskArguments(plan.partner, plan.masks, *hints)
    operators.finish_mix(x, *how, *masks)
    for changed in ({"ndim": 1}, {"partner": plan.partner[:1]}, {"partner": plan.partner + 5}, {"families": 0}):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            operators.finish_mix(x, *how, *masks._replace(**changed))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_operators_refuse_chances_that_are_none(backend: str, cpp: Any) -> None:
    operators = cpp if backend == "cpp" else reference
    right = erasing.chances(Finish(None, hflip=0.5, erase=Erase(0.5, count=(1, 3))))

    def draw(chances: erasing.Chances, holes: int = 3, **other: Any) -> Tensor:
        numbers = torch.tensor(chances, dtype=torch.float64)
        given = {"seed": torch.tensor(1), "batch_size": 2, "height": 8, "width": 8, **other}
        return operators.draw_finish(numbers, holes, *given.values(), torch.device("cpu"))

    draw(right)
    beyond = {"ratio_low": (0.0, 1e7), "ratio_log": (-0.1, 30.0), "least": (-1.0, 4.0), "most": (0.0, 2.0, 17.0)}
    for name in right._fields:
        for wrong in (*beyond.get(name, (-0.1, 1.1)), math.nan, math.inf):
            with pytest.raises((ValueError, TypeError, RuntimeError), match=r"chances"):
                draw(right._replace(**{name: wrong}))
    for arguments in (
        {"holes": 2},
        {"seed": torch.tensor([1, 2])},
        {"batch_size": -1},
        {"height": -1},
        {"width": 2**31},
    ):
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            draw(right, **arguments)


def test_operators_work_in_a_graph(cpp: Any) -> None:
    x, finish, draws, plan = next(c for c in map(case, range(100)) if c[2] is not None and c[3] is not None)
    how = finish.arguments(x, draws)
    for of in (reference, cpp):
        torch.library.opcheck(of.finish.default, (x, *how))
        torch.library.opcheck(of.finish_mix.default, (x, *how, *plan))  # type: ignore[misc]

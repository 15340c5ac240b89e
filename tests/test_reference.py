"""The reference: its passes give, bit for bit, what its definition gives, and it serves devices without float64."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fusedmix as fm
from conftest import refused
from fusedmix import backends, draws
from fusedmix.arguments import MaskArguments
from fusedmix.backends import passes, reference
from fusedmix.draws import CPU, Request, Source
from fusedmix.methods import Pairing, Per

METHODS = {
    "MixUp": fm.MixUp,
    "CutMix": fm.CutMix,
    "HMix": lambda **k: fm.HMix(ratio=0.5, **k),
    "HMix paper": lambda **k: fm.HMix(ratio=0.4, variant="paper", **k),
    "GMix": fm.GMix,
    "FMix": fm.FMix,
    "soft FMix": lambda **k: fm.FMix(max_soft=0.2, **k),
    "SamplePairing": fm.SamplePairing,
    "RandomMix": lambda **k: fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.GMix()], **k),
}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8)
BITS = {dtype: bits for dtype, (bits, _) in passes._BITS.items()} | {torch.uint8: torch.uint8}
SPECIAL = (0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0)


def images(shape: tuple[int, ...], dtype: torch.dtype, special: bool) -> torch.Tensor:
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype)
    x = 50 * torch.randn(shape)
    values = torch.tensor(SPECIAL if special else SPECIAL[:1])
    return torch.where(torch.rand(shape) < 0.3, values[torch.randint(len(values), shape)], x).to(dtype)


def assert_same_bits(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    nan = expected.isnan()
    assert torch.equal(got.isnan(), nan)
    assert torch.equal(*(x.masked_fill(nan, 0).contiguous().view(BITS[x.dtype]) for x in (got, expected)))


def definition(x: torch.Tensor, plan: fm.MixPlan) -> torch.Tensor:
    m = reference.mask(plan.masks, int(plan.families), plan.size, int(plan.per), plan.pixels)
    m = m.reshape([len(x)] + [1] * (x.ndim - 1 - len(plan.size)) + list(plan.size))
    return passes.blend(m, x, x[plan.partner])


@pytest.fixture(params=["as it is", "tiny pieces", "no fused add"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """The ways through the passes that large batches and other processors take."""
    if request.param != "as it is":
        for name, value in (("_SMALL", 0), ("_TINY", 0), ("_LONG_ROW", 1), ("_PIECE", 300), ("_OF_THREAD", 1)):
            monkeypatch.setattr(passes, name, value)
    if request.param == "no fused add":
        monkeypatch.setattr(passes, "_add_is_fused", lambda: False)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
@pytest.mark.parametrize("method", METHODS)
def test_passes_give_the_bits_of_the_definition(pieces: str, method: str, per: str, dtype: torch.dtype) -> None:
    for seed, (pairing, special) in enumerate([("roll", False), ("flip", True), ("random", True)]):
        torch.manual_seed(seed)
        mix = METHODS[method](per=per, pairing="flip" if per == "pair" else pairing)
        x = images((5, 3, 6, 9), dtype, special)
        sliced = images((5, 3, 6, 18), dtype, special)[..., ::2]
        for batch in (x, x.contiguous(memory_format=torch.channels_last), sliced):
            for lam in (None, torch.tensor([0.0, 1.0, 0.3, 0.5, 1.0])):
                plan = mix.sample(5, (6, 9), seed=seed, lam=lam)
                expected = definition(batch, plan)
                got = fm.mix(batch, plan, backend="reference")
                assert got.stride() == torch.empty_like(batch).stride()
                assert_same_bits(got, expected)
                in_place = batch.clone(memory_format=torch.preserve_format)
                fm.mix_(in_place, plan, backend="reference")
                assert_same_bits(in_place, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [(7,), (6, 9)], ids=str)
@pytest.mark.parametrize("method", [name for name in METHODS if "FMix" not in name and name != "RandomMix"])
def test_the_plain_step_is_the_general_one(
    pieces: str, monkeypatch: pytest.MonkeyPatch, method: str, size: tuple[int, ...], smoothing: float
) -> None:
    """The step without an operator, which draws numbers of Python, against the same module made to take a plan."""
    called = []
    plain = reference.plain_step
    monkeypatch.setattr(reference, "plain_step", lambda *args: called.append(1) or plain(*args))
    for seed, (pairing, inplace, dtype) in enumerate(
        [("roll", False, torch.float32), ("roll", True, torch.float16), ("flip", True, torch.float32)]
    ):
        mix = METHODS[method](
            num_classes=4, pairing=pairing, inplace=inplace, label_smoothing=smoothing, backend="reference"
        )
        x = images((5, 3, *size), dtype, False)
        for y in (torch.tensor([0, 3, 1, 1, 2]), torch.rand(5, 4), torch.rand(5, 4, dtype=torch.float64)):
            torch.manual_seed(seed)
            plan = mix.sample(5, size)
            expected, state = fm.mix(x, plan, backend="reference"), torch.get_rng_state()
            torch.manual_seed(seed)
            batch = x.clone()
            got, targets = mix(batch, y)
            assert torch.equal(torch.get_rng_state(), state)
            assert (got is batch) == inplace
            assert_same_bits(got, expected)
            dense = torch.nn.functional.one_hot(y, 4).float() if y.ndim == 1 else y
            assert_same_bits(targets, fm.mix_labels(dense, plan, label_smoothing=smoothing, backend="reference"))
    assert len(called) == 9


@pytest.mark.parametrize("method", METHODS)
def test_one_mask_in_numbers_is_one_of_tensors(method: str) -> None:
    """`draws.single` against the formulas of tensors, which a given λ for each sample asks for."""
    mix = METHODS[method](alpha=0.5) if method in ("MixUp", "CutMix", "GMix") else METHODS[method]()
    generator = torch.Generator().manual_seed(1)
    seen = 0
    for size in ((32,), (7, 5), (224, 224), (3, 4, 5)):
        request = Request(mix._current_spec(), 3, size, Pairing.ROLL, Per.BATCH, 0.9, None, None)
        for _ in range(100):
            numbers, _ = draws.host(request, generator)
            one = draws.single(request, numbers[0])
            if one is None:
                continue
            seen += 1
            drawn = torch.tensor(numbers, dtype=torch.float64).repeat(3, 1)
            each = draws.plan(request._replace(per=Per.SAMPLE), Source(None, drawn, None), CPU)
            for got, expected in zip(draws._expanded(one, 3), each[1:], strict=True):
                assert got.dtype == expected.dtype
                assert torch.equal(got, expected), (size, numbers)
    assert seen or "FMix" in method


def test_the_plain_step_refuses_before_it_draws() -> None:
    mix = fm.MixUp(num_classes=3, backend="reference", inplace=True)
    x = torch.randn(4, 3, 8, 8)
    before = x.clone()
    wrong = (
        (x, torch.tensor([0, 1, 2, 3]), "must be in"),
        (x, torch.zeros(5, dtype=torch.int64), "batch size"),
        (x.int(), torch.zeros(4, dtype=torch.int64), "dtypes"),
    )
    for batch, labels, words in wrong:
        with refused(ValueError, words):
            mix(batch, labels)
    assert torch.equal(x, before)


# ---- Devices without float64 -----------------------------------------------------------------------------------------


class Float64Seen(TorchDispatchMode):
    """The numbers of elements of the float64 tensors that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            self.sizes.append(result.numel())
        return result


def test_what_runs_on_a_device_without_float64_needs_none() -> None:
    """MPS cannot be had here: what stays there, cuts and labels, is watched for float64 beyond a plan's numbers."""
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 2])
    plan = fm.CutMix().sample(4, (8, 8), lam=0.5)
    numbers = (plan.partner, plan.masks, int(plan.families), 2, int(plan.pairing), int(plan.per))
    with Float64Seen() as seen:
        reference.mix(x, MaskArguments(*numbers))
        reference.mix_(x, MaskArguments(*numbers))
        assert not seen.sizes
        reference.mix_labels(y, plan.partner, plan.weight, 100, 0.1)
        assert max(seen.sizes) <= len(x)  # the weights, which are on the CPU


def test_a_device_without_float64_gets_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU in the place of such a device: every operator goes the way by the CPU."""
    cases = [
        (make, per, sampling, inplace)
        for make in METHODS.values()
        for per in ("batch", "sample")
        for sampling in ("host", "device")
        for inplace in (False, True)
    ]
    x, y = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 2])

    def run() -> list[torch.Tensor]:
        found = []
        for make, per, sampling, inplace in cases:
            torch.manual_seed(0)
            mix = make(num_classes=3, per=per, sampling=sampling, inplace=inplace, backend="reference")
            found += mix(x.clone(), y)
            plan = mix.sample(4, (8, 8), seed=1)
            found += [fm.mix_cross_entropy(torch.randn(4, 3), y, plan, backend="reference")]
        return found

    expected = run()
    monkeypatch.setattr(reference, "has_float64", lambda device: False)
    for got, want in zip(run(), expected, strict=True):
        assert_same_bits(got, want)


def test_mps_and_xpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert reference.has_float64(CPU)
    assert not reference.has_float64(torch.device("mps"))
    plan = fm.CutMix().sample(4, (8, 8), device="mps")
    assert plan.device == CPU
    assert backends.choose("mps") == backends.choose("xpu") == "reference"


# ---- The notice ------------------------------------------------------------------------------------------------------


def notices(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, device: str, why: str | None
) -> list[str]:
    monkeypatch.setattr(backends, "_chosen", {})
    monkeypatch.setattr(backends.native, "why_not", lambda name: why)
    with caplog.at_level(logging.WARNING, logger="fusedmix"):
        assert backends.choose(device) == "reference"
        backends.choose(device)
    return [record.getMessage() for record in caplog.records]


def test_the_notice_names_the_package_and_the_remedy_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSEDMIX_BACKEND", raising=False)
    (line,) = notices(caplog, monkeypatch, "cpu", "no C++ compiler is found: install one (apt install g++)")
    assert line.startswith("fusedmix: cpu batches")
    assert "install one (apt install g++)" in line


def test_the_notice_where_there_is_nothing_to_install(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSEDMIX_BACKEND", raising=False)
    (line,) = notices(caplog, monkeypatch, "mps", None)
    assert line.startswith("fusedmix: mps batches")
    assert "there is none for 'mps' tensors" in line


def test_no_notice_where_it_was_asked_for(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSEDMIX_BACKEND", "reference")
    assert notices(caplog, monkeypatch, "cpu", "no C++ compiler is found") == []


def test_the_hint_for_a_compiler_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    for platform, command in (("linux", "apt install g++"), ("darwin", "xcode-select --install")):
        monkeypatch.setattr(backends.native.sys, "platform", platform)
        with pytest.raises(backends.native.BuildError, match=command):
            backends.native._cxx()

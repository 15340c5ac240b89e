"""mix, mix_ and mix_labels against their definition, on awkward memory, in every dtype, and through autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusedmix as fm
from conftest import METHODS

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8]


def batch(shape, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=dtype, generator=g)
    return torch.randn(shape, dtype=torch.float64, generator=g).to(dtype)


def masks_like(x, plan):
    """plan.mask() in float64, shaped to broadcast against x."""
    m = plan.mask().double()
    return m.reshape(m.shape[0], *[1] * (x.ndim - m.ndim), *m.shape[1:])


def check_definition(x, plan, out):
    """out is the once-rounded w·(a-b) + b of the rounded difference, and exactly a or b where it must be."""
    w = masks_like(x, plan).expand(x.shape)
    a, b = x, x[plan.partner]
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    exact = w * (a.to(compute) - b.to(compute)).double() + b.double()
    assert out.dtype == x.dtype
    assert out.shape == x.shape
    blended = (w != 0) & (w != 1)
    error = (out.double() - exact).abs()[blended]
    if x.dtype == torch.uint8:
        # to nearest: no other integer is nearer by more than float32's rounding before the last step
        assert (error <= 0.5 + 255 * 2.0**-24).all()
    else:
        rounding = torch.finfo(x.dtype).eps / 2 * exact.abs()
        slack = torch.finfo(torch.float64).eps * (a.double().abs() + b.double().abs())
        if compute != x.dtype:
            slack = slack + torch.finfo(compute).eps * exact.abs()
        tiny = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
        assert (error <= (rounding + 4 * slack + tiny)[blended]).all()
    assert torch.equal(out[w == 1], a[w == 1])
    assert torch.equal(out[w == 0], b[w == 0])


@st.composite
def problems(draw):
    """(module, x, plan): every method, pairing, per, dtype, 1 to 3 spatial dims, batches from 0."""
    pairing, per = draw(
        st.sampled_from(
            [(pairing, per) for pairing in ("roll", "flip", "random") for per in ("batch", "sample")]
            + [("flip", "pair")]
        )
    )
    name = draw(st.sampled_from(sorted(METHODS)))
    module = METHODS[name](pairing=pairing, per=per, sampling=draw(st.sampled_from(["host", "device"])))
    size = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    lead = draw(st.sampled_from([(), (1,), (3,)]))
    b = draw(st.integers(0, 7))
    x = batch((b, *lead, *size), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99)))
    lam = draw(st.one_of(st.none(), st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1, width=32)))
    plan = module.sample(b, size, lam=lam, seed=draw(st.integers(0, 2**64 - 1)))
    return module, x, plan


@settings(max_examples=300, deadline=None)
@given(problems())
def test_mix_is_its_definition(problem):
    _, x, plan = problem
    before = x.clone()
    out = fm.mix(x, plan)
    check_definition(x, plan, out)
    assert torch.equal(x, before)


@settings(max_examples=150, deadline=None)
@given(problems())
def test_in_place_equals_out_of_place(problem):
    _, x, plan = problem
    expected = fm.mix(x, plan)
    version = x._version
    assert fm.mix_(x, plan) is x
    assert torch.equal(x, expected)
    assert x._version > version


@settings(max_examples=100, deadline=None)
@given(problems(), st.booleans())
def test_identical_samples_come_back_bit_for_bit(problem, special):
    _, x, plan = problem
    if x.shape[0] == 0:
        return
    x = x[:1].expand(x.shape).clone()
    if special and x.dtype != torch.uint8:
        flat = x.view(x.shape[0], -1)
        for i, value in enumerate([-0.0, float("inf"), float("-inf"), torch.finfo(x.dtype).max][: flat.shape[1]]):
            flat[:, i] = value
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    assert torch.equal(fm.mix(x, plan).view(bits), x.view(bits))


@settings(max_examples=100, deadline=None)
@given(problems())
def test_weight_one_returns_the_input_bit_for_bit(problem):
    module, x, _ = problem
    if isinstance(module, fm.SamplePairing):
        return  # its weight is 1 by definition, its mask ½
    size = tuple(x.shape[x.ndim - len(problem[2].size) :])
    plan = module.sample(x.shape[0], size, lam=1.0, seed=1)
    assert torch.equal(plan.weight, torch.ones(x.shape[0], dtype=torch.float64))
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    assert torch.equal(fm.mix(x, plan).view(bits), x.view(bits))


@settings(max_examples=100, deadline=None)
@given(problems())
def test_backward_is_the_definition(problem):
    _, x, plan = problem
    if x.dtype == torch.uint8:
        return
    x = x.requires_grad_()
    grad = batch(x.shape, x.dtype, 7)
    (out,) = torch.autograd.grad(fm.mix(x, plan), x, grad)
    # grad_x = Σ_i ∂x̃_i/∂x: M_i·g_i to the sample itself, (1-M_i)·g_i to its partner
    m = masks_like(x, plan)
    expected = (m * grad.double()).index_add(0, plan.partner, (1 - m) * grad.double())
    bound = (m * grad.double()).abs().index_add(0, plan.partner, ((1 - m) * grad.double()).abs())
    tiny = torch.finfo(x.dtype).smallest_normal
    assert ((out.double() - expected).abs() <= torch.finfo(x.dtype).eps * bound + tiny).all()


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_gradcheck(method, per):
    plan = method(per=per, pairing="random").sample(3, (3, 4), seed=5)
    x = torch.rand(3, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: fm.mix(x, plan), x)
    assert torch.autograd.gradgradcheck(lambda x: fm.mix(x, plan), x)


def test_overflowed_gradients_stay_in_their_box():
    plan = fm.CutMix(pairing="flip").sample(2, (8, 8), lam=0.5, seed=3)
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    grad = torch.ones(2, 1, 8, 8)
    grad[0] = float("inf")
    (out,) = torch.autograd.grad(fm.mix(x, plan), x, grad)
    assert not out.isnan().any()
    own = masks_like(x, plan)[0] == 1
    assert out[0][own].isinf().all()
    assert (out[0][~own] == 1).all()


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_box_is_a_copy(poison):
    """Whatever stands outside the box of the partner does not leak into the sample."""
    plan = fm.CutMix(pairing="flip").sample(2, (8, 8), lam=0.5, seed=3)
    own = plan.mask().bool()
    x = torch.rand(2, 1, 8, 8)
    x[1, 0][own[0]] = poison  # not taken by sample 0
    x[0, 0][~own[0]] = poison  # replaced in sample 0
    assert fm.mix(x, plan)[0].isfinite().all()


def layouts(x):
    """The same values in every memory layout a batch may come in."""
    yield "contiguous", x.clone()
    yield "channels_last", x.contiguous(memory_format=torch.channels_last)
    wide = torch.zeros((x.shape[0], x.shape[1] + 2, x.shape[2] + 3, x.shape[3] * 2), dtype=x.dtype)
    cut = wide[:, 1:-1, 2:-1, ::2]
    cut.copy_(x)
    yield "sliced", cut
    yield "transposed", x.transpose(2, 3).contiguous().transpose(2, 3)
    every_second = torch.zeros((2 * x.shape[0], *x.shape[1:]), dtype=x.dtype)[::2]
    every_second.copy_(x)
    yield "every second sample", every_second


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 3, 7, 9), (1, 1, 1, 1), (2, 3, 16, 8), (0, 3, 4, 4)], ids=str)
def test_layouts(method, dtype, shape):
    plan = method(per="sample", pairing="random").sample(shape[0], shape[2:], seed=2)
    expected = fm.mix(batch(shape, dtype), plan)
    for name, x in layouts(batch(shape, dtype)):
        out = fm.mix(x, plan)
        assert torch.equal(out, expected), name
        assert out.stride() == torch.empty_like(x).stride(), name
        base = x._base
        pointer, untouched = x.data_ptr(), None if base is None else base.clone()
        fm.mix_(x, plan)
        assert torch.equal(x, expected), name
        assert x.data_ptr() == pointer
        if base is not None and name != "transposed":
            x.zero_()
            view = untouched[:, 1:-1, 2:-1, ::2] if name == "sliced" else untouched[::2]
            view.zero_()
            assert torch.equal(base, untouched), f"{name}: something outside the slice was written"


def test_saved_tensors_notice_the_in_place_call():
    plan = fm.MixUp().sample(2, (4, 4))
    x = torch.rand(2, 1, 4, 4)
    w = torch.rand(2, 1, 4, 4, requires_grad=True)
    y = (x * w).sum()
    fm.mix_(x, plan)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_in_place_is_refused_where_gradients_would_be_wrong():
    plan = fm.MixUp().sample(2, (4, 4))
    leaf = torch.rand(2, 1, 4, 4, requires_grad=True)
    for x in (leaf, leaf * 2, (leaf * 2)[:, :, 1:]):
        before = x.detach().clone()
        with pytest.raises(fm.InplaceError, match="requires grad"):
            fm.mix_(x, plan)
        assert torch.equal(x, before)
    with torch.no_grad():
        fm.mix_(leaf, plan)
    with torch.inference_mode():
        fm.mix_(torch.rand(2, 1, 4, 4), plan)


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(1, 1, 4, 4).expand(3, 1, 4, 4),
        torch.rand(3, 1, 4, 1).expand(3, 1, 4, 4),
        torch.rand(3, 1, 7).unfold(2, 4, 1),
        torch.rand(64).as_strided((3, 1, 4, 4), (2, 1, 4, 1)),
    ],
    ids=["expand batch", "expand width", "unfold", "as_strided"],
)
def test_overlapping_memory_is_refused_in_place_and_fine_out_of_place(x):
    plan = fm.MixUp(per="sample").sample(3, (4, 4), seed=0)
    before = x.clone()
    with pytest.raises(fm.InplaceError, match="overlaps"):
        fm.mix_(x, plan)
    assert torch.equal(x, before)
    assert torch.equal(fm.mix(x, plan), fm.mix(before, plan))


def test_lam_never_passes_through_the_image_dtype():
    """λ = 1 - 2^-12 is 1 in bfloat16 and float16; the blend of 0 and a large value shows whether it was kept."""
    lam = 1 - 2.0**-12
    for dtype, high in ((torch.float16, 60000.0), (torch.bfloat16, 2.0**20), (torch.uint8, 255)):
        x = torch.zeros(2, 1, 4, 4, dtype=dtype)
        x[1] = high
        plan = fm.MixUp().sample(2, (4, 4), lam=lam)
        assert plan.lam[0].item() == lam
        expected = (1 - lam) * float(x[1, 0, 0, 0])
        got = float(fm.mix(x, plan)[0, 0, 0, 0])
        assert got == pytest.approx(expected, rel=2**-8, abs=0.5 if dtype == torch.uint8 else 0)


def test_uint8_rounds_to_nearest():
    x = torch.stack([torch.arange(256), torch.arange(256).flip(0)]).to(torch.uint8).reshape(2, 1, 16, 16)
    for lam in (0.1, 0.25, 0.5, 0.7, 1 / 3):
        plan = fm.MixUp().sample(2, (16, 16), lam=lam)
        exact = plan.lam[0].double() * x.double() + (1 - plan.lam[0].double()) * x.flip(0).double()
        assert ((fm.mix(x, plan).double() - exact).abs() <= 0.5 + 1e-4).all()


def test_uint8_is_the_nearest_value_everywhere():
    """All pairs of values: rounding to float32 on the way would miss one in a hundred thousand."""
    a, b = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    x = torch.stack([a, b]).to(torch.uint8)[:, None]
    for seed in range(30):
        plan = fm.MixUp(pairing="flip").sample(2, (256, 256), seed=seed)
        lam = plan.lam[0].double()
        assert torch.equal(fm.mix(x, plan)[0, 0], (lam * (a - b) + b).round().to(torch.uint8))


def test_extrapolation_saturates_uint8():
    x = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    out = fm.mix(x, fm.MixUp().sample(2, (1, 1), lam=1.5))
    assert out.flatten().tolist() == [0, 255]
    y = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    assert fm.mix(y, fm.MixUp().sample(2, (1, 1), lam=1.5)).flatten().tolist() == [-0.5, 1.5]


def test_constant_plans_fit_any_signal():
    plan = fm.MixUp(per="sample").sample(4, (32, 32), seed=1)
    for shape in ((4,), (4, 7), (4, 5, 6), (4, 2, 3, 4, 5, 6)):
        x = torch.rand(shape, dtype=torch.float64)
        lam = plan.lam.double().reshape(-1, *[1] * (x.ndim - 1))
        torch.testing.assert_close(fm.mix(x, plan), lam * x + (1 - lam) * x[plan.partner], rtol=0, atol=1e-15)


def test_large_batches_are_mixed_in_pieces():
    """More elements than the reference blends at a time, in a last piece of another size."""
    x = torch.rand(7, 1, 1024, 1024)
    plan = fm.CutMix(per="sample", pairing="random").sample(7, (1024, 1024), seed=1)
    m = plan.mask()[:, None]
    assert torch.equal(fm.mix(x, plan), torch.where(m == 1, x, x[plan.partner]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mix_labels_is_its_definition(dtype, smoothing):
    plan = fm.CutMix(per="sample", pairing="random").sample(6, (32, 32), seed=4)
    soft = torch.rand(6, 5).softmax(1).to(dtype)
    hard = torch.tensor([0, 4, 1, 1, 3, 2])
    for labels, y in ((soft, soft.double()), (hard, torch.nn.functional.one_hot(hard, 5).double())):
        t = fm.mix_labels(labels, plan, num_classes=5, label_smoothing=smoothing)
        y = y * (1 - smoothing) + smoothing / 5
        w = plan.weight[:, None]
        out = torch.finfo(t.dtype)
        assert t.dtype == (dtype if labels is soft else torch.float32)
        assert ((t.double() - (w * y + (1 - w) * y[plan.partner])).abs() <= 2.5 * out.eps).all()


@pytest.mark.parametrize("bad", [-1, 5, 10**6])
def test_labels_out_of_range_are_an_error(bad):
    plan = fm.CutMix().sample(2, (4, 4))
    labels = torch.tensor([1, bad])
    with pytest.raises(ValueError, match=rf"labels must be in \[0, num_classes\) = \[0, 5\), but got {bad}"):
        fm.mix_labels(labels, plan, num_classes=5)
    x = torch.rand(2, 1, 4, 4)
    before = x.clone()
    for targets in ("dense", "sparse"):
        with pytest.raises(ValueError, match=str(bad)):
            fm.CutMix(num_classes=5, inplace=True, targets=targets)(x, labels)
        assert torch.equal(x, before)


def test_plans_serve_batches_on_another_device():
    """A meta batch stands in for a GPU's: the plan's tensors are moved, not the batch."""
    plan = fm.CutMix(per="sample").sample(4, (8, 8))
    x = torch.empty(4, 3, 8, 8, device="meta")
    assert fm.mix(x, plan).device.type == "meta"
    moved = plan.to("meta")
    assert moved.device.type == "meta"
    assert moved.size == plan.size
    assert plan.to("cpu") is plan

"""A whole step of a training: a plan, images and targets in few launches, or in one call."""

from __future__ import annotations

import itertools

import pytest
import torch
from torchvision.transforms import v2

import fusedmix as fm
from batches import (
    DRAWS,
    DTYPES,
    FLOATS,
    SAME_MASKS,
    each_dtype,
    images_of,
    name_of,
    odd_classes,
    reference_plan,
    request_of,
    soft,
    values,
    weights_and_partners,
)
from callers import Recorded
from conftest import INTEGERS, METHODS
from fusedmix.backends import reference
from fusedmix.draws import Source
from operators.on_shim import SHARED, assert_targets, weights_of
from oracle import alike, assert_mixed, dense

K = 7
OPTIONS = [
    {},
    {"pairing": "flip", "label_smoothing": 0.1},
    {"per": "sample"},
    {"per": "sample", "pairing": "random"},
    {"per": "pair", "sampling": "device"},
    {"per": "batch", "sampling": "device", "pairing": "random", "p": 0.5},
]


def step_for(name, n, shape, per, pairing, lam=None):
    classes = 7
    labels = torch.arange(n) * 5 % classes
    mix = METHODS[name](per=per, pairing=pairing, num_classes=classes, sampling="device")
    return mix._request(n, shape[-2:], lam, labels if "class" in pairing else None), labels, classes


def masks_of(request, made):
    return reference._masks(request_of(request), made)


def dependent(shim):
    """Which launches of the last call may begin before the one before has ended."""
    return [(name, launch["dependent"]) for name, launch in shim.launches()]


@pytest.mark.parametrize(("per", "pairing"), DRAWS)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_two_launches(shim, name, per, pairing):
    """The plan; then images and targets, by a launch that may begin before the plan is there, and waits for it."""
    shape, dtype = (14, 3, 6, 16), DTYPES[list(METHODS).index(name) % 5]
    for lam in (None, torch.linspace(0, 1, 14)):
        request, labels, classes = step_for(name, 14, shape, per, pairing, lam)
        before = values(shape, dtype)
        out, *others = shim.mix_batch(before, labels, request, torch.tensor(3), classes, 0.1)
        assert dependent(shim) == [("sample", False), ("mix", True)]
        x = before.clone()
        targets, *made = shim.mix_batch_(x, labels, request, torch.tensor(3), classes, 0.1)
        assert dependent(shim) == [("sample", False), ("mix", True)]
        (_, sampled), (_, mixed) = shim.launches()
        assert sampled["buffers"]["x"]["read_bytes"] == sampled["buffers"]["x"]["written_bytes"] == 0
        assert mixed["buffers"]["x"]["max_reads"] <= 2
        assert mixed["buffers"]["x"]["max_writes"] <= 1
        assert_targets(shim, targets, dense(labels, made[0], made[2], classes, 0.1))
        for a, b in zip((x, targets, *made), (out, *others), strict=True):
            assert alike(a, b)
        masks = masks_of(request, made)
        assert_mixed(x, before, weights_of(shim, before, masks), made[0])


@pytest.mark.parametrize("on_host", [True, False], ids=["on the host", "on the device"])
@pytest.mark.parametrize(("per", "pairing"), DRAWS)
def test_a_step_drawn_on_the_host_is_one_launch(shim, per, pairing, on_host):
    for name, shape in itertools.product(("MixUp", "CutMix", "GMix-released"), ((14, 3, 6, 16), (3, 3, 5, 5))):
        n = shape[0]
        request, labels, classes = step_for(name, n, shape, per, pairing)
        made = reference_plan(request, 5)
        masks = masks_of(request, made)
        before = values(shape, torch.float32)
        w = weights_of(shim, before, masks)
        expected = dense(labels, made[0], made[2], classes, 0.0)
        out, x = torch.empty_like(before), before.clone()
        targets, *_ = shim.step(out, before, labels, request, classes, 0.0, made=made, on_host=on_host)
        assert dependent(shim) == [("mix", False)]
        assert_targets(shim, targets, expected)
        targets, *_ = shim.step(x, x, labels, request, classes, 0.0, made=made, on_host=on_host)
        assert dependent(shim) == [("mix", False)]
        assert_targets(shim, targets, expected)
        assert alike(x, out)
        assert_mixed(x, before, w, made[0])


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float32, torch.int32], ids=name_of
)
def test_other_targets_are_a_launch(shim, dtype):
    """Of every type, whatever the images are: what is not made of classes, or not float32."""
    for (n, classes), images in itertools.product(((5, 3), (6, 900)), DTYPES):
        request, _, _ = step_for("CutMix", n, (n, 3, 8, 8), "sample", "random")
        labels, before = soft(dtype, n, classes), values((n, 3, 8, 8), images)
        x = before.clone()
        targets, *made = shim.mix_batch_(x, labels, request, torch.tensor(1), classes, 0.0)
        assert dependent(shim) == [("sample", False), ("mix", True), ("target", False)]
        assert_targets(shim, targets, dense(labels, made[0], made[2], classes, 0.0))
        assert_mixed(x, before, weights_of(shim, before, masks_of(request, made)), made[0])


def test_only_what_follows_the_sampler_begins_early(shim):
    """Not what brings a slice back to where it belongs, nor targets where there are no images to mix."""
    shim.shared_bytes = 8192
    request, labels, classes = step_for("MixUp", 300, (300, 1, 4, 8), "sample", "random")
    before = values((300, 1, 4, 8), torch.float32)
    x = before.clone()
    _, *made = shim.mix_batch_(x, labels, request, torch.tensor(3), classes, 0.0)
    assert shim.shape.way == shim.module.Way.SLICES
    assert dependent(shim) == [("sample", False), ("mix", True), ("back", False)]
    assert_mixed(x, before, weights_of(shim, before, masks_of(request, made)), made[0])
    request, labels, classes = step_for("MixUp", 1, (1, 3, 8, 16), "sample", "roll")
    shim.mix_batch_(values((1, 3, 8, 16), torch.float32), labels, request, torch.tensor(3), classes, 0.0)
    assert dependent(shim) == [("sample", False), ("target", False)]


def mixed_with_classes(shim, x, labels, classes, smoothing, pairing="random", in_place=True, weight=None):
    """A step by a plan of MixUp that was made on the host, and what its targets should be."""
    n = len(x)
    mix = fm.MixUp(per="sample", pairing=pairing, num_classes=classes, sampling="device")
    request = mix._request(n, tuple(x.shape[2:]), None, None)
    partner, lam, drawn_weight, masks = reference_plan(request, n)
    weight = drawn_weight if weight is None else weight
    out = x if in_place else torch.empty_like(x)
    made = partner, lam, weight, masks
    targets, *_ = shim.step(out, x, labels, request, classes, smoothing, made=made, on_host=n < 20)
    return targets, dense(labels, partner, weight, classes, smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool], ids=name_of)
def test_classes_beside_images(shim, dtype, smoothing):
    """Any integer type, any stride, more blocks of the one than of the other, and classes that there are not."""
    for n, classes, step in itertools.product((2, 7, 33), (1, 10, 1000), (1, 3)):
        labels = (torch.arange(n * step) * 11 % (2 if dtype == torch.bool else 120)).to(dtype)[::step]
        _, weight = weights_and_partners(n)
        made = mixed_with_classes(shim, values((n, 1, 4, 8), torch.float32), labels, classes, smoothing, weight=weight)
        assert shim.kernels() == ["mix"]
        assert_targets(shim, *made)
    if dtype != torch.bool:
        labels = odd_classes(dtype)
        x = values((len(labels), 1, 4, 8), torch.float32)
        assert_targets(shim, *mixed_with_classes(shim, x, labels, 10, smoothing))


@each_dtype
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_classes_beside_images_whatever_the_way(shim, dtype, n):
    """Once, by every kernel that may have them to write; where there is nothing to mix by a launch of their own."""
    labels, way, taken = torch.arange(n) * 7 % 10, shim.module.Way, set()
    for pairing, in_place, on_chip, shape in itertools.product(
        ("roll", "flip", "random"), (True, False), (SHARED, 1), ((n, 2, 4, 16), (n, 1, 3, 5))
    ):
        shim.shared_bytes = on_chip
        made = mixed_with_classes(shim, values(shape, dtype), labels, 10, 0.1, pairing, in_place)
        assert_targets(shim, *made)
        taken.add(shim.shape.way)
        kernels = {way.SLICES: ["mix", "back"], way.NONE: ["target"]}
        assert shim.kernels() == kernels.get(shim.shape.way, ["mix"])
    others = {way.ROLL, way.TILE, way.SLICES} if n > 1 else {way.NONE}
    assert taken == {way.EACH, way.PAIRS, *others}


def test_a_step_is_three_launches(interpreted):
    """In place too: the plan, the targets, the images."""
    mix = METHODS["CutMix"](per="sample", pairing="random", num_classes=4, sampling="device")
    request = request_of(mix._request(9, (8, 8), None, None))
    x, y = torch.rand(9, 3, 8, 8), torch.arange(9) % 4
    source = Source(torch.tensor(3), None, None)
    expected = reference.mix_batch(x, y, request, source, 4, 0.0)
    with interpreted.logged() as launches:
        interpreted.backend.mix_batch_(x, y, request, source, 4, 0.0)
    assert [of.kernel for of in launches] == ["sample_kernel", "labels_kernel", "mix_kernel"]
    assert not any(len(of.races()) for of in launches)
    assert torch.equal(x, expected[0])


@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["MixUp", "CutMix", "HMix-paper", "GMix-paper", "CutMix-aspect", "RandomMix"])
def test_the_usual_step_is_the_general_one(monkeypatch, interpreted, name, options, inplace):
    """Without an operator, and of one mask without a plan for every sample: the same batch and as many draws."""
    mix = METHODS[name](num_classes=4, inplace=inplace, backend="triton", **options)
    usual, general = [], type(mix)._plain_step
    own = interpreted.backend.plain_step
    monkeypatch.setattr(interpreted.backend, "plain_step", lambda *args: usual.append(0) or own(*args))
    for seed, y in enumerate((torch.tensor([0, 3, 1, 1, 2]), torch.rand(5, 4, dtype=torch.float64))):
        found = []
        for step in (general, lambda *_: None):
            monkeypatch.setattr(fm.MixTransform, "_plain_step", step)
            x = torch.rand(5, 3, 6, 9, generator=torch.Generator().manual_seed(seed))
            version = x._version
            torch.manual_seed(seed)
            images, targets = mix(x, y)
            assert (images is x) == inplace
            assert x._version == version + inplace
            found.append((images, targets, torch.get_rng_state()))
        assert all(map(torch.equal, *found))
    assert len(usual) == (0 if name == "RandomMix" and not {"per", "sampling"} & set(options) else 2)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("sampling", ["host", "device"])
def test_the_usual_step_refuses_before_it_draws(sampling):
    mix = fm.MixUp(num_classes=3, backend="triton", inplace=True, sampling=sampling)
    x, negated = torch.randn(4, 3, 8, 8), torch.view_as_complex(torch.randn(4, 3, 8, 8, 2)).conj().imag
    before, state = x.clone(), torch.get_rng_state()
    for batch, labels, said in (
        (x, torch.tensor([0, 1, 2, 3]), "must be in"),
        (x, torch.zeros(5, dtype=torch.int64), "batch size"),
        (x.int(), torch.zeros(4, dtype=torch.int64), "dtypes"),
        (negated, torch.zeros(4, dtype=torch.int64), "negated"),
    ):
        with pytest.raises(ValueError, match=said):
            mix(batch, labels)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


def seeded(seed, module, *sample):
    """What a module makes of a sample after torch.manual_seed, the state of the generator then, and what torch did."""
    torch.manual_seed(seed)
    with Recorded() as recorded:
        out = module(*sample)
    return out, torch.get_rng_state(), recorded.seen


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
def test_the_plain_step_is_torchvisions(name, inplace):
    y = torch.arange(6) % K
    for seed, alpha in itertools.product(range(50), (0.01, 0.2, 1.0, 8.0)):
        ours = getattr(fm, name)(num_classes=K, inplace=inplace, alpha=alpha)
        theirs = getattr(v2, name)(num_classes=K, alpha=alpha)
        x = images_of((6, 3, 9, 12), seed=seed)
        expected, state, _ = seeded(seed, theirs, x, y)
        (images, targets), our_state, ran = seeded(seed, ours, x, y)
        assert ran == ["fusedmix_cpp::mix_batch_" if inplace else "fusedmix_cpp::mix_batch"]
        assert torch.equal(our_state, state)
        assert torch.equal(targets, expected[1])
        if name == "CutMix":
            assert torch.equal(images, expected[0])
        else:  # torchvision rounds three times
            assert (images - expected[0]).abs().max() <= 2.0**-22 * (1 + x.abs().max())


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_plain_step_is_the_references(method, options, inplace):
    """In every form that the sample of a plain step may have."""
    one = method is not METHODS["RandomMix"]
    if not one and options.get("per", options.get("sampling")) is None:
        pytest.skip("a choice of methods is drawn in Python")
    ours, theirs = (method(num_classes=K, inplace=inplace, backend=name, **options) for name in (None, "reference"))
    shapes = ((6, 3, 9, 12), (3, 4, 33), (2, 2, 5, 6), (5, 1, 3, 3), (0, 3, 4, 4), (1, 3, 7, 5))
    for number in range(20 if options else 60):
        seed = 2 * number + inplace
        shape, dtype = shapes[number % len(shapes)], DTYPES[number % len(DTYPES)]
        x = images_of(shape, dtype, seed)
        y = torch.arange(shape[0]) % K
        if number % 7 < 2:
            y = torch.rand(shape[0], K).to(FLOATS[number % 4])
        form = (lambda *xy: xy, lambda *xy: (xy,), lambda *xy: ([*xy],))[number % 3]
        also = x.clone()
        expected, state, _ = seeded(seed, theirs, *form(x.clone(), y))
        mixed, our_state, ran = seeded(seed, ours, *form(also, y))
        ran = ran if one else [name for name in ran if not name.startswith("aten")]  # RandomMix gathers its methods' α
        assert ran == ["fusedmix_cpp::mix_batch_" if inplace else "fusedmix_cpp::mix_batch"]
        assert type(mixed) is type(expected)
        assert (mixed[0] is also) == inplace
        assert inplace or torch.equal(also, x)
        assert torch.equal(our_state, state)
        assert mixed[1].dtype == expected[1].dtype
        sharp = not ours._families & ~SAME_MASKS
        if sharp:
            assert alike(mixed[1], expected[1])
        if sharp and dtype != torch.float64:  # where the reference rounds twice
            assert alike(mixed[0], expected[0])
        else:
            # A soft mask may differ by 4·2⁻²⁴, and the result by a rounding more.
            eps = 1.0 if dtype == torch.uint8 else torch.finfo(dtype).eps
            far = 8.0 * (2.0**-52 if sharp else 4 * 2.0**-24) + 8 * eps
            torch.testing.assert_close(mixed[0].double(), expected[0].double(), rtol=0, atol=far)
            torch.testing.assert_close(mixed[1], expected[1])


@pytest.mark.usefixtures("cpp")
@pytest.mark.parametrize("inplace", [False, True], ids=["out-of-place", "in-place"])
def test_other_samples_go_the_general_way_to_the_same_batch(method, inplace):
    module = method(num_classes=K, inplace=inplace)
    for seed in range(20):
        x, y = images_of((6, 3, 9, 12), seed=seed), torch.arange(6) % K
        (images, targets), state, _ = seeded(seed, module, x.clone(), y)
        out, other, _ = seeded(seed, module, {"images": x.clone(), "labels": y, "more": "text"})
        assert torch.equal(out["images"], images)
        assert torch.equal(out["labels"], targets)
        assert torch.equal(other, state)
        plan = module.sample(6, (9, 12), seed=seed)  # what torch.manual_seed(seed) and a draw would give
        assert torch.equal(fm.mix(x, plan), images)
        assert torch.equal(fm.mix_labels(y, plan, num_classes=K), targets)

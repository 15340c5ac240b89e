"""torch.compile: no graph break, and the batches of eager for the same seed."""

from __future__ import annotations

from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fusedmix as fm
from attaching import Chain
from conftest import Counting, option_id

X = torch.rand(6, 3, 12, 10)
Y = torch.tensor([0, 1, 2, 3, 4, 4])


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def equal_batches(module, compiled, *batch, steps=3):
    """Both give the same batches from the same seed, and another one at every step."""
    runs = []
    for f in (module, compiled):
        torch.manual_seed(11)
        runs.append([f(*(t.clone() for t in batch)) for _ in range(steps)])
        runs[-1].append(torch.get_rng_state())
    for eager, traced in zip(*runs, strict=True):
        for a, b in zip(eager, traced, strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(runs[1][0][0], runs[1][1][0]), "the draw is frozen into the graph"


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("sampling", ["host", "device"])
def test_every_method(method, sampling, per):
    mix = method(num_classes=5, sampling=sampling, per=per, pairing="random", p=0.9)
    equal_batches(mix, torch.compile(mix, fullgraph=True, backend="aot_eager"), X, Y)


@pytest.mark.parametrize("sampling", ["host", "device"])
@pytest.mark.parametrize(
    "make",
    [
        lambda **kw: fm.CutMix(aspect=(0.5, 2.0), placement="inside", **kw),
        lambda **kw: fm.CutMix(minmax=(0.2, 0.8), **kw),
        lambda **kw: fm.HMix(ratio_alpha=2.0, **kw),
        lambda **kw: fm.GridMix(cells=(3, 2), **kw),
        lambda **kw: fm.GridMix(cells=(12, 10), **kw),
        lambda **kw: fm.RandomMix(
            [fm.GridMix(cells=(12, 10)), fm.GridMix(cells=(4, 4)), fm.HMix(ratio_alpha=1.0)], **kw
        ),
    ],
    ids=["aspect", "minmax", "ratio_alpha", "cells", "one cell a pixel", "grids"],
)
def test_options_of_methods(make, sampling):
    mix = make(num_classes=5, sampling=sampling, per="sample", p=0.9)
    equal_batches(mix, torch.compile(mix, fullgraph=True, backend="aot_eager"), X, Y)


@pytest.mark.parametrize(
    "options",
    [
        {"pairing": "cross_class", "sampling": "device"},
        {"pairing": "same_class"},
        {"pairing": "flip", "per": "pair"},
        {"label_smoothing": 0.1},
        {"inplace": True},
        {"inplace": True, "sampling": "device"},
        {"lam_range": (0.2, 0.8)},
        {"axes": (1, -1)},
        {"axes": (1, -1), "inplace": True},
        {"generator": torch.Generator()},
        {"generator": torch.Generator(), "sampling": "device"},
    ],
    ids=option_id,
)
def test_every_option(options):
    mix = fm.CutMix(num_classes=5, **options)
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    if mix.generator is None:
        equal_batches(mix, compiled, X, Y)
    else:
        batches = []
        for f in (mix, compiled):
            mix.generator.manual_seed(2)
            batches.append(f(X.clone(), Y))
        assert torch.equal(batches[0][0], batches[1][0])


@pytest.mark.parametrize("make", [dict, UserDict], ids=["dict", "UserDict"])
def test_the_images_of_a_dict(make):
    """Also where they are the likelier of two tensors."""
    mix = fm.CutMix(num_classes=5)

    def step(x, y):
        batch = mix(make({"depth": x[:, :1], "image": x, "labels": y}))
        return batch["image"], batch["labels"]

    equal_batches(step, torch.compile(step, fullgraph=True, backend="aot_eager"), X, Y)


def test_parameters_are_tensors():
    plan, x = fm.CutMix().sample(6, (12, 10), lam=0.5), nn.Parameter(X)
    compiled = torch.compile(lambda x: fm.mix(x, plan), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), fm.mix(X, plan))


def test_sparse_targets():
    mix = fm.CutMix(targets="sparse")
    torch.manual_seed(0)
    images, targets = mix(X, Y)
    torch.manual_seed(0)
    images_, targets_ = torch.compile(mix, fullgraph=True, backend="aot_eager")(X, Y)
    assert torch.equal(images, images_)
    assert isinstance(targets_, fm.SparseTargets)
    assert all(torch.equal(a, b) for a, b in zip(targets, targets_, strict=True))


@pytest.mark.thorough
@pytest.mark.parametrize("sampling", ["host", "device"])
def test_training_step_with_inductor(sampling):
    """A whole step, forward and backward, through the default compiler."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(320, 5))
    mix = fm.RandomMix([fm.MixUp(), fm.GMix()], num_classes=5, sampling=sampling)

    def step(x, y):
        x, targets = mix(x, y)
        return F.cross_entropy(model(x), targets)

    def train(step):
        torch.manual_seed(3)
        losses = [step(X, Y) for _ in range(2)]
        return losses, [torch.autograd.grad(loss, tuple(model.parameters())) for loss in losses]

    torch.testing.assert_close(train(torch.compile(step, fullgraph=True)), train(step))


def test_gradient_with_inductor():
    mix = fm.HMix(num_classes=5, per="sample", pairing="random")

    def loss(x):
        return mix(x, Y)[0].sin().sum()

    x = X.clone().requires_grad_()
    torch.manual_seed(0)
    (expected,) = torch.autograd.grad(loss(x), x)
    torch.manual_seed(0)
    (got,) = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x), x)
    torch.testing.assert_close(got, expected)


def test_dynamic_shapes():
    mix = fm.CutMix(num_classes=5, per="sample")
    compiled = torch.compile(mix, fullgraph=True, dynamic=True)
    for b, h in ((6, 12), (5, 11), (3, 9)):
        equal_batches(mix, compiled, torch.rand(b, 3, h, h + 1), torch.arange(b) % 5)


def test_the_two_halves():
    mix = fm.GMix(per="sample")

    def step(x, y, logits, seed):
        plan = mix.sample(x.shape[0], x.shape[2:], seed=seed)
        out = fm.mix_(x, plan), fm.mix_labels(y, plan, num_classes=5), fm.mix_cross_entropy(logits, y, plan)
        return out, plan

    logits = torch.randn(6, 5)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        eager, plan = step(X.clone(), Y, logits, seed)
        traced, plan_ = compiled(X.clone(), Y, logits, seed)
        assert isinstance(plan_, fm.MixPlan)
        assert torch.equal(plan.mask(), plan_.mask())
        assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))


def test_a_plan_is_an_input_like_any_other():
    mix = fm.CutMix()
    compiled = torch.compile(fm.mix, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        plan = mix.sample(6, (12, 10), seed=seed)
        assert torch.equal(compiled(X, plan), fm.mix(X, plan))


@pytest.mark.filterwarnings("ignore:Error detected in:UserWarning")  # PyTorch shows where the tensor was saved
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("apply", [lambda x, p: fm.mix_(x, p), lambda x, p: x.mul_(2)], ids=["mix_", "mul_"])
def test_saved_tensors_notice_the_in_place_call(backend, apply):
    """As PyTorch's own in-place operators do, instead of a gradient made of what was written over the old values."""
    plan = fm.CutMix().sample(6, (12, 10), lam=0.3)

    def loss(x, w):
        out = (w * x).sum()
        apply(x, plan)
        return out

    w = torch.rand(6, 3, 12, 10, requires_grad=True)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        compiled(X.clone(), w).backward()


def test_a_generator_in_a_graph_is_refused():
    mix = fm.CutMix()
    generator = torch.Generator()
    compiled = torch.compile(lambda: mix.sample(4, (8, 8), generator=generator).lam, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"generator must be None inside torch\.compile"):
        compiled()


def test_a_schedule_of_alpha_does_not_recompile():
    mix = fm.MixUp(num_classes=5)
    counting = Counting()
    compiled = torch.compile(mix, fullgraph=True, backend=counting)
    for alpha in (1.0, 0.5, 0.25, 0.0):
        mix.alpha = alpha
        images, _ = compiled(X, Y)
    assert counting.graphs == 1
    assert torch.equal(images, X)  # Where α is 0, λ is 1.


CHANGES = {
    "alpha": lambda mix: [setattr(method, "alpha", 0.01) for method in mix.methods],
    "p": lambda mix: setattr(mix, "p", 0.5),
    "p of the methods": lambda mix: [setattr(method, "p", 0.5) for method in mix.methods],
    "enabled": lambda mix: setattr(mix, "enabled", False),
    "weights": lambda mix: setattr(mix, "weights", [0.0, 1.0]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("sampling", ["host", "device"])
def test_what_changes_between_steps_is_seen(change, sampling):
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix()], weights=[1.0, 0.0], num_classes=5, per="sample", sampling=sampling)
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    batches = []
    for _ in range(2):
        for f in (mix, compiled):
            torch.manual_seed(11)
            batches.append(f(X, Y)[0])
        CHANGES[change](mix)
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[2], batches[3])
    assert not torch.equal(batches[1], batches[3])


def test_labels_out_of_range_are_found_inside_a_graph():
    compiled = torch.compile(fm.CutMix(num_classes=4, inplace=True), fullgraph=True, backend="aot_eager")
    x = X.clone()
    with pytest.raises(ValueError, match="labels"):
        compiled(x, Y)
    assert torch.equal(x, X)


def test_attributes_set_later_act_on_compiled_steps():
    mix = fm.RandomMix([fm.HMix(), fm.CutMix()], num_classes=5)
    counting = Counting()
    compiled = torch.compile(mix, fullgraph=True, backend=counting)
    equal_batches(mix, compiled, X, Y)
    for setting in ("weights", "alpha", "ratio", "variant", "lam_range"):  # These are numbers in memory.
        value = {"weights": [1, 9], "alpha": 0.2, "ratio": 0.3, "variant": "paper", "lam_range": (0.3, 0.4)}[setting]
        setattr(mix if setting == "weights" else mix.methods[0], setting, value)
        equal_batches(mix, compiled, X, Y)
    assert counting.graphs == 1
    for setting, value in {"label_smoothing": 0.1, "inplace": False, "p": 0.5}.items():
        setattr(mix, setting, value)
        equal_batches(mix, compiled, X, Y)


@pytest.mark.parametrize(
    "options", [{}, {"inplace": True}, {"targets": "sparse"}, {"sampling": "device"}], ids=option_id
)
def test_training_only_in_a_compiled_step(options):
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix()], num_classes=5, training_only=True, **options)
    compiled = torch.compile(mix, fullgraph=True, backend="aot_eager")
    for training in (True, False, True):
        mix.train(training)
        torch.manual_seed(1)
        expected = torch.utils._pytree.tree_leaves(mix(X.clone(), Y))
        torch.manual_seed(1)
        got = torch.utils._pytree.tree_leaves(compiled(X.clone(), Y))
        assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
        assert torch.equal(got[0], X) != training


# --- an attached model ---

ROWS = X[:, 0, 0, :5]


class Small(Chain):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c = nn.Linear(5, 5), nn.Linear(5, 5)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("layers", [None, ["a"], ["", "a", "b"]])
def test_compiled_models_equal_eager_ones(order, layers):
    counting = Counting()
    several = layers is not None and len(layers) > 1
    runs, lams = [], []
    for compiled in (False, True):
        net, mix = Small(), fm.MixUp(per="sample")
        run = net
        if compiled and order == "after":
            run = torch.compile(net, fullgraph=True, backend=counting)
        handle = fm.attach(run, mix, layers=layers)
        if compiled and order == "before":
            run = torch.compile(net, fullgraph=not several, backend=counting)
        criterion = handle.wrap(nn.CrossEntropyLoss())
        torch.manual_seed(5)
        results = []
        for _ in range(8):
            loss = criterion(run(ROWS), Y)
            results += [loss, handle.plan.lam, *torch.autograd.grad(loss, tuple(net.parameters()))]
            lams.append(float(handle.plan.lam[0]))
        net.eval()
        results += [run(ROWS), criterion(run(ROWS), Y)]
        runs.append(results)
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b)
    assert len(set(lams[8:])) == 8, "the draw is frozen into the graph"
    # PyTorch may compile the hooks by themselves, beside the model: in training one by layer, and one in evaluation.
    assert counting.graphs <= (4 if not several else 2 * len(layers) + 2)


class Teaches(Small):
    def forward(self, x, own=True):
        return super().forward(x) + 0.0 * self(x, False) if own else super().forward(x)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("layers", [None, ["a"]])
def test_a_compiled_model_that_calls_itself(order, layers):
    net, x = Teaches(), ROWS
    run = torch.compile(net, fullgraph=True, backend="aot_eager") if order == "after" else net
    handle = fm.attach(run, fm.MixUp(), layers=layers)
    if order == "before":
        run = torch.compile(net, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        out = run(x)
        hidden = F.linear(x if layers else fm.mix(x, handle.plan), net.a.weight, net.a.bias)
        hidden = fm.mix(hidden, handle.plan) if layers else hidden
        torch.testing.assert_close(out, F.linear(hidden.tanh(), net.c.weight, net.c.bias))


def test_several_layers_in_one_graph_are_refused():
    net = Small()
    fm.attach(net, fm.MixUp(), layers=["", "a"])
    with pytest.raises(Exception, match="attach to the compiled model instead"):
        torch.compile(net, fullgraph=True, backend="eager")(ROWS)


@pytest.mark.parametrize(
    ("targets", "per", "criterion"),
    [
        ("dense", "batch", nn.CrossEntropyLoss()),
        ("sparse", "batch", F.cross_entropy),
        ("sparse", "sample", nn.CrossEntropyLoss()),
        ("sparse", "sample", F.cross_entropy),
    ],
)
def test_a_whole_step_is_one_graph(targets, per, criterion):
    net = Small()
    wrapped = fm.attach(net, fm.MixUp(per=per), layers=["a"]).wrap(criterion, targets=targets)

    def step(x, y):
        return wrapped(net(x), y)

    runs = []
    for f in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        runs.append([f(ROWS, Y) for _ in range(3)])
    torch.testing.assert_close(*runs)
    assert runs[1][0] != runs[1][1]


def test_a_compiled_criterion_is_reduced_as_its_own():
    """It passes its attributes on to the criterion in it."""
    handle = fm.attach(nn.Identity(), fm.MixUp(per="sample"))
    plan, out = handle.mix.sample(6, (1,), seed=3), ROWS
    inner = nn.CrossEntropyLoss()
    criterion = torch.compile(inner, backend="eager")
    loss = handle.wrap(criterion, targets="sparse")(out, Y, plan=plan)
    assert inner.reduction == criterion.reduction == "mean"
    torch.testing.assert_close(loss, fm.mix_cross_entropy(out, Y, plan))

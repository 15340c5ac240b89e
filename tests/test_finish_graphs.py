"""Finished batches in graphs and under torch.func, and what a finish keeps between calls."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

import fusedmix as fm
from fusedmix.plan import MixPlan
from test_finish_modules import MEAN, PLAIN, RANDOM, STD, batch


def random_mix(**options: Any) -> fm.RandomMix:
    return fm.RandomMix([fm.MixUp(), fm.FMix()], **options)


def new_finish() -> fm.Finish:
    """One that has finished nothing yet."""
    return fm.Finish((MEAN, STD), hflip=0.5, erase=fm.Erase(0.5, value=(0.5, 1.5, -2.0), count=2))


def mixed(mixer: Any, x: Tensor, y: Tensor, seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return mixer(x, y)


# ---- What is kept ----


def test_a_finish_copies_its_numbers_once() -> None:
    """Of batches of one kind; other channels, dtypes and devices have numbers of their own."""
    finish = fm.Finish(None)
    x = torch.zeros((2, 3, 4, 4), dtype=torch.uint8)
    first = finish.arguments(x).affine
    assert finish.arguments(x[:1].clone()).affine is first
    assert finish.arguments(x.permute(0, 2, 3, 1)).affine.shape == (3, 4)
    assert finish.arguments(x).affine is first
    others = [finish.arguments(of).affine for of in (x.float(), x.double(), x.to("meta"), x[:, :2])]
    assert [(of.dtype, of.device.type, of.shape[1]) for of in others] == [
        (torch.float32, "cpu", 3),
        (torch.float64, "cpu", 3),
        (torch.float32, "meta", 3),
        (torch.float32, "cpu", 2),
    ]
    for of, most in zip(others[:2], (1.0, 1.0), strict=True):
        assert torch.equal(of[0], torch.full((3,), 1 / most, dtype=of.dtype))
    assert torch.equal(first[0], torch.full((3,), 1 / 255))


def test_numbers_stay_right_however_a_finish_came_about() -> None:
    x, _ = batch()
    finish = new_finish()
    expected = fm.finish(x, finish)
    for same in (pickle.loads(pickle.dumps(finish)), copy.copy(finish), copy.deepcopy(finish)):
        assert same == finish
        assert vars(same).keys() == vars(new_finish()).keys()  # What was kept has not travelled.
        assert torch.equal(fm.finish(x, same), expected)
    assert vars(finish).keys() != vars(new_finish()).keys()


@pytest.mark.parametrize("around", ["fake", "functional", "inference", "compiled", "exported"])
def test_nothing_of_a_trace_is_kept(around: str) -> None:
    x, _ = batch()
    finish, expected = new_finish(), fm.finish(x, new_finish())
    if around == "fake":
        with FakeTensorMode() as mode:
            assert fm.finish(mode.from_tensor(x), finish).shape == x.shape
    elif around == "functional":
        assert torch.equal(torch.func.functionalize(lambda z: fm.finish(z, finish))(x), expected)
    elif around == "inference":
        with torch.inference_mode():
            assert torch.equal(fm.finish(x, finish), expected)
    elif around == "compiled":
        compiled = torch.compile(lambda z: fm.finish(z, finish), backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(x), expected)
    else:
        assert torch.equal(torch.export.export(Finishing(finish), (x,)).module()(x), expected)
    assert torch.equal(fm.finish(x, finish), expected)
    affine = finish.arguments(x).affine
    assert type(affine) is Tensor
    assert not affine.is_inference()
    assert not torch._is_functional_tensor(affine)


# ---- Graphs ----


class Finishing(nn.Module):
    def __init__(self, finish: fm.Finish, mixer: fm.MixTransform | None = None) -> None:
        super().__init__()
        self.finish, self.mixer = finish, mixer

    def forward(self, x: Tensor, y: Tensor | None = None, plan: MixPlan | None = None) -> Any:
        if self.mixer is not None:
            return self.mixer(x, y)
        return fm.finish(x, self.finish) if plan is None else fm.mix(x, plan, finish=self.finish)


@pytest.mark.parametrize(("method", "sampling"), [(fm.CutMix, "host"), (random_mix, "device")])
def test_compiled_modules_finish_as_eager_ones(method: Any, sampling: str) -> None:
    x, y = batch()
    mixer = method(num_classes=5, finish=RANDOM, sampling=sampling, p=0.7)
    compiled = torch.compile(lambda a, b: mixer(a, b), backend="aot_eager", fullgraph=True)
    for seed in range(4):
        for out, expected in zip(mixed(compiled, x, y, seed), mixed(mixer, x, y, seed), strict=True):
            assert torch.equal(out, expected)


def test_a_compiled_step_follows_the_finish_of_its_module() -> None:
    x, y = batch()
    mixer = fm.CutMix(num_classes=5, finish=PLAIN)
    compiled = torch.compile(lambda a, b: mixer(a, b), backend="eager", fullgraph=True)
    for finish in (
        PLAIN,
        fm.Finish((MEAN, (0.5, 0.5, 0.5)), torch.bfloat16, torch.channels_last),
        fm.Finish((MEAN, STD), hflip=0.5, erase=fm.Erase(0.9, (0.3, 0.5), value=(1.0, 2.0, 3.0))),
        fm.Finish((MEAN, STD), hflip=0.9, erase=fm.Erase(0.7, (0.3, 0.5), value=(1.0, 2.0, 4.0))),
    ):
        mixer.finish = finish
        out, expected = mixed(compiled, x, y)[0], mixed(mixer, x, y)[0]
        assert torch.equal(out, expected)
        assert out.stride() == expected.stride()


def test_the_numbers_of_a_graph_are_constants_of_it() -> None:
    """A copy from the host inside a graph would keep it from becoming a CUDA graph."""
    graphs: list[Any] = []

    def keep(module: Any, _: Any) -> Any:
        graphs.append(module)
        return module

    x, _ = batch()
    finish = new_finish()
    torch.compile(lambda z: fm.finish(z, finish), backend=keep, fullgraph=True)(x)
    [finished] = [node for node in graphs[0].graph.nodes if "finish" in str(node.target)]
    assert finished.args[1].op == "get_attr"
    assert torch.equal(getattr(graphs[0], finished.args[1].target), finish.arguments(x).affine)


def test_one_graph_serves_every_size() -> None:
    compiled = torch.compile(lambda z, finish: fm.finish(z, finish), dynamic=True, backend="eager", fullgraph=True)
    for finish in (PLAIN, fm.Finish(None)):
        for shape in ((6, 3, 18, 22), (4, 3, 20, 8)):
            x = torch.randint(0, 256, shape, dtype=torch.uint8)
            assert torch.equal(compiled(x, finish), fm.finish(x, finish))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_modules_finish(strict: bool) -> None:
    x, y = batch()
    dynamic = {"x": {0: torch.export.Dim("batch", min=2)}}
    program = torch.export.export(Finishing(PLAIN), (x,), strict=strict, dynamic_shapes=dynamic)
    assert torch.equal(program.module()(x[:4]), fm.finish(x[:4], PLAIN))
    mixer = fm.CutMix(num_classes=5, finish=RANDOM)
    plan = mixer.sample(6, (18, 22), seed=3)
    program = torch.export.export(Finishing(RANDOM), (x, None, plan), strict=strict)
    other = mixer.sample(6, (18, 22), seed=4)
    assert torch.equal(program.module()(x, None, other), fm.mix(x, other, finish=RANDOM))
    program = torch.export.export(Finishing(RANDOM, mixer), (x, y), strict=strict)
    assert torch.equal(mixed(program.module(), x, y)[0], mixed(mixer, x, y)[0])


# ---- Plans ----


def test_plans_of_before_there_were_draws_are_plans_without() -> None:
    x, _ = batch()
    plan = fm.CutMix(num_classes=5).sample(6, (18, 22), seed=1)
    old = MixPlan.__new__(MixPlan)
    vars(old).update({name: part for name, part in vars(plan).items() if name != "draws"})
    came = pickle.loads(pickle.dumps(old))
    for same in (came, came.to("cpu"), copy.deepcopy(came), pytree.tree_map(lambda t: t, came)):
        assert same.draws is None
        assert torch.equal(fm.mix(x, same), fm.mix(x, plan))
        assert torch.equal(fm.mix(x, same, finish=PLAIN), fm.mix(x, plan, finish=PLAIN))
    with pytest.raises(ValueError, match="plan must say which samples are flipped"):
        fm.mix(x, came, finish=RANDOM)


def test_plans_with_flips_and_holes_can_be_copied() -> None:
    x, _ = batch()
    for method in (fm.CutMix, random_mix):
        plan = method(num_classes=5, finish=RANDOM).sample(6, (18, 22), seed=1)
        expected = fm.mix(x, plan, finish=RANDOM)
        meta = plan.to("meta")
        assert meta.draws is not None
        assert meta.draws.device.type == "meta"
        leaves, context = pytree.tree_flatten(plan)
        for same in (copy.deepcopy(plan), pytree.tree_unflatten(leaves, context)):
            assert torch.equal(fm.mix(x, same, finish=RANDOM), expected)


# ---- torch.func ----


def derivative(way: str, of: Any, x: Tensor) -> Any:
    if way == "vmap":
        return torch.func.vmap(of)(torch.stack((x, x)))
    if way == "jvp":
        return torch.func.jvp(of, (x,), (torch.ones_like(x),))
    if way == "dual":
        with forward_ad.dual_level():
            return of(forward_ad.make_dual(x, torch.ones_like(x)))
    if way == "grad":
        return torch.func.grad(lambda z: of(z).sum())(x)
    if way == "requires grad":
        return of(x.clone().requires_grad_())
    return torch.func.vmap(torch.func.grad(lambda z: of(z).sum()))(torch.stack((x, x)))


@pytest.mark.parametrize("way", ["vmap", "jvp", "dual", "grad", "requires grad", "both"])
def test_a_finished_batch_has_no_derivative(way: str) -> None:
    """Which is said before anything is drawn; a derivative that is silently 0 would be wrong."""
    x, y = batch()
    mixer = fm.MixUp(num_classes=5, finish=PLAIN)
    plan = mixer.sample(6, (18, 22))
    state = torch.get_rng_state()
    for of in (
        lambda z: fm.finish(z, PLAIN),
        lambda z: fm.mix(z, plan, finish=PLAIN),
        lambda z: mixer(z, y)[0],
    ):
        with pytest.raises(ValueError, match=r"must not require grad, have a tangent or be mapped by torch\.vmap"):
            derivative(way, of, x / 255)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_grad_a_parameter_is_finished() -> None:
    x, _ = batch()
    with torch.no_grad():
        out = fm.finish(nn.Parameter(x / 255), PLAIN)
    assert not out.requires_grad
    assert torch.equal(out, fm.finish(x / 255, PLAIN))

"""The operators: schemas, tags, fakes and gradients, once for every backend.

A backend is a set of implementations in the namespace `fusedmix_<backend>`: Python functions, registered here
(backends/reference.py has the meaning of each), or a shared object that registers its own when it is loaded. What is
drawn on the host, and the seeds of what is drawn on the device, come from two operators of the namespace `fusedmix`:
tagged as random and opaque to torch.compile, so that nothing drawn is frozen into a graph.

Operators check what they are called with (fusedmix/operands.py for those in Python, csrc/binding/checks.h for those in
C++), so that they are safe whoever calls them, but do not differentiate: fusedmix/mixing.py enters the
autograd.Function at the end of this file only if a derivative is needed (a call through autograd costs several times a
plain one).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fusedmix import draws, erasing, fourier, grids, operands
from fusedmix.arguments import (
    LossArguments,
    MaskArguments,
    PixelLossArguments,
    PlanTensors,
    compute_dtype,
    empty_parts,
)
from fusedmix.backends import arrangement, borders, finished, gathers, grid_cut, pixel_losses, reference, triton
from fusedmix.checks import class_range, partners
from fusedmix.draws import Request, Source
from fusedmix.finishing import FinishArguments
from fusedmix.methods import WIDTH, Reduction
from fusedmix.tracking import tracked, transformed

_REQUEST = "Tensor spec, SymInt batch_size, SymInt[] size, int pairing, int per, float p, Tensor? lam, Tensor? labels"
_SOURCE = "Tensor? seed, Tensor? drawn, Tensor? partner"
_PLAN = "Tensor partner, Tensor lam, Tensor weight, Tensor masks"
_MIXED = "Tensor logits, Tensor labels, Tensor partner, Tensor weight, int pairing, int per, Tensor? class_weight"
# `pixels` are there if the plan may hold masks that are stored (fusedmix/fourier.py, fusedmix/grids.py).
_MASKS = "Tensor partner, Tensor masks, int families, int ndim, int pairing, int per, Tensor? pixels=None"
_PIXELS = "Tensor logits, Tensor maps, Tensor? class_weight, float label_smoothing, int ignore_index"
_FINISH = "Tensor affine, Tensor? draws, int fill, bool nhwc, ScalarType dtype, bool channels_last"

# The operators that every backend has.
_SCHEMAS = {
    "sample": f"({_REQUEST}, {_SOURCE}, Device device) -> ({_PLAN})",
    "mask": "(Tensor masks, int families, SymInt[] size, int per=2, Tensor? pixels=None) -> Tensor",
    "fourier": "(Tensor spec, Tensor masks, Tensor seed, SymInt[] size, int per, int draws, bool soft) -> Tensor",
    "mix": f"(Tensor x, {_MASKS}) -> Tensor",
    "mix_": f"(Tensor(a!) x, {_MASKS}) -> ()",
    "mix_adjoint": f"(Tensor grad, {_MASKS}) -> Tensor",
    # The partners are of another batch, of any size.
    "mix_with": f"(Tensor x, Tensor other, {_MASKS}) -> Tensor",
    "mix_with_": f"(Tensor(a!) x, Tensor other, {_MASKS}) -> ()",
    # Several partners (fusedmix/backends/gathers.py).
    "paste": "(Tensor x, Tensor partner, Tensor boxes, Tensor crops, int resize) -> Tensor",
    "blend": "(Tensor x, Tensor partner, Tensor weight) -> Tensor",
    # Of blocks: how unlike their pixels are at borders (fusedmix/backends/borders.py), the labels that cost least
    # (fusedmix/backends/grid_cut.py), and where they move (fusedmix/backends/arrangement.py).
    "border_costs": "(Tensor x, Tensor partner, Tensor scale, int[] cells) -> (Tensor right, Tensor down)",
    "label_grid": "(Tensor unary, Tensor right, Tensor down) -> Tensor",
    "arrange_blocks": "(Tensor seen, Tensor maps, float distance_cost) -> Tensor",
    "mix_labels": (
        "(Tensor labels, Tensor partner, Tensor weight, SymInt num_classes, float label_smoothing) -> Tensor"
    ),
    # A whole training step: the plan, the images and the dense targets in one call.
    "mix_batch": (
        f"(Tensor x, Tensor y, {_REQUEST}, {_SOURCE}, SymInt num_classes, float label_smoothing) -> "
        f"(Tensor mixed, Tensor targets, {_PLAN})"
    ),
    "mix_batch_": (
        f"(Tensor(a!) x, Tensor y, {_REQUEST}, {_SOURCE}, SymInt num_classes, float label_smoothing) -> "
        f"(Tensor targets, {_PLAN})"
    ),
    # Batches that are finished (fusedmix/finishing.py).
    "draw_finish": (
        "(Tensor chances, int holes, Tensor seed, SymInt batch_size, SymInt height, SymInt width, Device device) -> "
        "Tensor"
    ),
    "finish": f"(Tensor x, {_FINISH}) -> Tensor",
    "finish_mix": f"(Tensor x, {_FINISH}, {_MASKS}) -> Tensor",
    # Label losses. Classes are (B,) int64; weights of classes, losses and their gradients are of the compute dtype.
    "cross_entropy": (
        f"({_MIXED}, float label_smoothing, int ignore_index, int reduction) -> "
        "(Tensor loss, Tensor statistics, Tensor scale)"
    ),
    "cross_entropy_backward": (
        f"(Tensor grad, {_MIXED}, Tensor statistics, Tensor scale, float label_smoothing, int ignore_index) -> Tensor"
    ),
    "binary_cross_entropy": (
        f"({_MIXED}, Tensor? pos_weight, float label_smoothing, float? threshold, int reduction) -> Tensor"
    ),
    "binary_cross_entropy_backward": (
        f"(Tensor grad, {_MIXED}, Tensor? pos_weight, float label_smoothing, float? threshold, int reduction) -> Tensor"
    ),
    # The loss of label maps (fusedmix/backends/pixel_losses.py). Partners are among the N maps, of which the batch's
    # own come first.
    "pixel_cross_entropy": f"({_PIXELS}, int reduction, {_MASKS}) -> (Tensor loss, Tensor logsumexp, Tensor scale)",
    "pixel_cross_entropy_backward": (f"(Tensor grad, {_PIXELS}, Tensor logsumexp, Tensor scale, {_MASKS}) -> Tensor"),
}
# These read tensors on the host: what may have been drawn, a seed. A CUDA graph would keep what they read when it was
# captured, so torch.compile(mode="reduce-overhead") must leave them outside.
_OUTSIDE_GRAPHS = ("sample", "fourier", "mix_batch", "mix_batch_", "draw_finish")
_RANDOM = (torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded, torch.Tag.cudagraph_unsafe)


def _fake_sample(request: Request, source: Source, device: torch.device) -> PlanTensors:
    return empty_parts(request.batch_size, source.made_on(device))


def _fake_mask(masks: Tensor, _: int, size: tuple[int, ...], *__: Any) -> Tensor:
    return masks.new_empty((masks.shape[0], *size), dtype=torch.float32)


def _fake_fourier(_: Tensor, masks: Tensor, __: Tensor, size: Any, per: int, ___: int, soft: bool) -> Tensor:
    n = fourier.rows(per, masks.shape[0])
    if soft:
        return masks.new_empty((n, math.prod(size)), dtype=torch.int16)
    return masks.new_empty((n, fourier.words_per_mask(size)))


def _fake_like(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _fake_border_costs(x: Tensor, _: Tensor, __: Tensor, cells: Sequence[int]) -> tuple[Tensor, Tensor]:
    h, w = cells
    right, down = ((4, x.shape[0], *of) for of in ((h, w - 1), (h - 1, w)))
    return x.new_empty(right, dtype=torch.float32), x.new_empty(down, dtype=torch.float32)


def _fake_mix_labels(labels: Tensor, partner: Tensor, weight: Tensor, num_classes: int, _: float) -> Tensor:
    dtype = labels.dtype if labels.ndim == 2 and labels.is_floating_point() else torch.float32
    return labels.new_empty((labels.shape[0], num_classes), dtype=dtype)


def _fake_mix_batch(
    x: Tensor, y: Tensor, request: Request, source: Source, num_classes: int, label_smoothing: float
) -> tuple[Tensor, ...]:
    targets = _fake_mix_labels(y, y, y, num_classes, label_smoothing)
    return (torch.empty_like(x), targets, *empty_parts(x.shape[0], source.made_on(x.device)))


def _fake_draw_finish(
    _: Tensor, holes: int, seed: Tensor, batch_size: int, height: int, width: int, device: torch.device
) -> Tensor:
    return seed.new_empty((batch_size, erasing.HEAD + erasing.PER_HOLE * holes), dtype=torch.int32, device=device)


def _fake_finish(x: Tensor, how: FinishArguments, *_: Any) -> Tensor:
    planes = x.permute(0, 3, 1, 2) if how.nhwc else x
    layout = torch.channels_last if how.channels_last else torch.contiguous_format
    return torch.empty(planes.shape, dtype=how.dtype, device=x.device, memory_format=layout)


def _fake_loss(of: LossArguments, *options: Any) -> Tensor:
    *_, reduction = options
    shape = (of.logits.shape[0],) if reduction == Reduction.NONE else ()
    return of.logits.new_empty(shape, dtype=compute_dtype(of.logits))


def _fake_cross_entropy(of: LossArguments, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    loss = _fake_loss(of, *options)
    return loss, loss.new_empty((of.logits.shape[0], 2)), loss.new_empty(())


def _fake_logits_gradient(grad: Tensor, of: LossArguments, *_: Any) -> Tensor:
    return of.logits.new_empty(of.logits.shape)


def _fake_pixel_cross_entropy(of: PixelLossArguments, reduction: int, _: MaskArguments) -> tuple[Tensor, ...]:
    pixels = of.logits[:, 0].shape
    shape = pixels if reduction == Reduction.NONE else ()
    return tuple(of.logits.new_empty(s, dtype=compute_dtype(of.logits)) for s in (shape, pixels, ()))


_FAKES: dict[str, Callable[..., Any]] = {
    "sample": _fake_sample,
    "mask": _fake_mask,
    "fourier": _fake_fourier,
    "mix": _fake_like,
    "mix_": lambda *_: None,
    "mix_adjoint": _fake_like,
    "mix_with": _fake_like,
    "mix_with_": lambda *_: None,
    "paste": _fake_like,
    "blend": _fake_like,
    "border_costs": _fake_border_costs,
    "label_grid": lambda unary, *_: unary.new_empty(unary.shape[:3]),
    "arrange_blocks": lambda seen, *_: seen.flatten(1).to(torch.int64),
    "mix_labels": _fake_mix_labels,
    "mix_batch": _fake_mix_batch,
    "mix_batch_": lambda *args: _fake_mix_batch(*args)[1:],
    "draw_finish": _fake_draw_finish,
    "finish": _fake_finish,
    "finish_mix": _fake_finish,
    "cross_entropy": _fake_cross_entropy,
    "cross_entropy_backward": _fake_logits_gradient,
    "binary_cross_entropy": _fake_loss,
    "binary_cross_entropy_backward": _fake_logits_gradient,
    "pixel_cross_entropy": _fake_pixel_cross_entropy,
    "pixel_cross_entropy_backward": lambda _, of, *__: torch.empty_like(of.logits),
}


def _define(backend: str, *modules: ModuleType) -> torch.library.Library:
    """Defines every operator in the backend's namespace and registers the modules' functions for all devices."""
    library = torch.library.Library(f"fusedmix_{backend}", "DEF")
    for name, schema in _SCHEMAS.items():
        outside = (torch.Tag.cudagraph_unsafe,) if name in _OUTSIDE_GRAPHS else ()
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag, *outside))
        fake = _of_row(_FAKES[name], schema)
        torch.library.register_fake(f"fusedmix_{backend}::{name}", fake, lib=library)
        function = next((getattr(of, name) for of in modules if hasattr(of, name)), None)
        if function is not None:
            if reference in modules:
                function = reference.where_float64_is(name, function)
            library.impl(name, operands.checked(name, schema, function), "CompositeExplicitAutograd")
    return library


def _of_row(function: Callable[..., Any], schema: str) -> Callable[..., Any]:
    """A function that takes records as one that takes the row of arguments of a schema."""
    gather = operands.gathering(schema)
    return lambda *args: function(*gather(args))


class GeneratorHandle:
    """A generator and the number by which operators know it, because torch.compile cannot put a generator into a graph.

    The number is good while the handle lives. A copy of a handle (pickle, deepcopy) is another generator in the same
    state, with a number of its own.
    """

    _known: ClassVar[dict[int, torch.Generator]] = {}
    _keys: ClassVar[Iterator[int]] = itertools.count(1)

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.key = next(self._keys)
        self._known[self.key] = generator

    def __del__(self) -> None:
        self._known.pop(self.key, None)

    def __reduce__(self) -> tuple[Any, ...]:
        # The state travels as bytes. Torch's own way puts it into shared memory, which spawned workers cannot map.
        return _restored, (str(self.generator.device), bytes(self.generator.get_state().tolist()))

    @classmethod
    def find(cls, key: int) -> torch.Generator | None:
        """The generator of a handle by its number; 0 is torch's default generator."""
        return cls._known[key] if key else None


def _restored(device: str, state: bytes) -> GeneratorHandle:
    generator = torch.Generator(device)
    generator.set_state(torch.tensor(list(state), dtype=torch.uint8, device="cpu"))
    return GeneratorHandle(generator)


def _draw_host(request: Request, generator: int, seed: int | None) -> tuple[Tensor, Tensor]:
    _, drawn, partner = draws.from_host(request, _host_generator(generator, seed))
    assert drawn is not None
    return drawn, torch.empty(0, dtype=torch.int64, device=draws.CPU) if partner is None else partner


def _host_generator(key: int, seed: int | None) -> torch.Generator | None:
    return GeneratorHandle.find(key) if seed is None else torch.Generator("cpu").manual_seed(seed)


def _fake_draw_host(request: Request, generator: int, seed: int | None) -> tuple[Tensor, Tensor]:
    partners = 0 if request.pairing.is_formula else request.batch_size
    return (
        torch.empty((request.draws, WIDTH), dtype=torch.float64, device=draws.CPU),
        torch.empty(partners, dtype=torch.int64, device=draws.CPU),
    )


def _checked_classes(labels: Tensor, num_classes: int, ignore_index: int | None = None) -> Tensor:
    class_range(labels, num_classes, ignore_index=ignore_index)
    return labels.clone()


def _draw_seed(generator: int, *, device: torch.device) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=device).random_(generator=GeneratorHandle.find(generator))


def _seed_after(request: Request, seed: int) -> Tensor:
    generator = _host_generator(0, seed)
    draws.from_host(request, generator)
    return torch.empty((), dtype=torch.int64, device=draws.CPU).random_(generator=generator)


def draw_on_host(request: Request, generator: GeneratorHandle | None, seed: int | None) -> Source:
    """The numbers of a batch from torch's CPU generator."""
    key = 0 if generator is None else generator.key
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        drawn, partner = torch.ops.fusedmix.draw_host(*request, key, seed)
        return Source(None, drawn, None if request.pairing.is_formula else partner)
    return draws.from_host(request, _host_generator(key, seed))  # An operator in Python would cost 15 µs.


_HOST = torch.library.Library("fusedmix", "DEF")
_DRAW_HOST = f"({_REQUEST}, int generator, SymInt? seed) -> (Tensor drawn, Tensor partner)"
_HOST.define(f"draw_host{_DRAW_HOST}", tags=_RANDOM)
_HOST.impl("draw_host", _of_row(_draw_host, _DRAW_HOST), "CompositeExplicitAutograd")
torch.library.register_fake("fusedmix::draw_host", _of_row(_fake_draw_host, _DRAW_HOST), lib=_HOST)
# What draw_seed gives after torch.manual_seed(seed) and draw_host.
_SEED_AFTER = f"({_REQUEST}, SymInt seed) -> Tensor"
_HOST.define(f"seed_after{_SEED_AFTER}", tags=torch.Tag.pt2_compliant_tag)
_HOST.impl("seed_after", _of_row(_seed_after, _SEED_AFTER), "CompositeExplicitAutograd")
torch.library.register_fake(
    "fusedmix::seed_after", lambda *_: torch.empty((), dtype=torch.int64, device=draws.CPU), lib=_HOST
)
# The device is a keyword because that is where PyTorch looks for the random state that a recomputation rewinds.
_HOST.define("draw_seed(int generator, *, Device device) -> Tensor", tags=_RANDOM)
_HOST.impl("draw_seed", _draw_seed, "CompositeExplicitAutograd")
torch.library.register_fake(
    "fusedmix::draw_seed", lambda _, *, device: torch.empty((), dtype=torch.int64, device=device), lib=_HOST
)
# The cells of large grids are stored, among FMix's masks if there are any, by the same tensor operations everywhere.
_HOST.define(
    "store_grids(Tensor masks, Tensor weight, Tensor seed, Tensor? pixels, int[] cells, SymInt[] size, int per, "
    "int draws) -> (Tensor pixels, Tensor weight)",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.cudagraph_unsafe),
)
_HOST.impl("store_grids", grids.store, "CompositeExplicitAutograd")
torch.library.register_fake(
    "fusedmix::store_grids",
    lambda masks, weight, _, pixels, cells, __, per, ___: (grids.room(masks, pixels, cells, per), weight.clone()),
    lib=_HOST,
)
# Inside a graph labels have no values to look at, and the error of a compiled kernel is no ValueError: so the labels go
# through an operator that looks when it runs.
_HOST.define(
    "checked_classes(Tensor labels, SymInt num_classes, int? ignore_index=None) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_HOST.impl("checked_classes", _checked_classes, "CompositeExplicitAutograd")
torch.library.register_fake("fusedmix::checked_classes", lambda labels, *_: torch.empty_like(labels), lib=_HOST)
_IN_PYTORCH = gathers, borders, grid_cut, arrangement, finished, pixel_losses
# They are kept, because a library that is collected takes its operators with it. (No kernel of CUDA arranges blocks.)
_LIBRARIES = [
    _define("reference", reference, *_IN_PYTORCH),
    _define("triton", triton, *_IN_PYTORCH),
    _define("cpp"),
    _define("cuda", arrangement),
]


def forwards(base: Any, jvp: Callable[..., Any], vmap: Callable[..., Any] | None = None) -> Any:
    """An autograd.Function with a derivative forwards and a rule for vmap. A class of its own, because torch.compile
    traces none that has a jvp.

    Args:
        base: the function with its derivative backwards.
        jvp: takes ctx, the saved tensors and the tangents. Around it there may be another derivative forwards, for
            which torch's own way would silently give 0: it switches them off, and hands over saved tensors that still
            have the tangents of the jvp at hand.
        vmap: as torch.autograd.Function has it; where it, or its result, is None there is a call for each place of the
            mapped dim.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        base.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*ctx.to_save)

    def call_jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [None if t is None else forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors]
            return jvp(ctx, saved, *tangents)

    def one_by_one(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        def at(i: int) -> Any:
            return made.apply(*(x if dim is None else x.select(dim, i) for x, dim in zip(args, in_dims, strict=True)))

        outputs = [at(i) for i in range(info.batch_size)]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        return tuple(map(torch.stack, zip(*outputs, strict=True))), (0,) * len(outputs[0])

    def call_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        mapped = None if vmap is None else vmap(info, in_dims, *args)
        return one_by_one(info, in_dims, *args) if mapped is None else mapped

    rules: dict[str, Any] = {"setup_context": setup_context, "jvp": call_jvp, "vmap": call_vmap}
    made: Any = type(base.__name__, (base,), {name: staticmethod(rule) for name, rule in rules.items()})
    return made


class _Mix(torch.autograd.Function):
    """mix or its adjoint. x̃ is linear in x, so each is the backward of the other."""

    @staticmethod
    def forward(operators: Any, adjoint: bool, x: Tensor, *row: Any) -> Tensor:
        return (operators.mix_adjoint if adjoint else operators.mix)(x, *row)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operators, ctx.adjoint, _, *row = inputs
        plan = MaskArguments(*row)
        ctx.save_for_backward(plan.partner, plan.masks, plan.pixels)
        ctx.hints = plan.families, plan.ndim, plan.pairing, plan.per

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan = _saved_plan(ctx, ctx.saved_tensors)
        return None, None, differentiable_mix(ctx.operators, grad, plan, adjoint=not ctx.adjoint), *[None] * len(plan)


def _saved_plan(ctx: Any, saved: Sequence[Any]) -> MaskArguments:
    (partner, masks, pixels), (families, ndim, pairing, per) = saved, ctx.hints
    return MaskArguments(partner, masks, families, ndim, pairing, per, pixels)


def _mixed_tangent(ctx: Any, saved: list[Any], _: None, __: None, tangent: Tensor, *___: Any) -> Tensor:
    return differentiable_mix(ctx.operators, tangent, _saved_plan(ctx, saved), ctx.adjoint)


def _mapped_mix(_: Any, in_dims: tuple[Any, ...], operators: Any, adjoint: bool, x: Tensor, *row: Any) -> Any:
    if any(dim is not None for dim in in_dims[3:]):  # Each has a plan of its own.
        return None
    # A mask covers the last dims and is the same along all between: there the mapped dim goes.
    return differentiable_mix(operators, x.movedim(in_dims[2], 1), MaskArguments(*row), adjoint), 1


_MixForwards = forwards(_Mix, _mixed_tangent, _mapped_mix)


def differentiable_mix(operators: Any, x: Tensor, plan: MaskArguments, adjoint: bool = False) -> Tensor:
    """mix(x, *plan) or its adjoint, through autograd only if it must be."""
    forwards_too = transformed()
    if forwards_too or (x.requires_grad and torch.is_grad_enabled()):
        partners(plan.partner, permutation=True)  # The gradient needs one.
        return (_MixForwards if forwards_too else _Mix).apply(operators, adjoint, x, *plan)
    return (operators.mix_adjoint if adjoint else operators.mix)(x, *plan)


class _MixWith(torch.autograd.Function):
    """mix_with, linear in both batches: its backward is made of mix_with, too."""

    @staticmethod
    def forward(operators: Any, x: Tensor, other: Tensor, *row: Any) -> Tensor:
        return _mix_with(operators, x, other, *row)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operators, _, other, *row = inputs
        plan = MaskArguments(*row)
        ctx.save_for_backward(plan.partner, plan.masks, plan.pixels)
        ctx.hints, ctx.samples = (plan.families, plan.ndim, plan.pairing, plan.per), other.shape[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        plan = _saved_plan(ctx, ctx.saved_tensors)
        _, own, lent, *_ = ctx.needs_input_grad
        mix = functools.partial(differentiable_mix_with, ctx.operators)
        partner = plan.partner.to(grad.device)
        of_x = of_other = None
        if own:  # What is lent has a gradient of 0 here, and what is kept below.
            of_x = mix(grad, grad.new_zeros((1, *grad.shape[1:])), plan._replace(partner=partner * 0))
        if lent:
            each = torch.arange(grad.shape[0], device=grad.device)
            given = mix(torch.zeros_like(grad), grad, plan._replace(partner=each))
            of_other = grad.new_zeros((ctx.samples, *grad.shape[1:])).index_add(0, partner, given)
        return None, of_x, of_other, *[None] * len(plan)


def _mixed_with_tangent(
    ctx: Any, saved: list[Any], _: None, x: Tensor | None, other: Tensor | None, *__: Any
) -> Tensor:
    plan = _saved_plan(ctx, saved)
    if x is None:
        assert other is not None
        x = other.new_zeros((plan.partner.shape[0], *other.shape[1:]))
    if other is None:
        other = x.new_zeros((ctx.samples, *x.shape[1:]))
    return differentiable_mix_with(ctx.operators, x, other, plan)


_MixWithForwards = forwards(_MixWith, _mixed_with_tangent)


def differentiable_mix_with(operators: Any, x: Tensor, other: Tensor, plan: MaskArguments) -> Tensor:
    """mix_with(x, other, *plan) of batches in any layout, through autograd only if it must be."""
    forwards_too = transformed()
    if forwards_too or tracked(x, other):
        return (_MixWithForwards if forwards_too else _MixWith).apply(operators, x, other, *plan)
    return _mix_with(operators, x, other, *plan)


def _mix_with(operators: Any, x: Tensor, other: Tensor, *row: Any) -> Tensor:
    if 0 in x.stride()[1:]:  # No other batch can be laid out like one that is expanded.
        x = x.contiguous()
    return operators.mix_with(x, in_layout(other, x), *row)


def in_layout(other: Tensor, x: Tensor) -> Tensor:
    """Samples with the strides that those of x have, themselves if they have them."""
    strides = x.stride()[1:]
    if other.stride()[1:] == strides:
        return other
    span = 1 + sum(stride * (side - 1) for stride, side in zip(strides, x.shape[1:], strict=True) if side)
    return torch.empty_strided(other.shape, (span, *strides), dtype=x.dtype, device=x.device).copy_(other)

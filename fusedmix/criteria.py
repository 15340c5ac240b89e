"""The label loss of any criterion, by the plan of the model that a handle is attached to."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar, Protocol, get_args

import torch
from torch import Tensor, nn

from fusedmix import checks
from fusedmix.methods import Per
from fusedmix.mixing import mix_labels
from fusedmix.module import MixTransform
from fusedmix.options import TargetsName
from fusedmix.plan import MixPlan, of_partners, same_batch
from fusedmix.targets import mix_targets
from fusedmix.terms import per_sample, with_terms
from fusedmix.union import union_labels

REDUCTIONS = ("mean", "sum", "none", "batchmean")
_HELD = threading.Lock()  # It is held while a criterion has another reduction than its owner gave it.


class Handle(Protocol):
    """Of a MixHandle, what its criteria ask."""

    @property
    def mix(self) -> MixTransform:
        """The mixing module."""

    def plan_for_loss(self) -> MixPlan | None:
        """The plan of the last forward pass in training; in evaluation none."""


class _Mixed(checks.Checked):
    """A wrapped criterion: its attributes."""

    handle: Handle
    criterion: Any
    targets: TargetsName

    _checks: ClassVar = {"targets": partial(checks.choice, allowed=get_args(TargetsName))}
    _fixed: ClassVar = ("handle",)


class MixedCriterion(_Mixed, nn.Module):
    """A criterion that is a module, on mixed labels; made by `MixHandle.wrap`. `criterion` is the one wrapped."""

    def __init__(self, handle: Handle, criterion: nn.Module, targets: TargetsName) -> None:
        super().__init__()
        self.handle = handle
        self.criterion = criterion
        self.targets = targets

    def forward(
        self,
        input: Any,
        target: Any,
        *args: Any,
        plan: MixPlan | None = None,
        other: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """criterion(input, target, ...) with the target mixed by `plan`; None: by that of the handle's last forward
        pass in training, and in evaluation not at all. `other`: the targets of the batch that the plan's partners are
        from, if that is another."""
        plan = self.handle.plan_for_loss() if plan is None else plan
        return _mixed(self.criterion, self.targets, self.handle.mix, plan, input, target, other, args, kwargs, None)

    def extra_repr(self) -> str:
        return f"targets={self.targets!r}"


class MixedFunction(_Mixed):
    """A criterion that is a function, on mixed labels; made by `MixHandle.wrap`. `criterion` is the one wrapped."""

    def __init__(self, handle: Handle, criterion: Callable[..., Any], targets: TargetsName) -> None:
        self.handle = handle
        self.criterion = criterion
        self.targets = targets
        self._parameters: dict[str, Any] = {}
        with suppress(ValueError):  # Some builtins do not tell their signature.
            self._parameters = {name: p.default for name, p in inspect.signature(criterion).parameters.items()}

    def __repr__(self) -> str:
        name = getattr(self.criterion, "__name__", repr(self.criterion))
        return f"MixedFunction({name}, targets={self.targets!r})"

    def __call__(
        self,
        input: Any,
        target: Any,
        *args: Any,
        plan: MixPlan | None = None,
        other: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `MixedCriterion.forward`."""
        plan = self.handle.plan_for_loss() if plan is None else plan
        return _mixed(
            self.criterion, self.targets, self.handle.mix, plan, input, target, other, args, kwargs, self._parameters
        )


def _mixed(
    criterion: Callable[..., Any],
    targets: str,
    mix: MixTransform,
    plan: MixPlan | None,
    input: Any,
    target: Any,
    other: Tensor | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parameters: dict[str, Any] | None,  # those of a function with their defaults; None of a module
) -> Any:
    if plan is None:
        return criterion(input, target, *args, **kwargs)
    checks.tensor("target", target)
    same_batch("target", target, plan, other=other)
    if targets != "sparse":
        mixed = (_soft if targets == "dense" else _united)(input, target, mix, plan, other)
        try:
            return criterion(input, mixed, *args, **kwargs)
        except Exception as error:
            if isinstance(input, Tensor) and input.ndim == mixed.ndim == 2 and input.shape[1] != mixed.shape[1]:
                raise ValueError(
                    f"The outputs have {input.shape[1]} classes, but the mixed labels {mixed.shape[1]}: num_classes of "
                    f"the mixing module is {mix.num_classes}, and the labels came with shape {tuple(target.shape)}."
                ) from error
            raise
    check_smoothing(targets, mix)
    if isinstance(input, Tensor):
        same_batch("input", input, plan, other=other)
    return _by_terms(criterion, plan, input, target, other, args, kwargs, parameters)


def check_smoothing(targets: str, mix: MixTransform) -> None:
    """Raises where losses of hard labels would pass over the label smoothing of `mix`."""
    if targets == "sparse" and mix.label_smoothing:
        raise ValueError(
            f'label_smoothing must be 0 with targets="sparse", but mix has {mix.label_smoothing}: give it to '
            "the criterion."
        )


def _soft(input: Any, target: Tensor, mix: MixTransform, plan: MixPlan, other: Tensor | None) -> Tensor:
    """The target as dense soft labels, or, of numbers, as mixed numbers."""
    if target.is_floating_point() and not (mix.label_smoothing and target.ndim == 2):
        return mix_targets(target, plan, other=other)
    return mix_labels(target, plan, other=other, **_options(input, target, mix))


def _united(input: Any, target: Tensor, mix: MixTransform, plan: MixPlan, other: Tensor | None) -> Tensor:
    """The target with every class of both."""
    return union_labels(target, plan, other=other, **_options(input, target, mix))


def _options(input: Any, target: Tensor, mix: MixTransform) -> dict[str, Any]:
    """What labels are mixed by, besides a plan."""
    num_classes = mix.num_classes
    if num_classes is None and target.ndim == 1 and isinstance(input, Tensor) and input.ndim == 2:
        num_classes = input.shape[1]
    return {"num_classes": num_classes, "label_smoothing": mix.label_smoothing}


def _by_terms(
    criterion: Callable[..., Any],
    plan: MixPlan,
    input: Any,
    target: Tensor,
    other: Tensor | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parameters: dict[str, Any] | None,
) -> Tensor:
    """w·L(input, target) + (1-w)·L(input, target of the partner), sample by sample where w differs between samples; or
    the sum of so many as a plan with `terms` has, whose weights may differ whatever it is per."""
    if plan.terms is None and plan.per is Per.BATCH and plan.batch_size:
        lent = of_partners("target", target, plan, other)
        first, second = (_loss(criterion(input, y, *args, **kwargs)) for y in (target, lent))
        weight = plan.weight[0].to(first.device)
        return weight.to(first.dtype) * first + (1.0 - weight).to(first.dtype) * second

    settings = _settings(criterion, args, kwargs, parameters)
    reduction = settings.get("reduction")
    if reduction not in REDUCTIONS:
        raise ValueError(
            'criterion must have a `reduction` ("mean", "sum", "none" or "batchmean") that can be set, as an attribute '
            f"or a keyword, to weigh each sample by its own λ, but got {criterion!r} with reduction={reduction!r}. Use "
            + ('targets="dense", or a mix with per="batch".' if plan.terms is None else 'targets="dense".')
        )
    every, terms = with_terms("target", target, plan, other)
    partner, weights = (t.unbind(1) for t in terms)
    labels = [target if plan.terms is None and t == 0 else every[of.to(target.device)] for t, of in enumerate(partner)]
    losses = [_unreduced(criterion, input, y, args, kwargs) for y in labels]
    for loss in losses:
        if not loss.ndim or loss.shape[0] != plan.batch_size:
            raise ValueError(
                f'criterion must give (batch_size, ...) losses with reduction="none", but got {tuple(loss.shape)} for '
                f"{plan.batch_size} samples."
            )
    shares = [per_sample(weight, of) for weight, of in zip(weights, losses, strict=True)]
    loss = _sum(share.to(of.dtype) * of for share, of in zip(shares, losses, strict=True))
    if reduction == "none":
        return loss
    if reduction == "mean" and settings.get("ignore_index") is not None and not target.is_floating_point():
        # These criteria divide by the weights of the classes that count, not by the number of the samples.
        # A sample counts as one, whatever its weights sum to.
        mass = _sum(shares)
        mass = torch.where(mass == 0, 1.0, mass)
        count = _sum(share / mass * _counted(y, settings) for share, y in zip(shares, labels, strict=True))
        return loss.sum() / count.sum().to(loss.dtype)
    if reduction == "mean":
        return loss.mean()
    return loss.sum() / plan.batch_size if reduction == "batchmean" else loss.sum()


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return functools.reduce(operator.add, parts)


def _settings(
    criterion: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], parameters: dict[str, Any] | None
) -> dict[str, Any]:
    """What decides how the criterion reduces: of a module its attributes, of a function its arguments."""
    names = ("reduction", "ignore_index", "weight")
    if parameters is None:
        return {name: getattr(criterion, name, None) for name in names}
    given = {**parameters, **dict(zip(list(parameters)[2:], args, strict=False)), **kwargs}
    return {name: given[name] for name in names if name in parameters}


def _unreduced(criterion: Any, input: Any, target: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    if not isinstance(criterion, nn.Module):
        return _loss(criterion(input, target, **{**kwargs, "reduction": "none"}))
    if torch.compiler.is_compiling():  # The compiler copies no modules, and traces in one thread.
        return _with_reduction_none(criterion, input, target, args, kwargs)
    if "reduction" not in vars(criterion):  # The criterion passes the attribute on to a module that it holds.
        with _HELD:
            return _with_reduction_none(criterion, input, target, args, kwargs)
    # The twin shares parameters, buffers and hooks. Other threads may be calling the criterion itself.
    twin = copy.copy(criterion)
    twin.reduction = "none"  # type: ignore[assignment]
    before = dict(vars(twin))
    try:
        return _loss(twin(input, target, *args, **kwargs))
    finally:
        # The criterion keeps what the call has set, such as a count of its own.
        vars(criterion).update({k: v for k, v in vars(twin).items() if k not in before or before[k] is not v})


def _with_reduction_none(
    criterion: Any, input: Any, target: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Tensor:
    reduction = criterion.reduction
    criterion.reduction = "none"
    try:
        return _loss(criterion(input, target, *args, **kwargs))
    finally:
        criterion.reduction = reduction


def _loss(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor):
        raise TypeError(f"criterion must return a tensor, but got {type(loss).__name__}.")
    return loss


def _counted(target: Tensor, settings: dict[str, Any]) -> Tensor:
    """What each label counts in the mean: the weight of its class, and 0 if it is the one to be ignored."""
    counts = target != settings["ignore_index"]
    weight = settings.get("weight")
    if weight is None:
        return counts.double()
    return torch.where(counts, weight.double()[torch.where(counts, target, 0).long()], 0.0)

"""Mixing inside any training loop: hooks on a model, which mix its input or a hidden state while it trains."""

from __future__ import annotations

import inspect
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fusedmix import checks, dims, sample_tree, subclasses
from fusedmix.checkpointing import in_backward, recorded, recording
from fusedmix.criteria import MixedCriterion, MixedFunction, check_smoothing
from fusedmix.draws import CPU
from fusedmix.mixing import mix as apply
from fusedmix.module import MixTransform, mixing_module
from fusedmix.options import TargetsName
from fusedmix.plan import MixPlan
from fusedmix.transforms import MixUp

_KEPT = 64  # the number of forward passes whose plans are kept for backward passes that recompute them
_SEVERAL = "fusedmix.attach: which layer is mixed decides what the graph is; attach to the compiled model instead."
_WRAPPERS = ("module", "_orig_mod")  # the names under which DistributedDataParallel and torch.compile hold a model
_HANDLES: weakref.WeakSet[MixHandle] = weakref.WeakSet()  # all handles that exist


def attach(
    model: nn.Module,
    mix: MixTransform,
    *,
    layers: Sequence[nn.Module | str] | None = None,
    inputs: Sequence[int | str] | None = None,
    calls: Literal["first", "all"] = "first",
    replace: bool = False,
) -> MixHandle:
    """Mixes what a model computes with, in its forward passes in training mode; in evaluation it is left alone.

    Mixing is out of place, whatever mix.inplace, and differentiable: gradients flow to a sample and to its partner. The
    labels are mixed in the loss: `criterion = handle.wrap(criterion)`.

    Args:
        model: its input is mixed before its forward. It may be compiled, before or after this call (with several
            layers: before, or without fullgraph), and may be inside or around a DistributedDataParallel.
        mix: a mixing module; its pairing may not be by class, as a forward pass knows no labels. One plan is drawn for
            every forward pass of the model, from the generator of `mix`. With the input alone the draws are those of
            `mix(images, labels)`.
        layers: None: the input. Else for every forward pass one of these is drawn uniformly, and its output is mixed
            (Verma et al., "Manifold Mixup", ICML 2019): modules of the model, or their names in model.named_modules();
            "" or "input" is the input of the model. Of an output that is a tuple, list or dict the first floating-point
            tensor is mixed. Hidden states are (B, ...) for MixUp and SamplePairing, (B, C, L) or (B, C, H, W) for every
            method; what else has the dims that `axes` of `mix` names.
        inputs: which arguments are mixed if it is the input, all by one plan: positions and keywords, as the model is
            called. None: the first floating-point tensor among the arguments, which may be inside tuples and dicts; of
            keywords and dicts the one called image, images, pixel_values, x or video if several may be images.
            A model that calls itself is mixed once, in the outermost call.
        calls: where a layer is called several times in one forward pass: "first": its first output is mixed; "all":
            every one, by one plan (branches that share an encoder).
        replace: what happens where the same input or layer is mixed by another handle already, as after a notebook cell
            that is run again. False: a ValueError. True: the other handle is removed, and criteria that it wrapped
            raise from then on; wrap them by the new handle.

    Returns:
        A handle that wraps criteria, knows the last plan and removes the hooks. It is a context manager. Copies of a
        model (deepcopy, pickle) stay attached: copy the model and the handle together, or remove the handle before.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, or names no layer of the model; what it names is mixed
            already, so that images would be mixed twice and labels once.
        In a forward pass: ValueError if there is nothing to mix or it cannot be mixed; RuntimeError in a replica of the
            model (nn.DataParallel), or where a checkpointed function is recomputed and its plan is not known.
    """
    return MixHandle(model, mix, layers, inputs, calls, replace)


def attached(model: nn.Module) -> list[MixHandle]:
    """The handles that are attached to a model, to itself or to its DistributedDataParallel or compiled wrapper;
    also those that came with a copy of it."""
    hooks = (getattr(hook, "__self__", None) for m in _unwrapping(model) for hook in m._forward_pre_hooks.values())
    return list(dict.fromkeys(handle for handle in hooks if isinstance(handle, MixHandle)))


def _attachable(name: str, mix: Any) -> MixTransform:
    """`mix`, if it is a mixing module that needs no labels to find partners, and leaves images what they are."""
    if mixing_module(name, mix)._refines and not isinstance(mix, MixUp):
        raise ValueError(
            f"{name} must be a method whose plan fits what layers put out, but got {type(mix).__name__}, whose plan is "
            "made for the images of a batch."
        )
    if mix._pairing.by_class:
        raise ValueError(f"{name} must find partners without labels, but got one with pairing={mix.pairing!r}.")
    if mix.pairing == "adjacent":
        raise ValueError(
            f'{name} must leave a batch as many samples as it has, but got one with pairing="adjacent", which halves '
            "them. Call it with the batch."
        )
    if mix.finish is not None:
        raise ValueError(
            f"{name} must have finish=None, because gradients flow through what is mixed inside a model, but got one "
            f"with finish={mix.finish!r}. Finish the batch before, by fusedmix.finish(images, finish)."
        )
    return mix


class _Step:
    """One forward pass: which layer was drawn, what it was mixed by, and what was told to the layers that were called
    where a checkpointed function may call them again."""

    def __init__(self, recomputed: bool, call: FrameType | None = None) -> None:
        self.recomputed = recomputed
        self.call = call  # the frame of the model's call while it runs; None inside torch.compile
        self.depth = 0  # how many calls of the model by itself run now; -1: its wrapper has not called it yet
        self.drawn = 0
        self.plan: MixPlan | None = None
        self.told: dict[int, tuple[MixPlan | None, bool]] = {}  # the plan of each tag, and whether it was drawn for it

    def is_running(self) -> bool:
        """Whether the call is on the stack, and was not left by an exception such as KeyboardInterrupt."""
        if self.call is None:
            return True
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame is not self.call:
            frame = frame.f_back
        return frame is not None


class MixHandle(checks.Checked):
    """What `attach` returns.

    Attributes:
        model: the model it is attached to; fixed.
        mix: the mixing module. Another one mixes from the next forward pass on.
    """

    _checks: ClassVar = {"mix": _attachable}
    _fixed: ClassVar = ("model",)

    def __init__(
        self,
        model: nn.Module,
        mix: MixTransform,
        layers: Sequence[nn.Module | str] | None,
        inputs: Sequence[int | str] | None,
        calls: str,
        replace: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, but got {type(model).__name__}.")
        self.model = model
        self.mix = mix
        found = _found(model, layers)
        self._names, self._layers = tuple(found), tuple(found.values())
        self._inputs = _arguments(inputs)
        self._all = checks.choice("calls", calls, ("first", "all")) == "all"
        self._replaced = False
        others = [other for other in _related(model) if self._mixes_what(other)]
        if not checks.boolean("replace", replace) and others:
            raise ValueError(self._already(others[0]))
        for other in others:
            other.remove()
            other._replaced = True
        self._forget()
        self._hooks: list[RemovableHandle] = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for layer in self._layers:
            if layer is not None:
                self._hooks.append(layer.register_forward_hook(self._after_layer))
        if (inner := _innermost(model)) is not model:  # The model may call itself, past its wrapper.
            self._hooks.append(inner.register_forward_pre_hook(self._enter))
            self._hooks.append(inner.register_forward_hook(self._leave, always_call=True))
        self._hooks.append(model.register_forward_hook(self._finish))
        self._hooks.append(model.register_forward_hook(self._close, always_call=True))
        self._attached = True
        _HANDLES.add(self)

    def __repr__(self) -> str:
        places = ", ".join(self._names)
        attached = f"mixes {places} of {type(self.model).__name__}" if self._attached else "removed"
        return f"MixHandle({self.mix!r}, {attached})".replace("the model's input of", "the input of")

    @property
    def plan(self) -> MixPlan | None:
        """The plan of the model's last forward pass in training mode; None if there was none, if it raised, or if the
        layer that was drawn was not called in it."""
        return None if self._last is None else self._last.plan

    def wrap(self, criterion: Callable[..., Any], *, targets: TargetsName | None = None) -> Any:
        """The criterion on mixed labels: called as criterion(output, target) with the target as the loader gave it.

        While the model is in training mode the labels are mixed by the plan of its last forward pass, else the call is
        the criterion's own. Where several forward passes come before their losses, keep `handle.plan` after each and
        pass it: wrapped(output, target, plan=plan).

        Args:
            criterion: an nn.Module or a function of (output, target, ...).
            targets: "dense": criterion(output, mixed), where mixed are (B, K) soft labels with the label smoothing of
                `mix` (K: its num_classes, or the width of a (B, K) output), or for floating-point targets
                `mix_targets`. "sparse": w·L(output, target) + (1-w)·L(output, target[partner]), for criteria without
                soft labels. Where samples differ in w that takes a `reduction` that can be set, as an attribute or a
                keyword, and the criterion is reduced after the weighing. "union": criterion(output, united), with
                `union_labels`. None: what `mix` has.

        Returns:
            An nn.Module that holds the criterion, or for a function a callable.

        Raises:
            TypeError, ValueError: an argument is of the wrong type or value; in a call the labels do not fit.
            RuntimeError, in a call: the model is in training mode and no forward pass has been finished since it was
                attached or since one raised.
        """
        targets = self.mix.targets if targets is None else targets
        if not callable(criterion):
            raise TypeError(f"criterion must be an nn.Module or a function, but got {type(criterion).__name__}.")
        if isinstance(criterion, (MixedCriterion, MixedFunction)):
            raise ValueError("criterion is wrapped already: its labels would be mixed twice.")
        kind = MixedCriterion if isinstance(criterion, nn.Module) else MixedFunction
        wrapped = kind(self, criterion, targets)  # type: ignore[arg-type]
        check_smoothing(wrapped.targets, self.mix)
        return wrapped

    def remove(self) -> None:
        """Takes the hooks off: the model is what it was. Wrapped criteria pass labels unchanged from then on."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._attached = False
        self._forget()

    def __enter__(self) -> MixHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        # A copy has made no forward pass yet.
        return {**self.__dict__, "_active": None, "_last": None, "_kept": deque(maxlen=_KEPT)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _HANDLES.add(self)

    def plan_for_loss(self) -> MixPlan | None:
        """The plan that labels are to be mixed by now, None for not at all; raises where that is not known."""
        if self._replaced and self.model.training:
            raise RuntimeError(
                "The labels cannot be mixed by this handle: fusedmix.attach(..., replace=True) has replaced it. Wrap "
                "the criterion by the new one: fusedmix.attached(model)[-1].wrap(criterion)."
            )
        if not self._attached or not self.model.training:
            return None
        if self._last is None:
            raise RuntimeError(
                "The labels cannot be mixed: the model has finished no forward pass in training mode since it was "
                "attached, or its last one raised. Call the model first, or pass plan=."
            )
        return self._last.plan

    def _forget(self) -> None:
        self._active: _Step | None = None  # the forward pass that runs now
        self._last: _Step | None = None  # the last one in training mode that was finished
        self._kept: deque[_Step] = deque(maxlen=_KEPT)

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the forward of the model."""
        if self._active is not None and self._active.is_running():
            self._active.depth += 1  # A model that calls itself is mixed once, by the outer call.
            return None
        if not module.training:
            self._active = None
            return None
        if module is not self.model:
            raise RuntimeError(
                "The forward pass is that of a replica of the attached model (nn.DataParallel, copy.copy), whose plan "
                "nobody would know. Use DistributedDataParallel, or attach to the copy."
            )
        step = _Step(False) if torch.compiler.is_compiling() else _Step(in_backward(), _call_of_model())
        step.depth = 0 if _innermost(module) is module else -1
        if not step.recomputed:
            self._last = None
        self._active = step
        if len(self._layers) > 1:
            if torch.compiler.is_compiling():
                torch._dynamo.graph_break(msg=_SEVERAL)
                step.drawn = self._draw_layer_uncompiled()
            else:
                step.drawn = self._draw_layer()
        if self._layers[step.drawn] is not None:
            return None
        if self._inputs is not None:
            return self._mix_named(step, args, kwargs)
        return self._mix_first(step, (args, kwargs), self._names[step.drawn], inputs=True)

    def _enter(self, _module: nn.Module, _args: Any) -> None:
        """Before the forward of a model inside its wrapper."""
        if self._active is not None:
            self._active.depth += 1

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """After it."""
        if self._active is not None:
            self._active.depth -= 1

    def _after_layer(self, module: nn.Module, _: Any, output: Any) -> Any:
        """After the forward of one of the layers."""
        step = self._active
        if torch.compiler.is_compiling():  # The compiler recomputes by itself.
            if step is None or not self._mixes(step, module):
                return None
            return self._mix_first(step, output, self._names[step.drawn])
        again = in_backward()
        if step is None or step.recomputed != again:
            return self._mix_again(output) if again and self.model.training else None
        tag = _draw_tag() if again or _may_run_again() else None
        plan, mixes = step.plan, self._mixes(step, module)
        if mixes:
            # The seed is the tag, so that nothing but the tag is drawn here from PyTorch's own generator. A
            # recomputation, which looks the plan up, draws as much, and so what is drawn after it is the same.
            seed = tag if self.mix.generator is None else None
            output = self._mix_first(step, output, self._names[step.drawn], seed)
        if tag is not None:
            if not step.told and not again:
                self._kept.append(step)
            step.told[tag] = (step.plan if mixes else None), plan is None
        return output if mixes else None

    def _mix_again(self, output: Any) -> Any:
        """After a layer that a checkpointed function calls again: mixes as in the forward pass, whatever came since."""
        tag = _draw_tag()
        told = next((step.told[tag] for step in reversed(self._kept) if tag in step.told), None)
        if told is None:
            raise RuntimeError(
                "A checkpointed function that holds a layer of fusedmix.attach is recomputed, and nothing says by what "
                "plan: PyTorch did not rewind its generator (preserve_rng_state=False), or more than "
                f"{_KEPT} forward passes came in between. Pass context_fn=fusedmix.checkpoint_contexts to "
                "torch.utils.checkpoint.checkpoint, or preserve_rng_state=True."
            )
        plan, drawn = told
        if plan is None:
            return None
        step = _Step(recomputed=True)
        # What is recorded is handed out in its order, and this plan is in it.
        step.plan = recorded(lambda: plan, rewinds=True) if drawn and recording() else plan
        return self._mix_first(step, output, "a layer's output")

    def _mixes(self, step: _Step, module: nn.Module) -> bool:
        # A call of the model by itself (depth > 0) mixes nothing: the labels are those of the outer call.
        return self._layers[step.drawn] is module and (self._all or step.plan is None) and step.depth <= 0

    def _draw_layer(self) -> int:
        generator = self.mix.generator
        device = CPU if generator is None else generator.device

        def draw() -> int:
            return int(torch.randint(len(self._layers), (), generator=generator, device=device))

        return recorded(draw, rewinds=generator is None)

    _draw_layer_uncompiled = torch._disable_dynamo(_draw_layer)  # torch.compiler.disable would import the compiler.

    def _mix_named(self, step: _Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The arguments of the model with those mixed that `inputs` names."""
        assert self._inputs is not None
        positional, named = list(args), dict(kwargs)
        for key in self._inputs:
            where: Any = positional if isinstance(key, int) else named
            if key not in (range(len(args)) if isinstance(key, int) else kwargs):
                raise ValueError(
                    f"inputs names {key!r}, but the model was called with {len(args)} positional arguments and the "
                    f"keywords {list(kwargs)}."
                )
            where[key] = self._mixed(step, checks.tensor(f"inputs {key!r}", where[key]), f"input {key!r}")
        return tuple(positional), named

    def _mix_first(self, step: _Step, tree: Any, what: str, seed: int | None = None, *, inputs: bool = False) -> Any:
        """A tensor, or any structure, with its first floating-point tensor mixed; among the inputs of the model, the
        likeliest of those that have keys."""
        if type(tree) is Tensor and tree.is_floating_point():
            return self._mixed(step, tree, what, seed)
        leaves, rebuild = sample_tree.flatten(tree)
        found = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point() and x.ndim]
        if inputs:
            likely = sample_tree.likely_images(leaves, found, None, self.mix.axes)
            found = sample_tree.find_images(tree, leaves, found, likely, "inputs=")
        for i in found:
            leaves[i] = self._mixed(step, leaves[i], what, seed)
            return rebuild(leaves)
        raise ValueError(
            f"{what} must hold a floating-point tensor to mix, but got {[type(leaf).__name__ for leaf in leaves]}. "
            "Pass inputs= to name what is mixed, or layers= to mix a hidden state, such as the output of an embedding."
        )

    def _mixed(self, step: _Step, x: Tensor, what: str, seed: int | None = None) -> Tensor:
        if step.plan is None:
            step.plan = self._sample(x, what, seed)
        axes = None if step.plan.constant else self.mix.axes
        if axes is not None:
            dims.check(x, axes)
        view = dims.last(subclasses.plain(x), axes)
        return subclasses.like(dims.back(apply(view, step.plan, backend=self.mix.backend), axes), x)

    def _sample(self, x: Tensor, what: str, seed: int | None) -> MixPlan:
        _attachable("mix", self.mix)  # Keywords of a module may have been set since.
        checks.batch(what, subclasses.plain(x))
        axes, name, shape = self.mix.axes, type(self.mix).__name__, tuple(x.shape)
        if self.mix._constant:
            size = dims.spatial_size(x, None) if 3 <= x.ndim <= 5 and 0 not in shape else (1,)
        else:
            try:
                dims.check(x, axes)
            except ValueError as error:
                raise ValueError(f"{what} cannot be mixed by {name}: {error} MixUp mixes any shape.") from None
            size = dims.spatial_size(x, axes)
            if 0 in size:
                raise ValueError(f"{what} must have at least one pixel to be mixed by {name}, but has shape {shape}.")
        device = x.device if self.mix.sampling == "device" else None
        return self.mix.sample(x.shape[0], size, device=device, seed=seed)

    def _finish(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """After a forward of the model that did not raise."""
        step = self._active
        if step is None or step.recomputed or step.depth > 0:
            return
        self._last = step
        if step.plan is None and not torch.compiler.is_compiling():
            warnings.warn(
                f"{self._names[step.drawn]} was to be mixed, but the layer was not called in this forward pass: "
                "nothing was mixed.",
                stacklevel=2,
            )

    def _close(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """After every forward of the model, also one that raised."""
        step = self._active
        if step is not None and step.depth > 0:
            step.depth -= 1
            return
        if step is not None:
            step.call = None
        self._active = None

    def _mixes_what(self, other: MixHandle) -> bool:
        """Whether both mix the same thing in one forward pass: the input of a model, or the output of a layer."""
        if any(layer is not None and layer in other._layers for layer in self._layers):
            return True
        if None not in self._layers or None not in other._layers:
            return False
        if _innermost(self.model) is not _innermost(other.model):
            return False
        mine, theirs = self._named_inputs(), other._named_inputs()
        return mine is None or theirs is None or bool(mine & theirs)

    def _named_inputs(self) -> set[int | str] | None:
        """What `inputs` names, keywords as positions as far as the model's signature tells them."""
        if self._inputs is None:
            return None
        positions = {name: i for i, name in enumerate(inspect.signature(_innermost(self.model).forward).parameters)}
        return {key if isinstance(key, int) else positions.get(key, key) for key in self._inputs}

    def _already(self, other: MixHandle) -> str:
        """The error for what another handle mixes already."""
        shared = [n for n, layer in zip(self._names, self._layers, strict=True) if layer in other._layers]
        if other in attached(self.model):
            where = f"fusedmix.attached(model)[{attached(self.model).index(other)}]"
        else:
            where = f"attached to {type(other.model).__name__}, which holds this model or is held by it"
        return (
            f"model is attached already: {shared[0]} is mixed by another handle, and would be mixed twice, but its "
            f"labels once. That handle is {where}. Use it, call its remove(), or pass replace=True."
        )


def _draw_tag() -> int:
    """A number that a checkpointed function draws again when it is recomputed: it names the call of a layer."""
    return recorded(lambda: int(torch.empty((), dtype=torch.int64, device=CPU).random_()), rewinds=True)


def _may_run_again() -> bool:
    """Whether the code that runs now may be inside a checkpointed function: the reentrant kind turns grad off, the
    other one keeps saved tensors by hooks."""
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _call_of_model() -> FrameType:
    """The frame of the nn.Module call whose hook runs."""
    frame = sys._getframe(1)
    while frame.f_code is not nn.Module._call_impl.__code__ and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _unwrapping(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and what its wrappers hold."""
    inner: nn.Module | None = model
    while inner is not None:
        yield inner
        held = inner._modules
        inner = next((held[name] for name in _WRAPPERS if len(held) == 1 and name in held), None)


def _innermost(model: nn.Module) -> nn.Module:
    return list(_unwrapping(model))[-1]


def _related(model: nn.Module) -> list[MixHandle]:
    """The handles of the model, of its modules, and of models that hold it."""
    modules = set(model.modules())
    return [h for h in list(_HANDLES) if h._attached and (h.model in modules or model in set(h.model.modules()))]


def _found(model: nn.Module, layers: Any) -> dict[str, nn.Module | None]:
    """The layers by the names that errors give them; None for the input of the model."""
    if layers is None:
        return {"the model's input": None}
    if not isinstance(layers, Sequence) or isinstance(layers, str):
        raise TypeError(f"layers must be a sequence of modules or names, or None, but got {type(layers).__name__}.")
    if not layers:
        raise ValueError("layers must hold at least one module or name, but got none. None mixes the input.")
    names = dict(model.named_modules())
    found: dict[str, nn.Module | None] = {}
    for i, layer in enumerate(layers):
        if isinstance(layer, str):
            name = layer if layer in names else _unwrapped(layer, names)
            if layer not in ("", "input") and name is None:
                raise ValueError(f"layers[{i}] must name a module of the model, but got {layer!r}.")
        elif isinstance(layer, nn.Module):
            name = next((name for name, module in names.items() if module is layer), None)
            if name is None:
                raise ValueError(f"layers[{i}] must be a module of the model, but got another {type(layer).__name__}.")
        else:
            raise TypeError(f"layers[{i}] must be a module or a name, but got {type(layer).__name__}.")
        is_input = layer is model or layer in ("", "input")
        key = "the model's input" if is_input else f"the output of layer {name!r}"
        module = None if is_input else names[str(name)]
        if key in found or (module is not None and any(module is other for other in found.values())):
            raise ValueError(f"layers must differ, but layers[{i}] is {layer!r} again.")
        found[key] = module
    return found


def _unwrapped(name: str, names: dict[str, nn.Module]) -> str | None:
    """The full name of a layer that is named as in the model without its wrappers."""
    for full in names:
        parts = full.split(".")
        while parts and parts[0] in _WRAPPERS:
            parts = parts[1:]
        if parts and ".".join(parts) == name:
            return full
    return None


def _arguments(inputs: Any) -> tuple[int | str, ...] | None:
    if inputs is None:
        return None
    if not isinstance(inputs, Sequence) or isinstance(inputs, str):
        raise TypeError(
            f"inputs must be a sequence of positions and keywords, or None, but got {type(inputs).__name__}."
        )
    for i, key in enumerate(inputs):
        if not isinstance(key, str):
            checks.integer(f"inputs[{i}]", key, 0)
    if not inputs or len(set(inputs)) < len(inputs):
        raise ValueError(f"inputs must name at least one argument, and each once, but got {inputs!r}.")
    return tuple(inputs)

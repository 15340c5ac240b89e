"""The mixing modules: torchvision v2's conventions, with more to choose from."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from fusedmix import backends, checks, dims, sample_tree, subclasses
from fusedmix.arguments import PlanTensors
from fusedmix.backends import reference, triton
from fusedmix.checkpointing import check_rewinds, recorded, recording
from fusedmix.draws import CPU, Request, Source, moved
from fusedmix.fourier import default_cutoff
from fusedmix.functional import in_range, mix, mix_, mix_labels
from fusedmix.masks import grid
from fusedmix.masks.family import padded
from fusedmix.methods import Column, Families, Method, Number, Pairing, Per
from fusedmix.ops import GeneratorHandle, draw_on_host, tracked
from fusedmix.options import (
    DEFAULTS,
    BackendName,
    BatchOptions,
    Options,
    PairingName,
    PerName,
    SamplingName,
    TargetsName,
    VariantName,
    check_generator,
    checked,
    missing_attribute,
    settled,
    spelled_out,
    unknown_keyword,
)
from fusedmix.plan import MixPlan, SparseTargets
from fusedmix.segmentation import check_masks, mix_masks
from fusedmix.spec import drawn_for, families, spec_row

# The package's public names are these and those of api.py.
__all__ = [
    "CutMix",
    "FMix",
    "GMix",
    "GridMix",
    "HMix",
    "MixTransform",
    "MixUp",
    "RandomMix",
    "SamplePairing",
    "SmoothMix",
]

_FLOAT32_MAX = torch.finfo(torch.float32).max
_SEED_TO_DRAW = torch.empty(0, dtype=torch.int64, device=CPU)  # stands for a seed that the operator draws itself
_BY_CLASS = (Pairing.CROSS_CLASS, Pairing.SAME_CLASS)


# What belongs to one method rather than to the batch.
_OF_METHOD = ("lam_range", "variant", "p")


class MixTransform(checks.Checked, nn.Module):
    """Base of the mixing modules: takes a batch apart, samples a plan, applies it to images, masks and labels.

    Call it with a batch, in any structure torchvision v2 takes: `images, targets = mix(images, labels)`. It mixes in
    training and evaluation mode alike, as torchvision's transforms do, unless it is made with training_only=True.

    The keywords are attributes too. Setting one is checked as the keyword is, and acts from the next batch on; those
    that are fixed when a module is made say so. (DataLoader workers that run already have a module of their own, in
    which nothing changes but what a schedule sets.)
    """

    num_classes: int | None
    p: float
    label_smoothing: float
    sampling: SamplingName
    backend: BackendName | None
    targets: TargetsName
    # Of a module that was pickled when there was no such keyword.
    training_only: bool = False
    axes: tuple[int, ...] | None = None
    labels_getter: sample_tree.Getter | Literal["default"] | None
    images_getter: sample_tree.Getter | None
    inplace: bool
    mask_classes: int | None
    mask_ignore_index: int | None

    _keywords: ClassVar[tuple[str, ...]] = tuple(DEFAULTS)  # of `Options`, those that the class takes
    _member: bool = False  # whether it is one of the methods of a RandomMix
    _generator: GeneratorHandle | None = None
    _spec: Tensor  # (methods, len(Column)) float64, on the CPU wherever the module goes
    _warned: bool = False  # that its boxes are empty
    _usual: bool = False  # what _is_usual() says; of a module that was pickled before there was such a step, no
    _grids: tuple[tuple[int, ...], ...] = ()  # which have to fit the images
    _large_grids: tuple[int, ...] = ()  # three numbers of cells for each of those whose cells are stored

    def __init__(self, spec: Tensor, options: Mapping[str, Any]) -> None:
        super().__init__()
        for name in options:
            if name not in self._keywords:
                raise unknown_keyword(type(self), name)
        self._spec = spec
        self._plain_backends: dict[tuple[str, str | None], str] = {}  # by device type and what `backend` was then
        self._one_method = spec.shape[0] == 1 and not isinstance(self, RandomMix)
        self._families = families(spec)
        self._constant, self._boxed = self._families.constant, self._families.boxed
        self._stored = self._families.stored
        self._soft = Families.LEVELS in self._families
        self._grids = tuple(grid.cells_of(row) for row in spec.tolist() if row[Column.METHOD] == Method.GRIDMIX)
        self._large_grids = sum((padded(cells) for cells in self._grids if math.prod(cells) > grid.CELLS), ())
        self._take(options)

    def _take(self, given: Mapping[str, Any]) -> None:
        """Sets the attributes to the keywords given and to the defaults of the rest, or raises and sets none."""
        given = checked(given)
        values = settled(given)
        if values["backend"] != self.__dict__.get("backend", ...):
            backends.prepare(values["backend"])
        self._pairing, self._per = Pairing[values.pop("pairing").upper()], Per[values.pop("per").upper()]
        generator = values.pop("generator")
        if generator is not self.generator:
            self._generator = None if generator is None else GeneratorHandle(generator)
        # A generator is held once, by its handle, which knows how to be copied.
        self._options = {key: value for key, value in given.items() if key != "generator"}
        # Plain attributes, which are read in no time: whoever sets one comes through __setattr__.
        self.__dict__.update((name, values[name]) for name in self._keywords if name in values)
        self.__dict__["_usual"] = self._is_usual()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._keywords and not isinstance(getattr(type(self), name, None), property):
            self._set_keyword(name, value)
        elif (error := missing_attribute(self, name)) is not None:
            raise error
        else:
            super().__setattr__(name, value)

    def _set_keyword(self, name: str, value: Any) -> None:
        if self._member and name not in _OF_METHOD:
            raise AttributeError(
                f"{name} is the whole batch's, not that of a method of a RandomMix, as this {type(self).__name__} is "
                "one. Set it on the RandomMix, or make a new module for use without it."
            )
        self._take({**self._options, "generator": self.generator, name: value})

    def sample(
        self,
        batch_size: int,
        size: Sequence[int],
        *,
        lam: float | Tensor | None = None,
        labels: Tensor | None = None,
        device: torch.device | str | int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> MixPlan:
        """Draws the plan of a batch. With training_only=True it mixes nothing (λ = 1) in evaluation mode.

        Args:
            batch_size: B >= 0.
            size: 1 to 3 spatial sides in pixels, (L,), (H, W) or (D, H, W), each at least 1.
            lam: λ, given instead of drawn: a number, or a tensor () or (B,). In [0, 1] but for methods without a mask
                (MixUp, SamplePairing), for which any finite value extrapolates.
            labels: (B,) classes or (B, K), needed by pairing="cross_class" and "same_class" and ignored otherwise.
            device: where the plan's tensors are to be; None: on the CPU. A plan there serves batches on any device.
                It stays there for a device that has no float64 (MPS).
            generator: instead of the module's.
            seed: makes the draw a pure function of its arguments: an int in [-2^63, 2^64). With sampling="host" it is
                what torch.manual_seed(seed) followed by the draw would give (torch's CPU generator uses 32 bits of it).

        Raises:
            TypeError, ValueError: an argument is of the wrong type, shape or range.
            RuntimeError: sampling="host" while a CUDA graph is captured, which would freeze the draw into the graph.
        """
        batch_size = checks.integer("batch_size", batch_size, 0)
        size = checks.sides("size", size, stored=self._stored)
        given = self._check_lam(lam, batch_size)
        classes = _classes(labels, batch_size, self.pairing) if self._pairing in _BY_CLASS else None
        if generator is not None and seed is not None:
            raise ValueError("seed and generator exclude each other, but got both.")
        if seed is not None:
            seed = checks.integer("seed", seed, -(2**63), 2**64 - 1)
            seed = seed - 2**64 if seed >= 2**63 else seed  # the same 64 bits as an int64
        check_generator("generator", generator, self.sampling)
        if generator is not None and torch.compiler.is_compiling():
            raise ValueError(
                "generator must be None inside torch.compile, which cannot put one into a graph; "
                "give it to the module: its own generator is found there."
            )
        where = CPU if device is None else checks.device("device", device)
        if not reference.has_float64(where):
            where = CPU  # where label weights can be; from there a plan serves any device
        handle = self._generator if generator is None else GeneratorHandle(generator)
        if self._off():
            given, seed, handle = torch.ones((), device=CPU), 0, None  # nothing is drawn from anybody's generator
        request = self._request(batch_size, size, given, classes)
        per = request.realised_per
        static = (size, self._families, self._pairing, per)
        spec, draws = request.spec, int(self._per)

        def make() -> MixPlan:
            source = self._draw(request, handle, seed, where)
            # A plan of numbers drawn on the host is made on the host.
            made_on = CPU if source.seed is None else where
            drawn: PlanTensors = self._operators(made_on).sample(*self._placed(request, source, made_on), made_on)
            plan = MixPlan(*drawn, *static).to(where, non_blocking=True)
            if not plan.stored:
                return plan
            # Masks that are stored are made where they are wanted, whoever drew the numbers.
            noise = source.seed
            if source.drawn is not None:
                noise = source.drawn[:1, Number.NOISE].long()
            assert noise is not None
            noise = noise if noise.device.type == "cpu" else moved(noise, where)
            pixels, weight = None, plan.weight
            if self._families & (Families.STORED | Families.LEVELS):
                pixels = self._operators(where).fourier(spec, plan.masks, noise, size, int(per), draws, self._soft)
            if self._large_grids:
                pixels, weight = torch.ops.fusedmix.store_grids(
                    plan.masks, weight, noise, pixels, self._large_grids, size, int(per), draws
                )
            return replace(plan, pixels=pixels, weight=weight)

        if torch.compiler.is_compiling():
            return make()
        return recorded(make, rewinds=seed is not None or handle is None)

    def forward(self, *inputs: Any) -> Any:
        """Mixes a batch of any structure and returns it in the same structure, the labels replaced by mixed ones.

        With training_only=True a batch is returned as it is in evaluation mode, its labels too.

        Raises:
            TypeError, ValueError: the batch cannot be mixed as it is; nothing has been drawn or written then.
        """
        if not torch.compiler.is_compiling():
            mixed = self._plain_step(inputs)
            if mixed is not None:
                return mixed
        name = type(self).__name__
        if not inputs:
            raise TypeError(f"{name}() must be called with a batch, but got no arguments.")
        sample = inputs if len(inputs) > 1 else inputs[0]
        if self._off():
            return sample
        parsed = sample_tree.parse(sample, name, self.labels_getter, self.images_getter, self.axes)
        leaves, labels = parsed.leaves, parsed.labels
        if labels is not None:
            self._check_labels(labels)
        batch_size, size = self._check_images(parsed)

        x = dims.last(subclasses.plain(leaves[parsed.images[0]]), self.axes)
        operators = backends.operators(x.device.type, self.backend)  # an error now, not when something has been drawn
        if self._in_one_call(x, parsed):
            assert labels is not None
            classes = _classes(labels, batch_size, self.pairing) if self._pairing in _BY_CLASS else None
            request = self._request(batch_size, size, None, classes)
            if not torch.compiler.is_compiling():
                check_rewinds(self._generator is None)
            source = self._draw(request, self._generator, None, x.device)
            made_on = CPU if source.seed is None or not reference.has_float64(x.device) else x.device
            num_classes = self.num_classes or labels.shape[1]
            y = subclasses.plain(labels)
            arguments = (
                in_range(y, num_classes) if torch.compiler.is_compiling() else y,
                *self._placed(request, source, made_on),
                num_classes,
                self.label_smoothing,
            )
            if self.inplace:
                targets = operators.mix_batch_(x, *arguments)[0]
                torch.autograd.graph.increment_version(x)
            else:
                mixed, targets, *_ = operators.mix_batch(x, *arguments)
                mixed = dims.back(mixed, self.axes)
                leaves[parsed.images[0]] = subclasses.like(mixed, leaves[parsed.images[0]])
            leaves[parsed.labels_index] = subclasses.like(targets, labels)
            return parsed.rebuild(leaves)

        # Numbers drawn on the host travel with the launch; FMix's masks are made where they are used.
        beside = self.sampling == "device" or self._stored
        plan = self.sample(batch_size, size, labels=labels, device=x.device if beside else None)
        # The labels first: they may still turn out to be out of range, and nothing may be half-written then.
        if labels is not None:
            leaves[parsed.labels_index] = self._mix_targets(labels, plan, x.device)
        sample_tree.map_once(lambda masks: self._mix_mask(masks, plan), leaves, parsed.masks)
        sample_tree.map_once(lambda images: self._mix_image(images, plan), leaves, parsed.images)
        return parsed.rebuild(leaves)

    def _plain_step(self, inputs: tuple[Any, ...]) -> Any:
        """The usual step of a training, (images, labels) in and out, by one call of an operator that also checks and
        draws. None where something else is asked for, or wrong: the general way finds out what.

        On small batches the checks and draws of the general way are most of the time on the host, 60 µs of 80.
        """
        sample = inputs[0] if len(inputs) == 1 else inputs
        if type(sample) not in (tuple, list) or len(sample) != 2:
            return None
        x, y = sample
        if type(x) is not Tensor or type(y) is not Tensor or x is y or not self._plain() or recording():
            return None
        if tracked(x, y):
            return None
        device_type = "cpu" if x.is_cpu else x.device.type
        name = self._plain_backends.get((device_type, self.backend))
        if name is None:
            name = backends.choose(device_type, self.backend)
            self._plain_backends[device_type, self.backend] = name
        # In Python an operator costs more than mixing a small batch does, so `reference` and `triton` take this step
        # without one, except where operators are watched (by a TorchDispatchMode).
        direct = name == "triton" or (name == "reference" and self.sampling == "host" and x.is_cpu and y.is_cpu)
        if direct and torch._C._len_torch_dispatch_stack():
            return None
        if not direct and name not in ("cpp", "cuda"):
            return None
        if name in ("cuda", "triton") and (_capturing() or "FUSEDMIX_CHECK_LABELS" in os.environ):
            return None
        if not 3 <= x.ndim <= 4:
            return None
        operators = torch.ops.fusedmix_cpp if name == "cpp" else torch.ops.fusedmix_cuda
        try:
            classes, batch_size, size = self.num_classes, x.shape[0], x.shape[2:]
            if y.ndim == 2:  # integers of one column are refused
                classes = y.shape[1]
                if self.num_classes not in (None, classes) or classes < 2:
                    return None
            if classes is None or (self._boxed and min(size) < 3 and not self._warned):
                return None
            self._check_cells(size)
            if direct:
                if max(size) > checks.LONGEST_SIDE:
                    return None
                request = Request(
                    self._current_spec(), batch_size, tuple(size), self._pairing, self._per, self.p, None, None
                )
                last = classes, self.label_smoothing, self.inplace
                if name == "reference":
                    return type(sample)(reference.plain_step(x, y, request, *last))
                source = Source(_SEED_TO_DRAW if self.sampling == "device" else None, None, None)
                return type(sample)(triton.plain_step(x, y, request, source, *last))
            arguments = (
                x,
                y,
                self._current_spec(),
                batch_size,
                size,
                int(self._pairing),
                int(self._per),
                self.p,
                None,
                None,
                _SEED_TO_DRAW if self.sampling == "device" else None,
                None,
                None,
                classes,
                self.label_smoothing,
            )
            if self.inplace:
                if x.is_neg():
                    return None
                targets = operators.mix_batch_.default(*arguments)[0]
                torch.autograd.graph.increment_version(x)
                return type(sample)((x, targets))
            return type(sample)(operators.mix_batch.default(*arguments)[:2])
        except (RuntimeError, ValueError):
            # Refused (which error that is depends on torch's version), or not loaded where the module was unpickled.
            return None

    def _off(self) -> bool:
        """Whether nothing is mixed because the module is in evaluation mode."""
        return self.training_only and not self.training

    def _plain(self) -> bool:
        """Whether the step that comes may be the usual one."""
        return (
            self._usual
            and self._generator is None
            and not self._off()
            and not (self.sampling == "host" and _capturing())
        )

    def _is_usual(self) -> bool:
        """Whether an operator can draw by itself what this module draws: a seed, or one λ and at most one centre (or
        place of a box) as torchvision does. Found when a keyword is set."""
        return (
            "labels_getter" in self._keywords  # embeddings come without
            and self.targets == "dense"
            and self.labels_getter == "default"
            and self.images_getter is None
            and self.axes is None
            and (
                self._pairing <= Pairing.RANDOM
                if self.sampling == "device"
                else self._one_method and self._per is Per.BATCH and self._pairing <= Pairing.FLIP and self.p == 1.0
            )
            and not self._stored
        )

    def _in_one_call(self, x: Tensor, parsed: sample_tree.Sample) -> bool:
        """Whether images and labels can go through one operator: one stack of images, dense targets beside it, and no
        gradient, which is the usual step of a training."""
        labels = parsed.labels
        return (
            labels is not None
            and not self._stored
            and self.targets == "dense"
            and len(parsed.images) == 1
            and not parsed.masks
            and labels.device == x.device
            and (torch.compiler.is_compiling() or not recording())
            and not tracked(x, labels)
        )

    @property
    def pairing(self) -> PairingName:
        """How partners are found; fixed at construction."""
        return cast(PairingName, self._pairing.name.lower())

    @property
    def per(self) -> PerName:
        """How many draws a batch gets; fixed at construction."""
        return cast(PerName, self._per.name.lower())

    @property
    def enabled(self) -> bool:
        """Whether batches are mixed. May be changed between steps, compiled ones too: False leaves every batch as it
        is (λ = 1), whatever α, p and the method are."""
        return bool((self._spec[:, Column.P] > 0).any())

    @enabled.setter
    def enabled(self, value: bool) -> None:
        # A number in the spec, as α is: a flag of Python would be a guard of every compiled step.
        self._spec[:, Column.P] = float(checks.boolean("enabled", value))

    @property
    def generator(self) -> torch.Generator | None:
        """Where the draws or the seeds come from; None: torch's default generator."""
        return None if self._generator is None else self._generator.generator

    @generator.setter
    def generator(self, generator: torch.Generator | None) -> None:
        self._set_keyword("generator", generator)

    def extra_repr(self) -> str:
        shown = {
            key: getattr(self, key)
            for key in self._keywords
            if key not in ("lam_range", "variant") and getattr(self, key) != DEFAULTS[key]
        }
        if shown.get("sampling") == ("device" if self.per == "sample" else "host"):
            del shown["sampling"]
        return ", ".join(f"{key}={value!r}" for key, value in {**self._describe(), **shown}.items())

    def _describe(self) -> dict[str, Any]:
        """What the subclass adds to the module's repr."""
        return {}

    def _current_spec(self) -> Tensor:
        """What to draw from, at this step."""
        return self._spec

    def _operators(self, device: torch.device) -> Any:
        """The operators on a device: those of the backend asked for, if it serves that device."""
        return backends.operators(device.type, backends.where_it_serves(self.backend, device.type))

    def _request(self, batch_size: int, size: tuple[int, ...], lam: Tensor | None, classes: Tensor | None) -> Request:
        self._warn_of_empty_boxes(size)
        self._check_cells(size)
        return Request(self._current_spec(), batch_size, size, self._pairing, self._per, self.p, lam, classes)

    def _check_cells(self, size: tuple[int, ...]) -> None:
        """Raises where a grid does not fit images of a size."""
        for cells in self._grids:
            checks.fits("cells", cells, size)

    def _warn_of_empty_boxes(self, size: tuple[int, ...]) -> None:
        if not self._boxed or self._warned or torch.compiler.is_compiling() or min(size) > 2:
            return
        rows = [row for row in self._current_spec().tolist() if Families(int(row[Column.FAMILIES])).boxed]
        if all(row[Column.INSIDE] or row[Column.SIDE_HIGH] for row in rows):  # whose sides are rounded down once
            return
        warnings.warn(
            f"Boxes are empty on images whose masks have the sides {size}: half a box's side is rounded down, as "
            "torchvision does it, which is 0 on a side of 1 or 2 pixels unless 1-λ rounds to 1. CutMix leaves such "
            "batches as they are, and HMix only blends them. Pass signals (B, C, 1, L) as (B, C, L), by "
            "squeeze(2), or give the module axes=(-1,).",
            stacklevel=4,
        )
        self._warned = True

    def _placed(self, request: Request, source: Source, device: torch.device) -> tuple[Any, ...]:
        """A request and its source as operators take them that make a plan on `device`: with their tensors there, but a
        seed may be on the CPU."""
        *fixed, lam, classes = request
        lam, classes = (None if t is None else moved(t, device) for t in (lam, classes))
        seed = source.seed
        if seed is not None and seed.device.type != "cpu":
            seed = moved(seed, device)
        return *fixed, lam, classes, seed, source.drawn, source.partner

    def _draw(self, request: Request, handle: GeneratorHandle | None, seed: int | None, device: torch.device) -> Source:
        """The randomness of one batch: numbers from the host's generator, or a seed for a device."""
        if device.type == "meta" and (self.sampling == "device" or self._stored):
            raise ValueError(
                f"{type(self).__name__} draws on the device of the images, but the meta device has no values."
            )
        if self.sampling == "host":
            if not torch.compiler.is_compiling() and _capturing():
                raise RuntimeError(
                    f'{type(self).__name__}(sampling="host") cannot be captured in a CUDA graph: every replay would '
                    'repeat the one draw. Construct it with sampling="device".'
                )
            return draw_on_host(request, handle, seed)
        if seed is not None:
            return Source(torch.tensor(seed, dtype=torch.int64, device=CPU), None, None)
        if handle is not None:
            return Source(torch.ops.fusedmix.draw_seed(handle.key, device=handle.generator.device), None, None)
        # On the host a seed costs no launch; inside a graph only the device's generator moves between replays.
        capturing = not torch.compiler.is_compiling() and _capturing()
        return Source(torch.ops.fusedmix.draw_seed(0, device=device if capturing else CPU), None, None)

    def _check_lam(self, lam: Any, batch_size: int) -> Tensor | None:
        if lam is None:
            return None
        low, high = (-_FLOAT32_MAX, _FLOAT32_MAX) if self._constant else (0.0, 1.0)
        if isinstance(lam, Tensor):
            lam = subclasses.plain(checks.dense("lam", lam))
        else:
            return torch.tensor(checks.number("lam", lam, low, high), dtype=torch.float32, device=CPU)
        if lam.shape not in ((), (batch_size,)) or not lam.is_floating_point():
            raise ValueError(
                f"lam must be a number or a floating-point tensor of shape () or ({batch_size},), "
                f"but got {lam.dtype} of shape {tuple(lam.shape)}."
            )
        if lam.device.type == "cpu" and not torch.compiler.is_compiling():
            for value in lam.flatten().tolist():
                checks.number("lam", value, low, high)
        return lam.detach().float()

    def _check_labels(self, labels: Tensor) -> None:
        if labels.ndim > 2 and not labels.is_nested and "labels_getter" in self._keywords:  # images alone, as a rule
            raise ValueError(
                "labels should be index based with shape (batch_size,) or probability based with shape (batch_size, "
                f"num_classes), but got a tensor of shape {tuple(labels.shape)} instead. If there are no labels in the "
                "batch, make the module with labels_getter=None."
            )
        if self.targets == "dense":
            classes: int | None = checks.dense_labels(labels, self.num_classes)
        else:
            checks.labels(labels, self.num_classes)
            classes = self.num_classes
        if labels.ndim == 1 and classes is not None:
            checks.class_range(labels, classes)

    def _check_images(self, parsed: sample_tree.Sample) -> tuple[int, tuple[int, ...]]:
        """Raises unless images and masks fit each other and the labels; their batch and spatial size."""
        images = [parsed.leaves[i] for i in parsed.images]
        if not images:
            held = ", ".join(sorted({type(leaf).__name__ for leaf in parsed.leaves}))
            raise ValueError(
                "No image or video was found in the sample, which must hold at least one as a tensor that is not the "
                f"labels, but got {held}."
            )
        first = checks.dense("images", images[0])
        batch_size = first.shape[0] if parsed.labels is None and first.ndim else None
        if parsed.labels is not None:
            batch_size = parsed.labels.shape[0]
        for x in images:
            checks.dense("images", x)
            dims.check(x, self.axes)
            checks.batch("images", subclasses.plain(x))
            if x.shape[0] != batch_size:
                raise ValueError(
                    "The batch size of the image or video does not match the batch size of the labels "
                    f"or of the other images: {x.shape[0]} != {batch_size}."
                )
        sizes = {dims.spatial_size(x, self.axes) for x in images}
        if len(sizes) > 1 and not self._constant:
            raise ValueError(f"Images mixed by one plan must have one spatial size, but got {sorted(sizes)}.")
        size = dims.spatial_size(first, self.axes)
        if 0 in size:
            raise ValueError(f"Images must have at least one pixel, but got the spatial size {size}.")
        for each in sizes:
            checks.sides("the spatial size of images", each, stored=self._stored)
        masks = [parsed.leaves[i] for i in parsed.masks]
        for m in masks:
            if m.ndim < 1 or m.shape[0] != batch_size:
                raise ValueError(
                    f"The batch size of the masks must be that of the images, {batch_size}, "
                    f"but got shape {tuple(m.shape)}."
                )
            check_masks(subclasses.plain(m), size, self._families.binary, self.mask_classes, self.mask_ignore_index)
        if self.inplace:
            for name, written in (("images", images), ("masks", masks)):
                for x in written:
                    checks.writable(name, subclasses.plain(x))
            checks.disjoint("images and masks", [*images, *masks])
        assert batch_size is not None
        return batch_size, size

    def _mix_targets(self, labels: Tensor, plan: MixPlan, device: torch.device) -> Tensor | SparseTargets:
        if self.targets == "sparse":
            lent = subclasses.plain(labels)[plan.partner.to(labels.device)]
            return SparseTargets(labels, subclasses.like(lent, labels), plan.weight.to(labels.device))
        return mix_labels(
            labels,
            plan,
            num_classes=self.num_classes,
            label_smoothing=self.label_smoothing,
            # A backend asked for the images may not exist where the labels are.
            backend=self.backend if labels.device.type == device.type else None,
        )

    def _mix_image(self, x: Tensor, plan: MixPlan) -> Tensor:
        view = dims.last(subclasses.plain(x), self.axes)
        if self.inplace:
            mix_(view, plan, backend=self.backend)
            return x
        return subclasses.like(dims.back(mix(view, plan, backend=self.backend), self.axes), x)

    def _mix_mask(self, masks: Tensor, plan: MixPlan) -> Tensor:
        mixed = mix_masks(
            subclasses.plain(masks), plan, num_classes=self.mask_classes, ignore_index=self.mask_ignore_index
        )
        if self.inplace and mixed.shape == masks.shape and mixed.dtype == masks.dtype:
            subclasses.plain(masks).copy_(mixed)
            return masks
        return subclasses.like(mixed, masks)


class _Method(MixTransform):
    """A module of one method, by the authors' code or by the paper where the two differ."""

    lam_range: tuple[float, float] | None
    variant: VariantName

    _formulas: ClassVar[dict[str, Method]]  # by variant
    _in_sets: ClassVar[bool] = True  # whether RandomMix may hold it

    _default_variant: ClassVar[VariantName] = "released"

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        alpha: float = 1.0,
        ratio: float = 1.0,
        lam: float = math.nan,
        **columns: float,  # of the spec, by name
    ) -> None:
        spec = spec_row(
            self._formulas[self._default_variant],
            alpha=checks.number("alpha", alpha, 0.0, open_low=True),
            lam=lam,
            ratio=checks.number("ratio", ratio, 0.0, 1.0),
            **columns,  # type: ignore[arg-type]
        )
        super().__init__(spec, options)

    def _take(self, given: Mapping[str, Any]) -> None:
        super()._take(given)
        self.__dict__["variant"] = given.get("variant") or self._default_variant
        self._spec[0, Column.METHOD] = self._formulas[self.variant]
        self._spec[0, Column.LAM_MIN], self._spec[0, Column.LAM_MAX] = self.lam_range or (0.0, 1.0)

    def _set_columns(self, **columns: float) -> None:
        """Sets columns of the spec, by name, and what is drawn for them."""
        for name, value in columns.items():
            self._spec[0, Column[name.upper()]] = value
        self._spec[0, Column.DRAWS] = drawn_for(self._spec[0].tolist())

    def _describe(self) -> dict[str, Any]:
        differ = len(set(self._formulas.values())) > 1
        return {
            **({"variant": self.variant} if differ else {}),
            **({"lam_range": self.lam_range} if self.lam_range is not None else {}),
        }


class _BetaMethod(_Method):
    """A method whose λ is drawn."""

    @property
    def alpha(self) -> float:
        """α of λ ~ Beta(α, α). May be changed between steps, compiled ones too; 0 switches mixing off (λ = 1)."""
        return float(self._spec[0, Column.ALPHA])

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._spec[0, Column.ALPHA] = checks.number("alpha", value, 0.0)

    def _describe(self) -> dict[str, Any]:
        return {"alpha": self.alpha, **super()._describe()}


@spelled_out
class MixUp(_BetaMethod):
    """Mixup: M = λ everywhere, label weight λ (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018).

    With its defaults it is torchvision.transforms.v2.MixUp, draw for draw.

    Args:
        alpha: α > 0 of λ ~ Beta(α, α).
        **options: see `Options`.
    """

    _formulas = {"released": Method.MIXUP, "paper": Method.MIXUP}  # noqa: RUF012

    def __init__(self, *, alpha: float = 1.0, **options: Unpack[Options]) -> None:
        super().__init__(options, alpha=alpha)


_PLACEMENTS = ("clip", "inside")


class _BoxMethod(_BetaMethod):
    """A method whose masks are boxes."""

    def __init__(self, options: Mapping[str, Any], *, placement: str, aspect: Any, **columns: float) -> None:
        super().__init__(options, inside=_inside(placement), **_aspects(aspect), **columns)

    @property
    def placement(self) -> str:
        """Where boxes are, "clip" or "inside". May be changed between steps, compiled ones too."""
        return _PLACEMENTS[int(self._spec[0, Column.INSIDE])]

    @placement.setter
    def placement(self, value: str) -> None:
        inside = _inside(value)
        _check_alone(getattr(self, "minmax", None), placement=value, aspect=self.aspect)
        self._set_columns(inside=inside)

    @property
    def aspect(self) -> tuple[float, float] | None:
        """The range of a box's width/height; None: that of the image. May be changed between steps, compiled ones
        too."""
        low, high = self._spec[0, [Column.ASPECT_LOW, Column.ASPECT_HIGH]].tolist()
        return (low, high) if high else None

    @aspect.setter
    def aspect(self, value: tuple[float, float] | None) -> None:
        columns = _aspects(value)
        _check_alone(getattr(self, "minmax", None), placement=self.placement, aspect=value)
        self._set_columns(**columns)

    def _describe(self) -> dict[str, Any]:
        placed = {"placement": self.placement} if self.placement != "clip" else {}
        return {**super()._describe(), **placed, **({"aspect": self.aspect} if self.aspect else {})}


def _inside(placement: Any) -> float:
    return float(_PLACEMENTS.index(checks.choice("placement", placement, _PLACEMENTS)))


def _aspects(aspect: Any) -> dict[str, float]:
    """The columns of a range of width/height."""
    if aspect is None:
        return {"aspect_low": 0.0, "aspect_high": 0.0}
    low, high = checks.interval("aspect", aspect, 1e-6, 1e6)
    return {"aspect_low": low, "aspect_high": high}


def _sides(minmax: Any, placement: str, aspect: Any) -> dict[str, float]:
    """The columns of sides that do not follow from λ, nor are drawn with it."""
    if minmax is None:
        return {"side_low": 0.0, "side_high": 0.0, "lam": math.nan}
    low, high = checks.interval("minmax", minmax)
    if low == high:
        raise ValueError(f"minmax must have low < high, but got {minmax!r}.")
    _check_alone(minmax, placement=placement, aspect=aspect)
    return {"side_low": low, "side_high": high, "lam": 0.0}


def _check_alone(minmax: Any, placement: str, aspect: Any) -> None:
    if minmax is not None and placement != "clip":
        raise ValueError(
            "minmax and placement exclude each other, for boxes whose sides are drawn always lie inside the image, but "
            f"got minmax={minmax!r} and placement={placement!r}."
        )
    if minmax is not None and aspect is not None:
        raise ValueError(
            "minmax and aspect exclude each other, for each side of a box is drawn for itself, but got "
            f"minmax={minmax!r} and aspect={aspect!r}."
        )


@spelled_out
class CutMix(_BoxMethod):
    """CutMix: a box of the partner, sides √(1-λ) of the image's, clipped to it; label weight 1 - area of the box
    (Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV 2019).

    With its defaults it is torchvision.transforms.v2.CutMix, draw for draw. The label weight is not Beta(α, α):
    clipping makes boxes smaller, and at α=1 it averages .68 on 224x224 images. With placement="inside" it is λ, but for
    the rounding of sides to pixels.

    Args:
        alpha: α > 0 of λ ~ Beta(α, α).
        placement: "clip": around a random pixel, and clipped to the image, as the authors' code has it. "inside": at a
            random place where the box is wholly inside, as the paper takes for granted where it says that a box holds
            1-λ of the image, and as Kornia draws it.
        aspect: (low, high), from 1e-6 to 1e6: width/height of the box in pixels is drawn between these, log-uniformly,
            and its area is as without. A box that would not fit the image spans it along one axis, and is as much
            longer or shorter along the other. Of the last two axes; signals of one axis have no width/height. None: the
            width/height of the image.
        minmax: (a, b), 0 <= a < b <= 1: each side is uniform in ⌊a·S⌋ to ⌊b·S⌋-1 pixels of the image's S, as with
            timm's cutmix_minmax, and the box lies wholly inside. λ is not drawn then, but is 1 - area of the box, so
            that alpha and lam_range do nothing, and placement and aspect may not be given. From a λ that is given to
            sample() the sides follow, as without minmax.
        **options: see `Options`.
    """

    _formulas = {"released": Method.CUTMIX, "paper": Method.CUTMIX}  # noqa: RUF012

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        placement: Literal["clip", "inside"] = "clip",
        aspect: tuple[float, float] | None = None,
        minmax: tuple[float, float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        sides = _sides(minmax, placement, aspect)
        super().__init__(options, alpha=alpha, placement=placement, aspect=aspect, **sides)

    @property
    def minmax(self) -> tuple[float, float] | None:
        """The shares of each side of the image between which the sides of boxes are drawn; None: they follow from λ.
        May be changed between steps, compiled ones too."""
        low, high = self._spec[0, [Column.SIDE_LOW, Column.SIDE_HIGH]].tolist()
        return (low, high) if high else None

    @minmax.setter
    def minmax(self, value: tuple[float, float] | None) -> None:
        self._set_columns(**_sides(value, self.placement, self.aspect))

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), **({"minmax": self.minmax} if self.minmax else {})}


@spelled_out
class HMix(_BoxMethod):
    """HMix: a CutMix box that does `ratio` of the mixing, and a Mixup around it that does the rest
    (Park et al., "A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022).

    variant="released": outside the box M = λ/(1-β), β the share of the clipped box, so the mean of every mask is λ, and
    so is the label weight. variant="paper": M = λ/(1-(1-λ)·ratio), label weight = the realised mean.

    Args:
        alpha: α > 0 of λ ~ Beta(α, α).
        ratio: r in [0, 1]; 0 is Mixup. The authors took .75 on ImageNet and .5 on CIFAR.
        ratio_alpha: γ > 0: r is drawn from Beta(γ, γ) with every mask, and `ratio` does nothing. None: r is `ratio`.
        placement: "clip": around a random pixel, and clipped to the image, as the authors' code has it. "inside": at a
            random place where the box is wholly inside.
        aspect: (low, high): width/height of the box, drawn between these as with CutMix; None: that of the image.
        **options: see `Options`.
    """

    _formulas = {"released": Method.HMIX_RELEASED, "paper": Method.HMIX_PAPER}  # noqa: RUF012

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        ratio: float = 0.75,
        ratio_alpha: float | None = None,
        placement: Literal["clip", "inside"] = "clip",
        aspect: tuple[float, float] | None = None,
        **options: Unpack[Options],
    ) -> None:
        gamma = _gamma(ratio_alpha)
        super().__init__(options, alpha=alpha, ratio=ratio, placement=placement, aspect=aspect, ratio_alpha=gamma)

    @property
    def ratio(self) -> float:
        """The share of the mixing that the box does. May be changed between steps, compiled ones too."""
        return float(self._spec[0, Column.RATIO])

    @ratio.setter
    def ratio(self, value: float) -> None:
        self._spec[0, Column.RATIO] = checks.number("ratio", value, 0.0, 1.0)

    @property
    def ratio_alpha(self) -> float | None:
        """γ of a ratio that is drawn from Beta(γ, γ); None: it is `ratio`. May be changed between steps, compiled ones
        too."""
        return float(self._spec[0, Column.RATIO_ALPHA]) or None

    @ratio_alpha.setter
    def ratio_alpha(self, value: float | None) -> None:
        self._set_columns(ratio_alpha=_gamma(value))

    def _describe(self) -> dict[str, Any]:
        gamma = self.ratio_alpha
        return {**({"ratio": self.ratio} if gamma is None else {"ratio_alpha": gamma}), **super()._describe()}


def _gamma(ratio_alpha: Any) -> float:
    """The column of the γ of a ratio that is drawn."""
    return 0.0 if ratio_alpha is None else checks.number("ratio_alpha", ratio_alpha, 0.0, open_low=True)


@spelled_out
class GMix(_BetaMethod):
    """GMix: a Gaussian around a random pixel in place of the box; label weight = the realised mean of the mask
    (Park et al., "A Unified Analysis of Mixed Sample Data Augmentation", NeurIPS 2022).

    variant="released": with s = min(λ, 1-λ) and g = exp(-π d²/(s·H·W)), M = g if λ < ½, else 1-g; no label weight then
    falls into about (.43, .57). variant="paper": M = 1 - exp(-π d²/(2(1-λ)·H·W)).

    Args:
        alpha: α > 0 of λ ~ Beta(α, α). The authors took 1 on ImageNet and .5 on CIFAR.
        **options: see `Options`.
    """

    _formulas = {"released": Method.GMIX_RELEASED, "paper": Method.GMIX_PAPER}  # noqa: RUF012

    def __init__(self, *, alpha: float = 1.0, **options: Unpack[Options]) -> None:
        super().__init__(options, alpha=alpha)


_SHAPES = {"disc": Method.SMOOTHMIX_DISC, "square": Method.SMOOTHMIX_SQUARE}


@spelled_out
class SmoothMix(_BetaMethod):
    """SmoothMix: a disc or a square of the partner around a random pixel, with an edge that falls off as a Gaussian;
    label weight = the realised mean of the mask (Lee et al., "SmoothMix: a Simple Yet Effective Data Augmentation to
    Train Robust Classifiers", CVPR Workshops 2020).

    M = 1 - exp(-e²/(2σ²)), e the distance to the shape, in 3 dims a ball or a cube. It is as large as makes the
    partner's share 1-λ where no border cuts it; where the edge alone is more, it is a point and σ smaller.

    The paper has no λ: it draws σ from U(¼, ½) of the width, around a point. Here λ says how much is mixed, as in every
    other method.

    Args:
        alpha: α > 0 of λ ~ Beta(α, α).
        shape: "disc" or "square"; fixed at construction.
        edge: σ in longest sides of the image, in (0, 1].
        **options: see `Options`.
    """

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        shape: Literal["disc", "square"] = "disc",
        edge: float = 0.1,
        **options: Unpack[Options],
    ) -> None:
        method = _SHAPES[checks.choice("shape", shape, allowed=tuple(_SHAPES))]
        self.__dict__["_formulas"] = dict.fromkeys(("released", "paper"), method)
        super().__init__(options, alpha=alpha, edge=checks.number("edge", edge, 0.0, 1.0, open_low=True))

    @property
    def shape(self) -> str:
        """What the edge is around, "disc" or "square"."""
        return next(name for name, method in _SHAPES.items() if method == self._spec[0, Column.METHOD])

    @property
    def edge(self) -> float:
        """σ of the edge, in longest sides of the image. May be changed between steps, compiled ones too."""
        return float(self._spec[0, Column.EDGE])

    @edge.setter
    def edge(self, value: float) -> None:
        self._spec[0, Column.EDGE] = checks.number("edge", value, 0.0, 1.0, open_low=True)

    def _describe(self) -> dict[str, Any]:
        return {"shape": self.shape, "edge": self.edge, **super()._describe()}


@spelled_out
class GridMix(_BetaMethod):
    """GridMix: a grid over the image, and each of its cells from the sample or from the partner (Baek, Bang, Shim,
    "GridMix: Strong regularization through local context mapping", Pattern Recognition 2021). Label weight = the
    realised mean of the mask.

    Of n cells ⌊λn⌋ or ⌈λn⌉ are the sample's, either with probability ½, and every choice of so many is equally likely.
    Pixel c of a side belongs to cell c·cells // side, so cells may differ by a pixel. With the patches of a vision
    transformer as cells, whole patches are mixed, as in TokenMix (Liu et al., ECCV 2022).

    Args:
        cells: how many cells there are along each spatial dim of the images, as (height, width): at least 1 and at most
            the side; fixed at construction. Up to 128 in all make the fastest masks: of more a bit for each is stored
            with the plan.
        alpha: α > 0 of λ ~ Beta(α, α).
        **options: see `Options`.

    Raises:
        ValueError: the images have another number of spatial dims than `cells`, or a side of fewer pixels than cells.
    """

    _formulas = {"released": Method.GRIDMIX, "paper": Method.GRIDMIX}  # noqa: RUF012

    def __init__(self, *, cells: Sequence[int], alpha: float = 1.0, **options: Unpack[Options]) -> None:
        counts = checks.sides("cells", cells)
        if math.prod(counts) > grid.MOST:
            raise ValueError(f"cells must be fewer than 2^31 in all, but got {counts}, which are {math.prod(counts)}.")
        z, y, x = (0,) * (3 - len(counts)) + counts
        super().__init__(options, alpha=alpha, cells_z=z, cells_y=y, cells_x=x)

    @property
    def cells(self) -> tuple[int, ...]:
        """How many cells there are along each spatial dim."""
        return grid.cells_of(self._spec[0].tolist())

    def _describe(self) -> dict[str, Any]:
        return {"cells": self.cells, **super()._describe()}


@spelled_out
class FMix(_BetaMethod):
    """FMix: the partner where a random low-frequency image is low; as many pixels as λ says, whatever their shape
    (Harris et al., "FMix: Enhancing Mixed Sample Data Augmentation", 2020). Label weight = the realised mean of the
    mask.

    The grey image is Fourier noise whose amplitude falls with the frequency f as f^-decay_power, drawn by Philox from a
    seed with every sampling. Its ⌊λS⌋ or ⌈λS⌉ largest pixels of S are the sample's, either with probability ½.

    variant="paper": isotropic masks. variant="released": those of the published code, which indexes the wrong axis of
    its noise, so that they hold only horizontal frequencies 0 and 1, and a row changes sides twice at most.

    Args:
        alpha: α > 0 of λ ~ Beta(α, α).
        decay_power: δ >= 0.
        max_soft: s in [0, ½]: around the edge the mask falls linearly from 1 to 0 over ⌊S·min(s, λ, 1-λ)⌋ pixels on
            either side, in the order of their grey values.
        reformulate: λ ~ Beta(α+1, α), and the label weight is 1: the loss uses the first label only.
        cutoff: the highest frequency of the "paper" variant, in cycles along the longest side: frequencies above it
            along an axis are left out on every backend. None: 32 from decay_power 3 on, where .018 % of the pixels of a
            224x224 mask differ from those of the whole spectrum; 256 below, the whole spectrum of up to 512 pixels. Any
            large number asks for the whole of it.
        **options: see `Options`.
    """

    _formulas = {"released": Method.FMIX_RELEASED, "paper": Method.FMIX_PAPER}  # noqa: RUF012
    _default_variant = "paper"

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        decay_power: float = 3.0,
        max_soft: float = 0.0,
        reformulate: bool = False,
        cutoff: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        decay_power = checks.number("decay_power", decay_power, 0.0, 100.0)
        most = default_cutoff(decay_power) if cutoff is None else checks.integer("cutoff", cutoff, 1)
        super().__init__(
            options,
            alpha=alpha,
            decay=decay_power,
            soft=checks.number("max_soft", max_soft, 0.0, 0.5),
            cutoff=float(most),
            reformulate=checks.boolean("reformulate", reformulate),
        )

    @property
    def decay_power(self) -> float:
        """δ: the amplitude of frequency f is f^-δ."""
        return float(self._spec[0, Column.DECAY])

    @property
    def max_soft(self) -> float:
        """The largest share of the pixels on either side of the edge over which the mask falls from 1 to 0."""
        return float(self._spec[0, Column.SOFT])

    @property
    def cutoff(self) -> int:
        """The highest frequency, in cycles along the longest side."""
        return int(self._spec[0, Column.CUTOFF])

    @property
    def reformulate(self) -> bool:
        """Whether λ ~ Beta(α+1, α) and the label weight is 1."""
        return bool(self._spec[0, Column.REFORMULATE])

    def _describe(self) -> dict[str, Any]:
        soft = {"max_soft": self.max_soft} if self.max_soft else {}
        cutoff = {"cutoff": self.cutoff} if self.cutoff != default_cutoff(self.decay_power) else {}
        swapped = {"reformulate": True} if self.reformulate else {}
        return {"decay_power": self.decay_power, **soft, **swapped, **cutoff, **super()._describe()}


@spelled_out
class SamplePairing(_Method):
    """SamplePairing: the mean of two images with the label of the first (Inoue, "Data Augmentation by Pairing Samples
    for Images Classification", 2018). λ = ½ is fixed and the label weight is 1.

    Args:
        **options: see `Options`.
    """

    _formulas = {"released": Method.SAMPLE_PAIRING, "paper": Method.SAMPLE_PAIRING}  # noqa: RUF012

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(options, lam=0.5)


@spelled_out
class RandomMix(MixTransform):
    """One of several methods, drawn for every batch (or pair, or sample): Stochastic Mixup & CutMix (Park 2022) and
    every other weighted set.

    With per="batch" it draws as torchvision.transforms.v2.RandomChoice does, then as the method chosen does.

    Args:
        methods: modules of this package (not RandomMix). α, ratio, variant, lam_range and p are each method's own, and
            may be set later. What belongs to the whole batch (num_classes, pairing, per, label_smoothing, ...) is the
            RandomMix's; a keyword not given here is taken from the methods that were given it, and these must agree.
        weights: a non-negative weight for each method; None: equal weights. (torchvision's RandomChoice calls it p,
            which is the probability of mixing at all here.)
        **options: see `Options`.

    Raises:
        ValueError: methods disagree about the batch; weights do not fit.
        TypeError: something in methods is not a mixing module.
    """

    def __init__(
        self,
        methods: Sequence[MixTransform],
        weights: Sequence[float] | None = None,
        **options: Unpack[BatchOptions],
    ) -> None:
        if not isinstance(methods, (list, tuple, nn.ModuleList)):
            raise TypeError(f"methods must be a list or tuple of mixing modules, but got {type(methods).__name__}.")
        if not methods:
            raise ValueError("methods must hold at least one mixing module, but got none.")
        for i, method in enumerate(methods):
            if not isinstance(method, _Method) or not method._in_sets:
                *names, last = (name for name in __all__ if issubclass(globals()[name], _Method))
                raise TypeError(
                    f"methods[{i}] must be a {', '.join(names)} or {last} of fusedmix, but got {_named(method)}"
                )
        for keyword, value in options.items():
            if keyword in ("lam_range", "variant"):
                raise ValueError(f"{keyword} belongs to a method of RandomMix, but got {keyword}={value!r}.")
        shares = _shares(weights, len(methods))
        super().__init__(torch.cat([method._spec for method in methods]), _agreed(methods, options))
        self._methods = nn.ModuleList(methods)
        self._shares = torch.tensor(shares, dtype=torch.float64, device=CPU)
        for method in methods:
            method._member = True

    @property
    def methods(self) -> tuple[_Method, ...]:
        """The methods; fixed at construction."""
        return tuple(self._methods)  # type: ignore[arg-type]

    @property
    def weights(self) -> tuple[float, ...]:
        """The probability of each method. May be changed between steps, compiled ones too: any weights, which are
        divided by their sum."""
        return tuple(self._shares.tolist())

    @weights.setter
    def weights(self, weights: Sequence[float] | None) -> None:
        self._shares[:] = torch.tensor(_shares(weights, len(self._shares)), dtype=torch.float64, device=CPU)

    def __setstate__(self, state: dict[str, Any]) -> None:
        modules = state["_modules"]
        if "methods" in modules:  # was pickled when the list was public, and could be added to
            state = {**state, "_modules": {"_methods": modules["methods"]}}
        super().__setstate__(state)

    def _take(self, given: Mapping[str, Any]) -> None:
        p = given.get("p")
        if isinstance(p, (Sequence, Tensor)) and not isinstance(p, str):
            raise TypeError(
                f"p must be a number, the probability of mixing at all, but got {p!r}. Those of the methods are called "
                "weights: RandomMix(methods, weights=[0.3, 0.7])."
            )
        super()._take(given)

    def _current_spec(self) -> Tensor:
        methods = self.methods
        spec = torch.cat([method._spec for method in methods])  # anew: a schedule may have changed an α or a p
        spec[:, Column.WEIGHT] = self._shares
        spec[:, Column.P] *= self._spec[:, Column.P]  # each `enabled` or not, and so is the set
        for row, method in enumerate(methods):
            # Of one row, not of one number: to the GPU torch 2.11 would bring that.
            spec[row : row + 1, Column.P] *= method.p
        return spec

    def _describe(self) -> dict[str, Any]:
        return {"weights": list(self.weights)}


def _shares(weights: Any, n: int) -> list[float]:
    """The weights, divided by their sum as v2.RandomChoice divides them."""
    if weights is None:
        weights = [1.0] * n
    if not isinstance(weights, Sequence) or isinstance(weights, str):
        raise TypeError(f"weights must be a sequence of numbers or None, but got {weights!r}.")
    if len(weights) != n:
        raise ValueError(f"weights must have one number for each of the {n} methods, but got {len(weights)}.")
    for i, weight in enumerate(weights):
        checks.number(f"weights[{i}]", weight, 0.0)
    if not 0 < sum(weights) < math.inf:
        raise ValueError(f"weights must have a positive, finite sum, but got {list(weights)!r}.")
    return [weight / sum(weights) for weight in weights]


def _agreed(methods: Sequence[MixTransform], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a RandomMix: its own, and what its methods were given and agree on."""
    agreed = dict(options)
    for key in DEFAULTS.keys() - options.keys() - set(_OF_METHOD):
        values = [method._options[key] for method in methods if key in method._options]
        if any(value is not values[0] and value != values[0] for value in values):
            raise ValueError(
                f"The methods of RandomMix disagree about {key}: got {values!r}. Pass {key}= to RandomMix."
            )
        if values:
            agreed[key] = values[0]
    generators = [method.generator for method in methods if method.generator is not None]
    if generators and "generator" not in options:
        if any(generator is not generators[0] for generator in generators):
            raise ValueError(f"The methods of RandomMix disagree about generator: got {generators!r}. Pass generator=.")
        agreed["generator"] = generators[0]
    return agreed


def _classes(labels: Tensor | None, batch_size: int, pairing: str) -> Tensor:
    """(B,) int64 classes for pairing by class."""
    if labels is None:
        raise ValueError(f"labels must be given for pairing={pairing!r}, but got None.")
    labels = subclasses.plain(checks.labels(labels, None))
    if labels.shape[0] != batch_size:
        raise ValueError(f"labels must have one entry for each of {batch_size} samples, but got {labels.shape[0]}.")
    if labels.is_meta:
        raise ValueError(f"labels must have values for pairing={pairing!r}, but got a tensor on the meta device.")
    if labels.ndim == 1:
        return labels.long()
    return (labels if labels.is_floating_point() else labels.long()).argmax(1)


def mixing_module(name: str, x: Any) -> MixTransform:
    """`x`, if it is a mixing module."""
    if not isinstance(x, MixTransform):
        raise TypeError(f"{name} must be a mixing module such as fusedmix.MixUp(), but got {_named(x)}")
    return x


def _named(x: Any) -> str:
    """What came where a module of this package is wanted, and which to take if another library has one of that name."""
    if isinstance(x, type) and issubclass(x, MixTransform):
        return f"the class {x.__name__}. Make a module of it: fusedmix.{x.__name__}()."
    name = type(x).__name__
    near = next((kind.__name__ for kind in (MixUp, CutMix, FMix) if kind.__name__.lower() in name.lower()), None)
    if near is None or isinstance(x, MixTransform):
        return f"{name}."
    return f"{type(x).__module__}.{name}. Take fusedmix.{near} in its place."


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()

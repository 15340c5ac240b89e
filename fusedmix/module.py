"""The base of the mixing modules: handles a batch, whatever the methods are."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from fusedmix import backends, checks, detection, dims, erasing, partners, sample_tree, step
from fusedmix import options as keywords
from fusedmix.arguments import PlanTensors
from fusedmix.backends import reference, triton
from fusedmix.checkpointing import check_rewinds, recorded
from fusedmix.draws import CPU, Request, Source, moved
from fusedmix.finishing import Finish
from fusedmix.lengths import checked_lengths, within
from fusedmix.masks import grid
from fusedmix.masks.family import padded
from fusedmix.methods import Column, Families, Method, Number, Pairing, Per
from fusedmix.mixing import finish, in_range, mix, mix_, mix_labels
from fusedmix.ops import GeneratorHandle, draw_on_host
from fusedmix.plan import MixPlan, SparseTargets, SparseTerms, given_partner, of_partners
from fusedmix.segmentation import check_masks, mix_masks, mix_masks_
from fusedmix.spec import families
from fusedmix.subclasses import like, plain
from fusedmix.terms import terms_of
from fusedmix.union import union_labels

_FLOAT32_MAX = torch.finfo(torch.float32).max
# What an operator is given that draws by itself, by `sampling`.
_TO_DRAW = {
    "host": Source(seed=None, drawn=None, partner=None),
    "device": Source(seed=torch.empty(0, dtype=torch.int64, device=CPU), drawn=None, partner=None),
}

_NATIVE = {"cpp": torch.ops.fusedmix_cpp, "cuda": torch.ops.fusedmix_cuda}


class MixTransform(checks.Checked, nn.Module):
    """Base of the mixing modules: takes a batch apart, samples a plan, applies it to images, masks and labels.

    Call it with a batch, in any structure torchvision v2 takes: `images, targets = mix(images, labels)`. It mixes in
    training and evaluation mode alike, as torchvision's transforms do, unless it is made with training_only=True.

    The keywords are attributes too. Setting one is checked as the keyword is, and acts from the next batch on; those
    that are fixed when a module is made say so. (DataLoader workers that already run have a copy of the module, in
    which only what a schedule sets changes.)
    """

    num_classes: int | None
    p: float
    label_smoothing: float
    sampling: keywords.SamplingName
    backend: keywords.BackendName | None
    targets: keywords.TargetsName
    # A module that was pickled when these were no keywords yet has the values that stand here.
    training_only: bool = False
    axes: tuple[int, ...] | None = None
    finish: Finish | None = None
    labels_getter: sample_tree.Getter | Literal["default"] | None
    images_getter: sample_tree.Getter | None
    inplace: bool
    mask_classes: int | None
    mask_ignore_index: int | None
    min_visible: float = 0.1

    _keywords: ClassVar[tuple[str, ...]] = tuple(keywords.DEFAULTS)  # the keywords of `Options` that the class takes
    _chooses: ClassVar[bool] = False  # whether the method of a batch is drawn, even if there is only one
    _chance: float = 1.0  # what `enabled` stands for: a schedule of the probability of mixing sets it
    _refines: bool = False  # whether `_refine` has to finish what the sampler has drawn
    _from_elsewhere: ClassVar[bool] = False  # whether that serves partners from another batch
    _gathers: ClassVar[bool] = False  # whether its plans mix out of place only
    _binary: ClassVar[bool] = False  # whether label maps can be mixed though its masks are not 0 or 1
    _takes_lengths: ClassVar[bool] = True  # whether its masks can be kept within the valid parts of samples
    _adjacent: bool = False  # whether two samples that stand side by side become one
    _member: bool = False  # whether the module is one of the methods of a RandomMix
    _generator: GeneratorHandle | None = None
    _spec: Tensor  # (methods, len(Column)) float64, which stays on the CPU wherever the module goes
    _warned: bool = False  # whether it has warned that boxes are empty
    _usual: bool  # whether the keywords allow the plain way (fusedmix/step.py)
    _usual_size: tuple[int, ...] | None = None  # a size of images that _check_size has found good
    _usual_row: tuple[Any, ...]  # what follows the size in the arguments of an operator on the plain way
    _plain_backends: dict[str, str]  # the backend of the plain way for each device type
    _grids: tuple[tuple[int, ...], ...] = ()  # the cells of each GridMix, which have to fit the images
    _large_grids: tuple[int, ...] = ()  # (z, y, x) of each grid so large that its cells are stored, one after the other

    def __init__(self, spec: Tensor, options: Mapping[str, Any]) -> None:
        super().__init__()
        for name in options:
            if name not in self._keywords:
                raise keywords.unknown_keyword(type(self), name)
        self._spec = spec
        self._one_method = spec.shape[0] == 1 and not self._chooses
        self._families = families(spec)
        self._constant, self._boxed = self._families.constant, self._families.boxed
        self._stored = self._families.stored
        self._soft = Families.LEVELS in self._families
        self._grids = tuple(grid.cells_of(row) for row in spec.tolist() if row[Column.METHOD] == Method.GRIDMIX)
        self._large_grids = sum((padded(cells) for cells in self._grids if math.prod(cells) > grid.CELLS), ())
        self._take(options)

    def _take(self, given: Mapping[str, Any]) -> None:
        """Sets the attributes to the keywords given and to the defaults of the rest, or raises and sets none."""
        given = keywords.checked(given)
        values = keywords.settled(given)
        if self._gathers:
            self._check_new(values)
        if values["backend"] != self.__dict__.get("backend", ...):
            backends.prepare(values["backend"])
        pairing, per = values.pop("pairing"), Per[values.pop("per").upper()]
        if pairing == "adjacent":
            self._check_adjacent(values)
        self._adjacent, self._per = pairing == "adjacent", per
        # What is drawn for adjacent samples is what is drawn for those of a formula.
        self._pairing = Pairing.ROLL if self._adjacent else Pairing[pairing.upper()]
        generator = values.pop("generator")
        if generator is not self.generator:
            self._generator = None if generator is None else GeneratorHandle(generator)
        # A generator is held once, by its handle, which knows how to be copied.
        self._options = {key: value for key, value in given.items() if key != "generator"}
        # Keywords are plain attributes, because these are read in no time. Whoever sets one comes through __setattr__.
        self.__dict__.update((name, values[name]) for name in self._keywords if name in values)
        self._prepare_plain_step()

    def _check_new(self, values: Mapping[str, Any]) -> None:
        for name in ("inplace", "finish"):
            if values[name]:
                raise ValueError(
                    f"{name} must be {keywords.DEFAULTS[name]} for {type(self).__name__}, which puts a new batch "
                    f"together from several samples, but got {values[name]!r}."
                )

    def _check_adjacent(self, values: Mapping[str, Any]) -> None:
        """Raises where two samples cannot become one."""
        name = type(self).__name__
        if self._gathers or (self._refines and not self._from_elsewhere):
            raise ValueError(
                f'pairing must not be "adjacent" for {name}, whose plans need all samples of a batch as partners.'
            )
        for keyword in ("inplace", "finish"):
            if values[keyword]:
                raise ValueError(
                    f'{keyword} must be {keywords.DEFAULTS[keyword]} with pairing="adjacent", of which a batch of half '
                    f"as many samples comes, but got {values[keyword]!r}."
                )

    def _prepare_plain_step(self) -> None:
        """Finds out once what every plain step needs to know of the module."""
        request = Request(self._spec, 0, (), self._pairing, self._per, self.p, lam=None, labels=None)
        self.__dict__["_usual"] = all(holds(self) for holds in step.PLAIN_MODULE)
        self.__dict__["_usual_row"] = _flat(request, _TO_DRAW[self.sampling])[3:]
        self.__dict__["_plain_backends"] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        spec = state["_spec"]  # of fewer columns, if it was pickled before there were so many
        missing = (0, len(Column) - spec.shape[1])
        super().__setstate__({**state, "_spec": torch.nn.functional.pad(spec, missing)} if missing[1] else state)
        self._prepare_plain_step()  # A module that was pickled before there was such a step has no values for it.

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._keywords and not isinstance(getattr(type(self), name, None), property):
            self._set_keyword(name, value)
        elif (error := keywords.missing_attribute(self, name)) is not None:
            raise error
        else:
            super().__setattr__(name, value)

    def _set_keyword(self, name: str, value: Any) -> None:
        if self._member and name not in keywords.OF_METHOD:
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
        partner: Tensor | None = None,
        other_size: int | None = None,
        device: torch.device | str | int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        lengths: Tensor | None = None,
    ) -> MixPlan:
        """Draws the plan of a batch. With training_only=True it mixes nothing (λ = 1) in evaluation mode.

        With pairing="adjacent" the plan is for the B/2 samples x[0::2], whose partners are other=x[1::2].

        Args:
            batch_size: B >= 0.
            size: 1 to 3 spatial sides in pixels, (L,), (H, W) or (D, H, W), each at least 1.
            lam: λ, given instead of drawn: a number, or a tensor () or (B,). In [0, 1] but for methods without a mask
                (MixUp, SamplePairing), for which any finite value extrapolates.
            labels: (B,) classes or (B, K), needed by pairing="cross_class" and "same_class" and ignored otherwise.
            partner: (B,) int64 in [0, B), given instead of found by `pairing`, all else being drawn as without: such as
                those of `fusedmix.pairing_by_distance`. A sample may be the partner of several others; then the plan
                mixes out of place only (`MixPlan.repeats`). Not with per="pair", whose pairs are those of "flip".
            other_size: N >= 1: the partners are of another batch of so many samples, all else being drawn as without.
                With pairing="roll" that of sample i is sample (i-1) mod N there, with "flip" (N-1-i) mod N; with
                "random" sample i mod N of a random permutation of the N (if N is B the batch's own; else one by a seed,
                which sampling="host" draws after all else). There are none by class, for that needs the labels of both
                batches. `partner` is in [0, N) then.
            device: where the plan's tensors are to be; None: on the CPU. A plan there serves batches on any device.
                It stays there for a device that has no float64 (MPS).
            generator: instead of the module's.
            seed: makes the draw a pure function of its arguments: an int in [-2^63, 2^64). With sampling="host" it is
                what torch.manual_seed(seed) followed by the draw would give (torch's CPU generator uses 32 bits of it).
            lengths: (B,) integers in [1, L], L the last of the sides: how many places of each sample are valid, the
                rest being padding. With n of the sample's and m = min(n, that of its partner), the mask is
                M(⌊t·L/m⌋) at place t < m and 1 behind, M being the mask that is drawn without lengths; the label weight
                is the mean of the mask over the n places. So nothing is mixed where either has padding. Not of methods
                whose plans are more than masks in [0, 1], nor with other_size.

        Raises:
            TypeError, ValueError: an argument is of the wrong type, shape or range.
            RuntimeError: sampling="host" while a CUDA graph is captured, which would freeze the draw into the graph.
        """
        valid = None if lengths is None else self._check_lengths(lengths, batch_size, size, other_size)
        if self._adjacent:
            plan = self._sample_adjacent(batch_size, size, lam, labels, partner, other_size, device, generator, seed)
        else:
            plan = self._sample(batch_size, size, lam, labels, partner, other_size, device, generator, seed)
        if valid is None:
            return plan
        valid = moved(valid, plan.device)
        return within(plan, *((valid[::2], valid[1::2]) if self._adjacent else (valid, valid[plan.partner])))

    def _sample_adjacent(
        self,
        batch_size: int,
        size: Sequence[int],
        lam: float | Tensor | None,
        labels: Tensor | None,
        partner: Tensor | None,
        other_size: int | None,
        *source: Any,
    ) -> MixPlan:
        for name, x in (("partner", partner), ("other_size", other_size)):
            if x is not None:
                raise ValueError(f'{name} must be None with pairing="adjacent", which says who the partners are.')
        half = self._half(checks.integer("batch_size", batch_size, 0))
        plan = self._sample(half, size, lam, labels, None, None, *source)
        each = torch.arange(half, device=plan.device)
        return replace(plan, partner=each, pairing=Pairing.RANDOM, other_size=half)

    def _half(self, batch_size: int) -> int:
        if batch_size % 2:
            raise ValueError(
                'The batch size must be even with pairing="adjacent", which makes one sample of the samples 2i and '
                f"2i + 1, but is {batch_size}."
            )
        return batch_size // 2

    @property
    def _has_lengths(self) -> bool:
        """Whether `lengths` may be given: a module whose plans are more than masks is handed something else, if any."""
        return self._takes_lengths and not self._gathers

    def _check_lengths(self, x: Any, batch_size: int, size: Sequence[int], other_size: int | None) -> Tensor:
        """The lengths of samples, if the masks of a plan can be kept within them."""
        if not self._has_lengths:
            raise ValueError(f"lengths must be None for {type(self).__name__}, whose plans are more than masks.")
        if other_size is not None:
            raise ValueError("lengths must be None with partners from another batch, whose lengths nobody knows.")
        longest = checks.sides("size", size, stored=True)[-1]
        return checked_lengths("lengths", x, checks.integer("batch_size", batch_size, 0), longest)

    def _sample(
        self,
        batch_size: int,
        size: Sequence[int],
        lam: float | Tensor | None = None,
        labels: Tensor | None = None,
        partner: Tensor | None = None,
        other_size: int | None = None,
        device: torch.device | str | int | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        extra: Any = None,
    ) -> MixPlan:
        """As `sample`. `extra`: what `_refine` is handed."""
        batch_size = checks.integer("batch_size", batch_size, 0)
        size = checks.sides("size", size, stored=self._stored)
        given = self._check_lam(lam, batch_size)
        handle, seed = self._check_source(generator, seed)
        where = CPU if device is None else _with_float64(checks.device("device", device))
        if other_size is not None:
            other_size = self._check_other_size(other_size, partner)
        given_partners = None if partner is None else self._check_partner(partner, batch_size, where, other_size)
        if (
            given_partners is not None and labels is None and self._pairing.by_class
        ):  # Nobody looks for partners by them.
            labels = torch.zeros(batch_size, dtype=torch.int64, device=CPU)
        classes = self._classes(labels, batch_size)
        if self._off():
            given, seed, handle = torch.ones((), device=CPU), 0, None  # Nobody's generator is moved.
        request = self._request(batch_size, size, given, classes)
        make = functools.partial(self._make_plan, request, handle, seed, where, given_partners, other_size, extra)
        return make() if torch.compiler.is_compiling() else recorded(make, rewinds=seed is not None or handle is None)

    def _make_plan(
        self,
        request: Request,
        handle: GeneratorHandle | None,
        seed: int | None,
        where: torch.device,
        given_partners: tuple[Tensor, bool] | None,
        other_size: int | None,
        extra: Any,
    ) -> MixPlan:
        source = self._draw(request, handle, seed, where)
        made_on = source.made_on(where)
        drawn: PlanTensors = self._operators(made_on).sample(*_placed(request, source, made_on), made_on)
        plan = MixPlan(*drawn, request.size, self._families, self._pairing, request.realised_per)
        own = None  # a seed for what the sampler does not draw
        finishes = self.finish is not None and self.finish.is_random and len(request.size) == 2
        permutes = request.pairing == Pairing.RANDOM and other_size not in (None, request.batch_size)
        if self._refines or finishes or (permutes and given_partners is None):
            own = self._own_seed(request, source, handle, seed)
        if own is not None and self.finish is not None and self.finish.is_random:
            plan = replace(plan, draws=self._draw_finish(request, own))
        if made_on != where or plan.draws is not None:
            plan = plan.to(where, non_blocking=True)
        if given_partners is not None:
            partner, repeats = given_partners
            plan = replace(plan, partner=partner, pairing=Pairing.RANDOM, repeats=repeats, other_size=other_size)
        elif other_size is not None:
            plan = _from_another(plan, other_size, own)
        if plan.stored:
            plan = self._with_pixels(plan, request.spec, source, where)
        if self._refines:
            assert own is not None
            plan = self._refine(plan, request, moved(own, plan.device), extra)
        return plan

    def _refine(self, plan: MixPlan, request: Request, seed: Tensor, extra: Any) -> MixPlan:
        """The plan of a method that no sampler knows, of what one has drawn for it.

        Args:
            plan: what was drawn.
            request: what was asked for.
            seed: () int64 beside the plan, for what else is to be drawn, by Philox.
            extra: what the caller of `_sample` knows.
        """
        raise NotImplementedError

    def _own_seed(self, request: Request, source: Source, handle: GeneratorHandle | None, seed: int | None) -> Tensor:
        """The seed of the plan; if its numbers were drawn on the host, one drawn after them."""
        if source.seed is not None:
            return source.seed
        if seed is not None:
            return torch.ops.fusedmix.seed_after(*request, seed)
        return torch.ops.fusedmix.draw_seed(0 if handle is None else handle.key, device=CPU)

    def _draw_finish(self, request: Request, own: Tensor) -> Tensor:
        """Flips and holes, of a seed."""
        assert self.finish is not None
        chances = erasing.chances(self.finish)
        if self._off():
            chances = chances._replace(flip=0.0, erase=0.0)
        of = torch.tensor(chances, dtype=torch.float64, device=CPU), int(chances.most)
        where = own.device
        return self._operators(where).draw_finish(*of, own, request.batch_size, *request.size, where)

    def _with_pixels(self, plan: MixPlan, spec: Tensor, source: Source, where: torch.device) -> MixPlan:
        """The plan with the masks that are stored: they are made where they are wanted, whoever drew the numbers."""
        noise = source.seed if source.drawn is None else source.drawn[:1, Number.NOISE].long()
        assert noise is not None
        noise = noise if noise.device.type == "cpu" else moved(noise, where)
        pixels, weight, rows = None, plan.weight, (plan.size, int(plan.per), int(self._per))
        if self._families & (Families.STORED | Families.LEVELS):
            pixels = self._operators(where).fourier(spec, plan.masks, noise, *rows, self._soft)
        if self._large_grids:
            store = torch.ops.fusedmix.store_grids
            pixels, weight = store(plan.masks, weight, noise, pixels, self._large_grids, *rows)
        return replace(plan, pixels=pixels, weight=weight)

    def forward(self, *inputs: Any, other: Any = None, lengths: Tensor | None = None) -> Any:
        """Mixes a batch of any structure and returns it in the same structure, the labels replaced by mixed ones.

        With training_only=True a batch is returned as it is in evaluation mode, its labels too. With pairing="adjacent"
        images, masks and labels come back of half as many samples, and all else as it was.

        A batch of a detector is (images, targets), where images are a tensor (B, C, H, W) or a list of tensors of one
        shape (C, H, W), and targets a list with a dict for each: "boxes", (n, 4) corners or BoundingBoxes, and "labels"
        (n,); perhaps "masks" (n, H, W), "keypoints" (n, K, 2 or 3), "iscrowd" and "area" (n,). They are mixed as
        `mix_boxes`, `mix_instances` and `mix_keypoints` do, and get "weights" (n,) float32, which are multiplied with
        those that are there; areas are computed anew. What else a target has, such as "image_id", stays.

        Args:
            *inputs: the batch, as one argument or several.
            other: another batch, that the partners are from, of the structure of the first and as many stacks of images
                and of masks, each of the dtype, the device and the shape of a sample there; with labels of the same
                kind if the first has labels. It may have any number N >= 1 of samples, which are paired as
                `sample(other_size=N)` says, and stays as it is. None: partners are from the batch itself.
            lengths: (B,) valid lengths of samples that are padded to one length, along the last dim that masks extend
                over, as in `sample`. None: there is no padding.

        Raises:
            TypeError, ValueError: the batch cannot be mixed as it is; nothing has been drawn or written then.
        """
        return self._mix_batch(inputs, lengths, other)

    def _mix_batch(self, inputs: tuple[Any, ...], extra: Any = None, other: Any = None) -> Any:
        """As `forward`. `extra`: what `_plan_of` is handed."""
        if not inputs:
            raise TypeError(f"{type(self).__name__}() must be called with a batch, but got no arguments.")
        sample = inputs if len(inputs) > 1 else inputs[0]
        if self._off() and self.finish is None:
            return sample
        if self._usual and other is None and extra is None and not torch.compiler.is_compiling():
            mixed = self._plain_step(sample)
            if mixed is not None:
                return mixed
        parsed = detection.parse(sample, self.inplace) or sample_tree.parse(
            sample, type(self).__name__, self.labels_getter, self.images_getter, self.axes
        )
        if parsed.labels is not None:
            self._check_labels(parsed.labels)
        size = self._check_images(parsed)
        lent = None if other is None else self._parse_other(other, parsed)
        if self._off():
            how = self.finish
            assert how is not None
            sample_tree.map_once(lambda x: finish(x, how, backend=self.backend), parsed.leaves, parsed.images)
            return parsed.rebuild(parsed.leaves)
        # Where no backend serves the images this raises: now, and not when something has been drawn.
        operators = backends.operators(parsed.image.device.type, self.backend)
        if self._adjacent:
            if other is not None:
                raise ValueError('other must be None with pairing="adjacent", which says who the partners are.')
            self._half(parsed.image.shape[0])
            parsed, lent = sample_tree.halves(parsed)
        if lent is None and extra is None and step.goes_in_one_call(self, parsed):
            self._mix_in_one_call(parsed, size, operators)
        else:
            self._mix_by_plan(parsed, size, extra, lent)
        return parsed.rebuild(parsed.leaves)

    def _plain_step(self, sample: Any) -> Any:
        """The batch, mixed the plain way (fusedmix/step.py); None where it has to go another."""
        if not sample_tree.is_pair(sample):
            return None
        x, y = sample
        if x is y:
            return None
        device_type = "cpu" if x.is_cpu else x.device.type
        name = self._plain_backends.get(device_type)
        if name is None:
            name = self._plain_backends[device_type] = backends.choose(device_type, self.backend)
        try:
            for holds in step.PLAIN[name]:
                if not holds(self, x, y):
                    return None
            shape, classes = x.shape, self.num_classes or y.shape[1]
            batch_size, size = shape[0], shape[2:]
            operators = _NATIVE.get(name)
            if operators is not None:
                if size != self._usual_size:
                    self._check_size(tuple(size))
                    self._usual_size = size if min(size) > 2 else None
                row = self._current_spec(), batch_size, size, *self._usual_row
                return type(sample)(self._operate(operators, x, y, row, classes))
            request, last = self._request(batch_size, tuple(size)), (classes, self.label_smoothing, self.inplace)
            if name == "reference":
                return type(sample)(reference.plain_step(x, y, request, *last))
            return type(sample)(triton.plain_step(x, y, request, _TO_DRAW[self.sampling], *last))
        except (RuntimeError, ValueError):
            # A nested tensor has no shape; or the operator refused the batch (which error that is depends on torch's
            # version), or it is not loaded where the module was unpickled.
            return None

    def _mix_in_one_call(self, parsed: sample_tree.Sample, size: tuple[int, ...], operators: Any) -> None:
        """Mixes the one stack of images and the labels by an operator that draws, too."""
        image, labels = parsed.image, parsed.labels
        assert labels is not None
        x, y = dims.last(plain(image), self.axes), plain(labels)
        request = self._request(x.shape[0], size, classes=self._classes(labels, x.shape[0]))
        if not torch.compiler.is_compiling():
            check_rewinds(self._generator is None)
        source = self._draw(request, self._generator, None, x.device)
        num_classes = self.num_classes or labels.shape[1]
        if torch.compiler.is_compiling():
            y = in_range(y, num_classes)
        row = _placed(request, source, source.made_on(_with_float64(x.device)))
        mixed, targets = self._operate(operators, x, y, row, num_classes)
        if not self.inplace:
            parsed.leaves[parsed.images[0]] = like(dims.back(mixed, self.axes), image)
        parsed.leaves[parsed.labels_index] = like(targets, labels)

    def _mix_by_plan(
        self, parsed: sample_tree.Sample, size: tuple[int, ...], extra: Any, lent: sample_tree.Sample | None
    ) -> None:
        """Mixes all images, masks and labels by a plan, with those that are `lent` by another batch."""
        leaves, labels, image = parsed.leaves, parsed.labels, parsed.image
        if extra is not None and self._has_lengths:
            sizes = {self._spatial_size(leaves[i]) for i in parsed.images}
            if len(sizes) > 1:
                raise ValueError(f"Images mixed within lengths must have one spatial size, but got {sorted(sizes)}.")
        where = self._plan_device(image)
        others: dict[int, Tensor] = {}  # by the identity of what they are mixed with
        if lent is None:
            plan = self._plan_of(image, size, labels, where, extra)
        else:
            of = (2 * image.shape[0], None) if self._adjacent else (image.shape[0], lent.image.shape[0])
            plan = self.sample(of[0], size, labels=labels, other_size=of[1], device=where, lengths=extra)
            for ours, theirs in ((parsed.images, lent.images), (parsed.masks, lent.masks)):
                others |= {id(leaves[i]): lent.leaves[j] for i, j in zip(ours, theirs, strict=True)}
        # Labels go first: they may still turn out to be out of range, and then no image may have been overwritten.
        if labels is not None:
            of_other = None if lent is None else lent.labels
            leaves[parsed.labels_index] = self._mix_targets(labels, plan, image.device, of_other)
        if parsed.targets is not None:
            leaves[parsed.targets] = detection.mixed(leaves[parsed.targets], plan, self.min_visible)
        sample_tree.map_once(lambda x: self._mix_mask(x, plan, others.get(id(x))), leaves, parsed.masks)
        sample_tree.map_once(lambda x: self._mix_image(x, plan, others.get(id(x))), leaves, parsed.images)

    def _plan_device(self, image: Tensor) -> torch.device | None:
        """Where the plan of a batch is to be made: numbers drawn on the host travel with the launch, and FMix's masks
        are made where they are used."""
        beside = self.sampling == "device" or self._stored or self._refines
        return image.device if beside else None

    def _mix_with(self, images: Tensor, labels: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        """Images and targets by a plan for which `sample` is `given` more. All is checked before anything is drawn."""
        pair = checks.tensor("images", images), checks.tensor("labels", labels)
        self._check_labels(labels)
        size = self._check_images(sample_tree.parse(pair, type(self).__name__, "default", None, self.axes))
        plan = self.sample(images.shape[0], size, labels=labels, device=self._plan_device(images), **given)
        targets = self._mix_targets(labels, plan, images.device)
        return self._mix_image(images, plan, None), cast(Tensor, targets)

    def _plan_of(
        self, image: Tensor, size: tuple[int, ...], labels: Tensor | None, device: torch.device | None, extra: Any
    ) -> MixPlan:
        """The plan of a batch that has been checked. `extra`: lengths, or what a module takes in their place."""
        return self.sample(image.shape[0], size, labels=labels, device=device, lengths=extra)

    def _operate(
        self, operators: Any, x: Tensor, y: Tensor, row: tuple[Any, ...], num_classes: int
    ) -> tuple[Tensor, Tensor]:
        """Images and targets by an operator, which is given a request and its source as a `row`."""
        if not self.inplace:
            return operators.mix_batch.default(x, y, *row, num_classes, self.label_smoothing)[:2]
        targets = operators.mix_batch_.default(x, y, *row, num_classes, self.label_smoothing)[0]
        torch.autograd.graph.increment_version(x)
        return x, targets

    def _off(self) -> bool:
        """Whether nothing is mixed because the module is in evaluation mode."""
        return self.training_only and not self.training

    @property
    def pairing(self) -> keywords.PairingName:
        """How partners are found; fixed at construction."""
        return "adjacent" if self._adjacent else cast(keywords.PairingName, self._pairing.name.lower())

    @property
    def per(self) -> keywords.PerName:
        """How many draws a batch gets; fixed at construction."""
        return cast(keywords.PerName, self._per.name.lower())

    @property
    def enabled(self) -> bool:
        """Whether batches are mixed. May be changed between steps, compiled ones too: False leaves every batch as it
        is (λ = 1), whatever α, p and the method are."""
        return bool((self._spec[:, Column.P] > 0).any())

    @enabled.setter
    def enabled(self, value: bool) -> None:
        # This is a number in the spec, as α is, because a flag of Python would be a guard of every compiled step.
        self._spec[:, Column.P] = self._chance * checks.boolean("enabled", value)

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
            if key not in ("lam_range", "variant") and getattr(self, key) != keywords.DEFAULTS[key]
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

    def _request(
        self, batch_size: int, size: tuple[int, ...], lam: Tensor | None = None, classes: Tensor | None = None
    ) -> Request:
        self._check_size(size)
        return Request(self._current_spec(), batch_size, size, self._pairing, self._per, self.p, lam, classes)

    def _check_size(self, size: tuple[int, ...]) -> None:
        """Raises where a grid does not fit images of a size, and warns where boxes are empty on them."""
        for cells in self._grids:
            checks.fits("cells", cells, size)
        if not self._boxed or self._warned or torch.compiler.is_compiling() or min(size) > 2:
            return
        rows = [row for row in self._current_spec().tolist() if Families(int(row[Column.FAMILIES])).boxed]
        # Sides that are drawn, or lie inside, are rounded down but once.
        if all(row[Column.INSIDE] or row[Column.SIDE_HIGH] for row in rows):
            return
        warnings.warn(
            f"Boxes are empty on images whose masks have the sides {size}: half a box's side is rounded down, as "
            "torchvision does it, which is 0 on a side of 1 or 2 pixels unless 1-λ rounds to 1. CutMix leaves such "
            "batches as they are, and HMix only blends them. Pass signals (B, C, 1, L) as (B, C, L), by "
            "squeeze(2), or give the module axes=(-1,).",
            stacklevel=4,
        )
        self._warned = True

    def _draw(self, request: Request, handle: GeneratorHandle | None, seed: int | None, device: torch.device) -> Source:
        """The randomness of one batch: numbers from the host's generator, or a seed for a device."""
        if device.type == "meta" and (self.sampling == "device" or self._stored):
            raise ValueError(
                f"{type(self).__name__} draws on the device of the images, but the meta device has no values."
            )
        if self.sampling == "host":
            if not torch.compiler.is_compiling() and step.capturing():
                raise RuntimeError(
                    f'{type(self).__name__}(sampling="host") cannot be captured in a CUDA graph: every replay would '
                    'repeat the one draw. Construct it with sampling="device".'
                )
            return draw_on_host(request, handle, seed)
        if seed is not None:
            return Source(torch.tensor(seed, dtype=torch.int64, device=CPU), None, None)
        return Source(step.drawn_seed(handle, device), None, None)

    def _check_source(
        self, generator: torch.Generator | None, seed: int | None
    ) -> tuple[GeneratorHandle | None, int | None]:
        """What `sample` draws from, if it may: a generator, its own one or the module's, or a seed as an int64."""
        if generator is not None and seed is not None:
            raise ValueError("seed and generator exclude each other, but got both.")
        if seed is not None:
            seed = checks.integer("seed", seed, -(2**63), 2**64 - 1)
            seed = seed - 2**64 if seed >= 2**63 else seed  # These are the same 64 bits, read as an int64.
        keywords.check_generator("generator", generator, self.sampling)
        if generator is None:
            return self._generator, seed
        if torch.compiler.is_compiling():
            raise ValueError(
                "generator must be None inside torch.compile, which cannot put one into a graph; "
                "give it to the module: its own generator is found there."
            )
        return GeneratorHandle(generator), seed

    def _check_other_size(self, other_size: int, partner: Tensor | None) -> int:
        """How many samples another batch has, if partners can be found there."""
        name = type(self).__name__
        if self._refines and not self._from_elsewhere:
            raise ValueError(f"{name} takes no partners from another batch: other_size and other must be None.")
        if self.finish is not None:
            raise ValueError(f"other_size and other must be None for {name} with finish, which finishes one batch.")
        if partner is None and self._pairing.by_class:
            raise ValueError(
                f'pairing must be "roll", "flip" or "random" for partners from another batch, but is {self.pairing!r}, '
                "which would need the labels of both. Give partner= to sample() to choose them yourself."
            )
        return checks.integer("other_size", other_size, 1)

    def _check_partner(
        self, partner: Tensor, batch_size: int, where: torch.device, other_size: int | None
    ) -> tuple[Tensor, bool]:
        """Partners that are given, beside the plan, and whether they may repeat."""
        if self._per is Per.PAIR:
            raise ValueError(
                'partner must be None with per="pair", whose draws are those of the pairs of pairing="flip", but was '
                'given. Take per="batch" or per="sample".'
            )
        return given_partner(partner, batch_size, where, among=other_size)

    def _classes(self, labels: Tensor | None, batch_size: int) -> Tensor | None:
        """(B,) int64 classes, if partners are found by them."""
        if not self._pairing.by_class:
            return None
        if labels is None:
            raise ValueError(f"labels must be given for pairing={self.pairing!r}, but got None.")
        labels = plain(checks.labels(labels, None))
        if labels.shape[0] != batch_size:
            raise ValueError(f"labels must have one entry for each of {batch_size} samples, but got {labels.shape[0]}.")
        if labels.is_meta:
            raise ValueError(
                f"labels must have values for pairing={self.pairing!r}, but got a tensor on the meta device."
            )
        if labels.ndim == 1:
            return labels.long()
        return (labels if labels.is_floating_point() else labels.long()).argmax(1)

    def _check_lam(self, lam: Any, batch_size: int) -> Tensor | None:
        if lam is None:
            return None
        low, high = (-_FLOAT32_MAX, _FLOAT32_MAX) if self._constant else (0.0, 1.0)
        if isinstance(lam, Tensor):
            lam = plain(checks.dense("lam", lam))
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
        # Who passes a tensor of more dims has passed images alone, as a rule.
        if labels.ndim > 2 and not labels.is_nested and "labels_getter" in self._keywords:
            raise ValueError(
                "labels should be index based with shape (batch_size,) or probability based with shape (batch_size, "
                f"num_classes), but got a tensor of shape {tuple(labels.shape)} instead. If there are no labels in the "
                "batch, make the module with labels_getter=None."
            )
        if self.targets != "sparse":
            classes: int | None = checks.dense_labels(labels, self.num_classes)
        else:
            checks.labels(labels, self.num_classes)
            classes = self.num_classes
        if labels.ndim == 1 and classes is not None:
            checks.class_range(labels, classes)

    def _check_images(self, parsed: sample_tree.Sample) -> tuple[int, ...]:
        """Raises unless images and masks fit each other and the labels; the spatial size."""
        images = [parsed.leaves[i] for i in parsed.images]
        if not images:
            held = ", ".join(sorted({type(leaf).__name__ for leaf in parsed.leaves}))
            raise ValueError(
                "No image or video was found in the sample, which must hold at least one as a tensor that is not the "
                f"labels, but got {held}."
            )
        first = checks.dense("images", images[0])
        counted = first if parsed.labels is None else parsed.labels
        batch_size = counted.shape[0] if counted.ndim else None
        for x in images:
            checks.dense("images", x)
            if self.finish is not None:
                self.finish.check(plain(x), "images")
            dims.check(x, self.axes)
            checks.batch("images", plain(x))
            if x.shape[0] != batch_size:
                raise ValueError(
                    "The batch size of the image or video does not match the batch size of the labels "
                    f"or of the other images: {x.shape[0]} != {batch_size}."
                )
        sizes = {self._spatial_size(x) for x in images}
        holes = self.finish is not None and self.finish.erase is not None
        if len(sizes) > 1 and (holes or not self._constant):
            raise ValueError(f"Images mixed by one plan must have one spatial size, but got {sorted(sizes)}.")
        size = self._spatial_size(first)
        if 0 in size:
            raise ValueError(f"Images must have at least one pixel, but got the spatial size {size}.")
        for each in sizes:
            checks.sides("the spatial size of images", each, stored=self._stored)
        masks, binary = [parsed.leaves[i] for i in parsed.masks], self._binary or self._families.binary
        if (masks or parsed.targets is not None) and self.finish is not None and self.finish.hflip:
            raise ValueError(
                "hflip of finish must be 0 for a sample with segmentation masks or boxes, which would not be flipped "
                f"with their images, but got {self.finish.hflip}."
            )
        if parsed.targets is not None:
            detection.check(parsed.leaves[parsed.targets], first.shape[0], size)
        for m in masks:
            if m.ndim < 1 or m.shape[0] != batch_size:
                raise ValueError(
                    f"The batch size of the masks must be that of the images, {batch_size}, "
                    f"but got shape {tuple(m.shape)}."
                )
            check_masks(plain(m), size, binary, self.mask_classes, self.mask_ignore_index)
        if self.inplace:
            for name, written in (("images", images), ("masks", masks)):
                for x in written:
                    checks.writable(name, plain(x))
            checks.disjoint("images and masks", [*images, *masks])
        return size

    def _parse_other(self, other: Any, parsed: sample_tree.Sample) -> sample_tree.Sample:
        """Another batch, taken apart, if what was found of this one can be mixed with it."""
        if parsed.targets is not None:
            raise ValueError("other must be None for a batch with detection targets.")
        name = type(self).__name__
        getter = None if parsed.labels is None else self.labels_getter
        try:
            lent = sample_tree.parse(other, name, getter, self.images_getter, self.axes)
            if lent.labels is not None:
                self._check_labels(lent.labels)
            if not lent.images:
                raise ValueError("no image or video was found.")
        except ValueError as error:
            raise ValueError(f"other must be a batch as the one to be mixed: {error}") from error
        self._check_other_size(lent.image.shape[0] if lent.image.ndim else 0, None)
        sample_tree.check_alike(parsed, lent)
        if self.inplace:
            for what in ("images", "masks"):
                for i, j in zip(getattr(parsed, what), getattr(lent, what), strict=True):
                    checks.disjoint(f"{what} and those of other", [plain(parsed.leaves[i]), plain(lent.leaves[j])])
        return lent

    def _mix_targets(
        self, labels: Tensor, plan: MixPlan, device: torch.device, other: Tensor | None = None
    ) -> Tensor | SparseTargets | SparseTerms:
        if self.targets == "sparse" and plan.terms is not None:
            partner, weight = (t.to(labels.device) for t in terms_of(plan))
            return SparseTerms(like(plain(labels)[partner], labels), weight)
        if self.targets == "sparse":
            lent = of_partners("labels", plain(labels), plan, other)
            return SparseTargets(labels, like(lent, labels), plan.weight.to(labels.device))
        if self.targets == "union":
            options = {"num_classes": self.num_classes, "label_smoothing": self.label_smoothing}
            return union_labels(labels, plan, other=other, **options)  # type: ignore[arg-type]
        return mix_labels(
            labels,
            plan,
            other=other,
            num_classes=self.num_classes,
            label_smoothing=self.label_smoothing,
            # A backend asked for the images may not exist where the labels are.
            backend=self.backend if labels.device.type == device.type else None,
        )

    def _spatial_size(self, x: Tensor) -> tuple[int, ...]:
        return dims.spatial_size(x, self.axes if self.finish is None else self.finish.axes)

    def _mix_image(self, x: Tensor, plan: MixPlan, other: Tensor | None) -> Tensor:
        if self.finish is not None:
            return mix(x, plan, finish=self.finish, backend=self.backend)
        view = dims.last(plain(x), self.axes)
        other = None if other is None else dims.last(plain(other), self.axes)
        if self.inplace:
            mix_(view, plan, other=other, backend=self.backend)
            return x
        return like(dims.back(mix(view, plan, other=other, backend=self.backend), self.axes), x)

    def _mix_mask(self, masks: Tensor, plan: MixPlan, other: Tensor | None) -> Tensor:
        backend = backends.where_it_serves(self.backend, masks.device.type)
        if self.inplace and (masks.is_floating_point() or self.mask_classes is None):
            return mix_masks_(masks, plan, other=other, backend=backend)
        soft = {"num_classes": self.mask_classes, "ignore_index": self.mask_ignore_index}
        return like(mix_masks(plain(masks), plan, other=other, backend=backend, **soft), masks)


def _from_another(plan: MixPlan, other_size: int, seed: Tensor | None) -> MixPlan:
    """The plan with partners from another batch, as its own were found; `seed`: of a permutation of another length."""
    partner, pairing = plan.partner, plan.pairing
    if other_size != plan.batch_size:
        there = None if seed is None else moved(seed, plan.device)
        partner = partners.among(pairing, plan.batch_size, other_size, there, plan.device)
    return replace(plan, partner=partner, pairing=Pairing.RANDOM, other_size=other_size)


def _with_float64(device: torch.device) -> torch.device:
    """Where a plan for a device can be, whose label weights are float64. One on the CPU serves any device."""
    return device if reference.has_float64(device) else CPU


def _placed(request: Request, source: Source, device: torch.device) -> tuple[Any, ...]:
    """A request and its source, as operators take them that make a plan on `device`: with their tensors there, but a
    seed may be on the CPU."""
    *fixed, lam, labels, seed, drawn, partner = _flat(request, source)
    if lam is not None:
        lam = moved(lam, device)
    if labels is not None:
        labels = moved(labels, device)
    if seed is not None and not seed.is_cpu:
        seed = moved(seed, device)
    return *fixed, lam, labels, seed, drawn, partner


def _flat(request: Request, source: Source) -> tuple[Any, ...]:
    """A request and its source as a row of arguments. (For an enum torch takes longer than for its number.)"""
    spec, batch_size, size, pairing, per, *rest = request
    return spec, batch_size, size, int(pairing), int(per), *rest, *source


def mixing_module(name: str, x: Any) -> MixTransform:
    """`x`, if it is a mixing module."""
    if not isinstance(x, MixTransform):
        raise TypeError(f"{name} must be a mixing module such as fusedmix.MixUp(), but got {named(x)}")
    return x


def named(x: Any) -> str:
    """What came where a module of this package is wanted, and which to take if another library has one of that name."""
    if isinstance(x, type) and issubclass(x, MixTransform):
        return f"the class {x.__name__}. Make a module of it: fusedmix.{x.__name__}()."
    name = type(x).__name__
    near = next((ours for ours in ("MixUp", "CutMix", "FMix") if ours.lower() in name.lower()), None)
    if near is None or isinstance(x, MixTransform):
        return f"{name}."
    return f"{type(x).__module__}.{name}. Take fusedmix.{near} in its place."

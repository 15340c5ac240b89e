"""The keywords that the mixing modules share: their types and meaning (`Options`), their defaults and checks, and how
they come into the signature and the docstring of every module. Each of these stands in one place, which is here."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypedDict, TypeVar, get_args, get_type_hints

import torch

from fusedmix import checks, sample_tree
from fusedmix.finishing import Finish, checked_finish

PermutationName = Literal["roll", "flip", "random", "cross_class", "same_class"]
PairingName = Literal[PermutationName, "adjacent"]
PerName = Literal["batch", "pair", "sample"]
SamplingName = Literal["host", "device"]
TargetsName = Literal["dense", "sparse", "union"]
VariantName = Literal["released", "paper"]
BackendName = Literal["cuda", "triton", "cpp", "reference"]


class UnpairedOptions(TypedDict, total=False):
    """The keywords of `Options` that every module takes."""

    num_classes: int | None
    per: PerName
    p: float
    label_smoothing: float
    sampling: SamplingName | None
    generator: torch.Generator | None
    backend: BackendName | None
    targets: TargetsName
    training_only: bool


class DrawingOptions(UnpairedOptions, total=False):
    """The keywords of `Options` that every module with partners takes."""

    pairing: PairingName


class EmbeddingOptions(UnpairedOptions, total=False):
    """The keywords of `Options` that have a meaning for embeddings: `EmbedMix` takes these."""

    pairing: PermutationName
    lam_range: tuple[float, float] | None


class BatchOptions(DrawingOptions, total=False):
    """The keywords of `Options` that belong to the batch and not to a method: `RandomMix` takes these."""

    labels_getter: sample_tree.Getter | Literal["default"] | None
    images_getter: sample_tree.Getter | None
    axes: Sequence[int] | None
    finish: Finish | None
    inplace: bool
    mask_classes: int | None
    mask_ignore_index: int | None
    min_visible: float


class FillOptions(UnpairedOptions, total=False):
    """The keywords of `Options` that have a meaning without partners: `Cutout` and `GridMask` take these."""

    labels_getter: sample_tree.Getter | Literal["default"] | None
    images_getter: sample_tree.Getter | None
    axes: Sequence[int] | None
    inplace: bool
    mask_classes: int | None
    mask_ignore_index: int | None
    min_visible: float


class Options(BatchOptions, total=False):
    """The keywords that the mixing modules share. The defaults behave as torchvision.transforms.v2 does.

    Attributes:
        num_classes: number of classes K; may be None if the labels are (B, K) already.
        pairing: the partner of sample i. "roll": i-1 (torchvision); "flip": B-1-i (timm, and the default of
            per="pair"); "random": a random permutation; "cross_class", "same_class": a random permutation across or
            within the classes, as far as there is one ((B, K) labels count as their largest entry). "adjacent": of the
            samples 2i and 2i+1 one is made, so that B samples become B/2 (PANNs: Kong et al. 2020); B must be even.
        per: how many draws a batch gets. "batch": one; "pair": one for each pair of pairing="flip"; "sample": one each.
        p: probability that a draw mixes, in [0, 1]. With p=1 no random number is drawn for it.
        label_smoothing: ε in [0, 1], applied to the labels before they are mixed.
        sampling: "host": torch's CPU generator, by torchvision's calls in its order (its λ is unreliable for α below
            .01, where torch's Dirichlet underflows to ½); "device": Philox (fusedmix/draws),
            on the device of the images, seeded by the same generator. None: "device" for per="sample", else "host".
        generator: where the draws (host) or the seed (device) come from; None: torch's default generator. A generator
            of one's own is copied into DataLoader workers, which then all draw the same.
        backend: an implementation by name; None chooses (`fusedmix info` shows which).
        targets: "dense": (B, K) soft labels; "sparse": `SparseTargets`, both labels and the weight (of methods that
            mix more than two labels `SparseTerms`); "union": (B, K), every class of both (`fusedmix.union_labels`).
        training_only: whether a module in evaluation mode (`.eval()`) returns its batch as it is: the same images and
            the same labels, neither mixed nor made dense nor smoothed, and nothing is drawn. False: it mixes in both
            modes, as torchvision's transforms do.
        labels_getter: "default" (the second item, or the key "labels"), a function from the sample to its labels, or
            None if there are no labels.
        images_getter: None (tv_tensors images and videos, else the first pure tensor that is not the labels; of a dict
            the one under "image", "images", "pixel_values", "x" or "video" if several may be images), or a function
            from the sample to its images, a tensor or a sequence of tensors, mixed by one plan.
        axes: 1 to 3 dims of the images that masks extend over, all others being mixed alike. Of videos (B, C, T, H, W)
            (-2, -1) are tubes, alike in all frames, (-3,) spans of time and (-3, -2, -1) cuboids; (-3, -2, -1) is for
            volumes (B, C, D, H, W) too, (1, 2) for images (B, H, W, C), (-1,) for spectrograms cut along time. None:
            (H, W) of images (B, C, H, W) and of all tensors of five dims, as of tv_tensors.Video; (L,) of signals
            (B, C, L) and of floating-point (B, L).
        finish: what images go through in the same pass: flip, erase, normalise (`Finish`). They must be (B, C, H, W),
            or (B, H, W, C) if it says so, and become a new batch (B, C, H, W). Flips and holes follow from a seed that
            is drawn after the plan. None: images are mixed as they are.
        inplace: whether images and masks are overwritten.
        mask_classes: None: segmentation label maps stay label maps (CutMix, and FMix without soft edges); K: they
            become soft one-hot targets.
        mask_ignore_index: the label of void pixels, whose one-hot target is 0 everywhere; None: there is none, which is
            the default of mask_classes > 255.
        min_visible: of detection targets (`MixTransform.forward`), which share of a box has to be seen if it is to be
            kept, in [0, 1], as `mix_boxes` has it.
        lam_range: (low, high) in [0, 1], to which a drawn λ is clamped.
        variant: "released" (the authors' code) or "paper", where the two differ (HMix, GMix, FMix). None: "paper" for
            FMix, else "released".
    """

    lam_range: tuple[float, float] | None
    variant: VariantName | None


class CallOptions(TypedDict, total=False):
    """The keywords that the functions of one call share (`fusedmix.functional.mixup` and its like): those of `Options`
    that have a meaning where λ is given, and two more.

    Attributes:
        partner: (B,) int64 in [0, B), the partner of each sample. None: `pairing` says who it is. Not with per="pair".
        seed: makes all draws a pure function of the arguments: an int in [-2^63, 2^64). None: they come from
            `generator`.
    """

    num_classes: int | None
    pairing: PairingName
    per: PerName
    label_smoothing: float
    generator: torch.Generator | None
    backend: BackendName | None
    axes: Sequence[int] | None
    inplace: bool
    partner: torch.Tensor | None
    seed: int | None


class _Keyword(NamedTuple):
    default: Any
    check: Callable[[str, Any], Any]  # takes the name and a value, and returns the value as it is kept, or raises


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, x: None if x is None else check(name, x)


def _one_of(choices: Any, **elsewhere: str) -> Callable[[str, Any], Any]:
    """The check of a Literal; `elsewhere`: what other libraries call its choices."""
    return functools.partial(checks.choice, allowed=get_args(choices), elsewhere=elsewhere)


def _function(name: str, x: Any) -> Any:
    if not callable(x):
        default = '"default", ' if name == "labels_getter" else ""
        raise ValueError(f"{name} must be {default}a callable or None, but got {x!r}.")
    return x


def _generator(name: str, x: Any) -> Any:
    if not isinstance(x, torch.Generator):
        raise TypeError(f"{name} must be a torch.Generator or None, but got {type(x).__name__}.")
    return x


_COUNT = _or_none(functools.partial(checks.integer, low=1))
_SHARE = functools.partial(checks.number, low=0.0, high=1.0)
_KEYWORDS = {
    "num_classes": _Keyword(None, _COUNT),
    "pairing": _Keyword("roll", _one_of(PairingName)),
    "per": _Keyword("batch", _one_of(PerName, elem="sample", element="sample")),
    "p": _Keyword(1.0, _SHARE),
    "label_smoothing": _Keyword(0.0, _SHARE),
    "sampling": _Keyword(None, _or_none(_one_of(SamplingName, cpu="host", cuda="device", gpu="device"))),
    "generator": _Keyword(None, _or_none(_generator)),
    "backend": _Keyword(None, _or_none(_one_of(BackendName))),
    "targets": _Keyword("dense", _one_of(TargetsName, soft="dense")),
    "training_only": _Keyword(False, checks.boolean),
    "labels_getter": _Keyword("default", _or_none(lambda name, x: x if x == "default" else _function(name, x))),
    "images_getter": _Keyword(None, _or_none(_function)),
    "axes": _Keyword(None, _or_none(checks.axes)),
    "finish": _Keyword(None, _or_none(checked_finish)),
    "inplace": _Keyword(False, checks.boolean),
    "mask_classes": _Keyword(None, _COUNT),
    "mask_ignore_index": _Keyword(255, _or_none(functools.partial(checks.integer, low=-(2**63), high=2**63 - 1))),
    "min_visible": _Keyword(0.1, _SHARE),
    "lam_range": _Keyword(None, _or_none(checks.interval)),
    "variant": _Keyword(None, _or_none(_one_of(VariantName, official="released", code="released"))),
}
DEFAULTS = {name: keyword.default for name, keyword in _KEYWORDS.items()}
OF_METHOD = ("lam_range", "variant", "p")  # Each method of a RandomMix has its own; the others are the whole batch's.


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords given, each checked by itself."""
    return {name: _KEYWORDS[name].check(name, value) for name, value in given.items()}


def settled(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all keywords: those given, which are checked with each other, and the defaults of the rest, as far
    as they don't depend on the method."""
    values = {**DEFAULTS, **given}
    if values["per"] == "pair" and "pairing" not in given:
        values["pairing"] = "flip"
    if values["sampling"] is None:
        values["sampling"] = "device" if values["per"] == "sample" else "host"
    if "mask_ignore_index" not in given and (values["mask_classes"] or 0) > 255:
        values["mask_ignore_index"] = None  # 255 is a class then.

    if values["per"] == "pair" and values["pairing"] != "flip":
        raise ValueError(
            f'per="pair" needs pairing="flip", the only one made of pairs, but got pairing={values["pairing"]!r}.'
        )
    if values["targets"] == "sparse" and values["label_smoothing"]:
        raise ValueError(
            f'label_smoothing must be 0 with targets="sparse", but got {values["label_smoothing"]}: '
            "sparse targets cannot hold it. Pass it to the loss."
        )
    for name in ("inplace", "axes"):
        if values["finish"] is not None and values[name]:
            raise ValueError(
                f"finish must be None with {name}={values[name]!r}, because a finished batch is a new one, of images "
                "whose height and width are known."
            )
    check_generator("generator", values["generator"], values["sampling"])
    return values


def check_generator(name: str, generator: Any, sampling: str) -> None:
    """Raises unless `generator` is None, or one that can be drawn from."""
    if generator is not None and _generator(name, generator).device.type != "cpu" and sampling == "host":
        raise ValueError(
            f'{name} must be on the CPU for sampling="host", but got one on {generator.device}. Use sampling="device".'
        )


class TakesKeywords(Protocol):
    """A mixing module."""

    _keywords: ClassVar[tuple[str, ...]]  # the keywords of `Options` that the class takes


Module = TypeVar("Module", bound=TakesKeywords)
Call = TypeVar("Call", bound=Callable[..., Any])
_takers: dict[str, list[str]] = {}  # the names of the modules that take a keyword, by keyword


def spelled_out(cls: type[Module]) -> type[Module]:
    """Puts the keywords for which a module's `__init__` has only `**options: Unpack[...]` into its signature and its
    docstring, for help() and editors. (Type checkers know them by the TypedDict.)"""
    # The function has the new signature and not the class, from which a user's own subclass would inherit it.
    own, shared = _spell_out(vars(cls)["__init__"], DEFAULTS)
    cls._keywords = tuple(parameter.name for parameter in shared)
    for parameter in (*own[1:], *shared):
        _takers.setdefault(parameter.name, []).append(cls.__name__)
    _describe(cls, cls._keywords)
    return cls


def spelled_out_call(function: Call) -> Call:
    """As `spelled_out`, for a function with `**options: Unpack[CallOptions]`; an unknown keyword is a TypeError."""
    _, shared = _spell_out(function, {**DEFAULTS, "partner": None, "seed": None})
    _describe(function, [parameter.name for parameter in shared])
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Any:
        for name in keywords.keys() - signature.parameters.keys():
            hint = checks.did_you_mean(name, list(signature.parameters), {"classes": "num_classes"})
            taken = ", ".join(signature.parameters)
            raise TypeError(
                f"{function.__name__}() got an unknown keyword {name!r}. {hint and hint + ' '}It takes {taken}."
            )
        return function(*args, **keywords)

    return call  # type: ignore[return-value]


def _spell_out(function: Any, defaults: Mapping[str, Any]) -> tuple[list[inspect.Parameter], list[inspect.Parameter]]:
    """Writes the keywords of a function's `**options: Unpack[...]` into its signature; its own, and those."""
    signature = inspect.signature(function, eval_str=True)
    *own, options = signature.parameters.values()
    types = get_type_hints(get_args(options.annotation)[0])
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=types[name])
        for name, default in defaults.items()
        if name in types
    ]
    function.__signature__ = signature.replace(parameters=[*own, *shared])
    return own, shared


def _describe(thing: Any, names: Sequence[str]) -> None:
    """Puts what `Options` and `CallOptions` say of keywords into a docstring that refers to one of them."""
    if not (thing.__doc__ and Options.__doc__ and CallOptions.__doc__):  # Under python -OO there are no docstrings.
        return
    said = inspect.cleandoc(Options.__doc__) + "\n" + inspect.cleandoc(CallOptions.__doc__)
    entries = dict(reversed(pair) for pair in re.findall(r"^( {4}(\w+): .*(?:\n {8}.*)*)", said, re.MULTILINE))
    lines = "\n".join(entries[name] for name in names)
    thing.__doc__ = re.sub(r" {4}\*\*options: see `\w+`\.", lambda _: lines, inspect.cleandoc(thing.__doc__))


# What other libraries call what is meant here.
_ELSEWHERE = {
    "prob": "timm's prob is p here.",
    "mode": 'timm\'s mode is per here, its "elem" is per="sample", and its partners are those of pairing="flip".',
    "mixup_alpha": "timm's mixup_alpha is alpha of MixUp here.",
    "cutmix_alpha": "timm's cutmix_alpha is alpha of CutMix here.",
    "cutmix_minmax": "timm's cutmix_minmax is minmax of CutMix here.",
    "switch_prob": "timm's switch_prob is weights of RandomMix here: weights=[1 - switch_prob, switch_prob].",
    "correct_lam": "The label weight is always that of the mask that was drawn, as with timm's correct_lam=True.",
    "multi_label": "Pass (B, K) labels, which need no keyword.",
    "smoothing": "It is called label_smoothing.",
    "same_on_batch": 'kornia\'s same_on_batch=True is per="batch" here, and False is per="sample".',
    "data_keys": "Instead of kornia's data_keys, labels_getter and images_getter say what is what in a batch.",
    "lambda_val": 'kornia\'s lambda_val=(a, b) is lam_law=("uniform", 1 - b, 1 - a) of MixUp here.',
    "cut_size": "kornia's cut_size is lam_range here.",
    "input_key": "Composer's input_key is images_getter here, a function.",
    "target_key": "Composer's target_key is labels_getter here, a function.",
    "data_format": 'Keras\'s data_format="channels_last" is axes=(1, 2) here.',
    "beta": "kornia's beta is alpha here.",
    "transforms": "torchvision's transforms are the methods of RandomMix here.",
    "lam": "λ is given to a plan, not to a module: sample(..., lam=).",
    "seed": "A seed is given to a plan, sample(..., seed=), or to a generator, generator=torch.Generator().",
}


def unknown_keyword(cls: type[TakesKeywords], name: str) -> TypeError:
    """The error of a module for a keyword that it does not take."""
    own = (p.name for p in inspect.signature(cls).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD)
    taken = list(dict.fromkeys((*own, *cls._keywords)))
    hint = _ELSEWHERE.get(name) or _taken_by(name) or checks.did_you_mean(name, taken, {"classes": "num_classes"})
    return TypeError(
        f"{cls.__name__}() got an unknown keyword {name!r}. {hint and hint + ' '}It takes {', '.join(taken)}."
    )


def missing_attribute(mix: TakesKeywords, name: str) -> AttributeError | None:
    """The error for setting an attribute that only other modules have, which would do nothing."""
    cls = type(mix)
    if name not in _takers or hasattr(cls, name) or name in inspect.signature(cls).parameters:
        return None
    return AttributeError(f"{cls.__name__} has no {name}: setting it would do nothing. {_taken_by(name)}")


def _taken_by(name: str) -> str:
    """Which modules take a keyword, if any does."""
    *others, last = _takers.get(name, [""])
    several = f"{', '.join(others)} and {last} take" if others else f"{last} takes"
    return f"{several} {name}." if last else ""

"""The keywords of the modules: in signatures and help, to type checkers, and as attributes that are set later."""

from __future__ import annotations

import copy
import inspect
import pickle
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torchvision.transforms import v2

import fusedmix as fm
from conftest import option_id, required
from fusedmix import options
from fusedmix.integrations.timm import FastCollateMixup, Mixup
from fusedmix.methods import Pairing, Per

X, Y = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 4])
MODULES = (fm.MixUp, fm.CutMix, fm.HMix, fm.GMix, fm.FMix, fm.SamplePairing, fm.RandomMix, fm.EmbedMix)


def new(cls, **keywords):
    return cls([fm.MixUp(), fm.CutMix()], **keywords) if cls is fm.RandomMix else cls(**keywords)


def shared(cls):
    """The keywords that `__init__` has only by a TypedDict, as a type checker reads them."""
    unpacked = get_type_hints(cls.__init__)["options"]
    return get_type_hints(get_args(unpacked)[0])


def choices(annotation):
    """The strings of a Literal, which may be one of a Union."""
    parts = [annotation] if get_origin(annotation) is Literal else get_args(annotation)
    return [choice for part in parts if get_origin(part) is Literal for choice in get_args(part)]


def batch(mix, seed=5):
    """What a module makes of one batch, and the generators after it."""
    torch.manual_seed(seed)
    if mix.generator is not None:
        mix.generator.manual_seed(seed)
    mixed = mix(torch.arange(96.0).reshape(4, 6, 4), None, Y[:4]) if isinstance(mix, fm.EmbedMix) else mix(X.clone(), Y)
    return [*torch.utils._pytree.tree_leaves(mixed), torch.get_rng_state()]


def same(a, b):
    return len(a) == len(b) and all(s is t is None or torch.equal(s, t) for s, t in zip(a, b, strict=True))


# --- signatures ---


@pytest.mark.parametrize("cls", MODULES)
def test_every_keyword_is_in_the_signature(cls):
    """What a type checker allows by the TypedDict is what the signature lists, and the defaults are what is done
    without a keyword."""
    parameters = inspect.signature(cls).parameters
    types = shared(cls)
    assert set(types) <= set(parameters)
    assert inspect.signature(cls.__init__).parameters.keys() == {"self", *parameters}
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    assert {name: parameters[name].annotation for name in types} == types
    mix = new(cls)
    for name in types:
        default = parameters[name].default
        given = new(cls, **{name: default})
        assert repr(given) == repr(mix)
        assert getattr(given, name) == getattr(mix, name)
        assert default is None or getattr(mix, name) == default


@pytest.mark.parametrize("cls", MODULES)
def test_help_says_what_every_keyword_means(cls):
    text = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    assert "per: Literal['batch', 'pair', 'sample'] = 'batch'" in text
    arguments = cls.__doc__.partition("Args:")[2].partition("Raises:")[0]
    assert re.findall(r"^ {4}(\w+): ", arguments, re.MULTILINE) == list(inspect.signature(cls).parameters)
    assert "**options" not in cls.__doc__


def test_the_table_of_keywords_is_the_typed_dict():
    assert list(options.DEFAULTS) == re.findall(
        r"^ {8}(\w+): ", inspect.cleandoc(options.Options.__doc__).replace("\n    ", "\n        "), re.MULTILINE
    )
    assert set(options.DEFAULTS) == set(options.Options.__annotations__)
    assert set(get_args(options.PairingName)) == {pairing.name.lower() for pairing in Pairing} | {"adjacent"}
    assert set(get_args(options.PerName)) == {per.name.lower() for per in Per}
    assert get_args(options.BackendName) == fm.backends.NAMES


@pytest.mark.parametrize("cls", MODULES)
def test_literals_are_what_is_accepted(cls):
    for name, annotation in shared(cls).items():
        for choice in choices(annotation):
            extra = {"pairing": "flip"} if choice == "pair" else {}
            assert getattr(new(cls, **{name: choice}, **extra), name) == choice
        if choices(annotation):
            with pytest.raises(ValueError, match=rf"{name} must be .*'no such {name}'"):
                new(cls, **{name: f"no such {name}"})


def test_a_subclass_of_ones_own_keeps_its_own_signature():
    class Mine(fm.CutMix):
        def __init__(self, strength: float, ratio: float = 0.5, **keywords):
            super().__init__(alpha=strength, **keywords)
            self.ratio = ratio

    assert list(inspect.signature(Mine).parameters) == ["strength", "ratio", "keywords"]
    assert (Mine(0.5, num_classes=3).alpha, Mine(0.5).ratio) == (0.5, 0.5)
    with pytest.raises(TypeError, match=r"Mine\(\) got an unknown keyword 'num_clases'. Did you mean 'num_classes'"):
        Mine(0.5, num_clases=3)


SCRIPT = """
import torch
from collections.abc import Callable
from typing_extensions import Unpack
import fusedmix as fm
from fusedmix.options import Options, PerName

mix: fm.MixTransform = fm.CutMix(alpha=0.5, num_classes=10, per="sample", pairing="random", targets="sparse")
per: PerName = mix.per
fm.FMix(variant="released", decay_power=2.0, sampling="device", training_only=True, lam_range=(0.2, 0.8))
fm.RandomMix([fm.MixUp(), fm.CutMix()], [1, 2], label_smoothing=0.1, labels_getter=None, backend="reference")
fm.EmbedMix(fold=False, padding="keep", lam_range=None, generator=torch.Generator())
mix.inplace = True
fm.MixUp(per="Sample")  # wrong
fm.MixUp(pairing="rol")  # wrong
fm.CutMix(num_clases=10)  # wrong
fm.CutMix(ratio=0.5)  # wrong
fm.HMix(variant="official")  # wrong
fm.GMix(sampling="cpu")  # wrong
fm.FMix(targets="soft")  # wrong
fm.SamplePairing(labels_getter="labels")  # wrong
fm.SamplePairing(backend="cupy")  # wrong
fm.RandomMix([fm.MixUp()], variant="paper")  # wrong
fm.RandomMix([fm.MixUp()], prob=0.5)  # wrong
fm.EmbedMix(inplace=True)  # wrong
fm.EmbedMix(padding="zero")  # wrong
fm.attach(torch.nn.Identity(), fm.MixUp(), calls="every")  # wrong
mix.per = "pair"  # wrong
mix.num_classes = "10"  # wrong


def build(**options: Unpack[Options]) -> fm.MixTransform:
    return fm.CutMix(**options)


build(per="sample")
build(per="elem")  # wrong
"""


@pytest.mark.thorough
def test_type_checkers_know_the_keywords(tmp_path):
    """mypy finds the lines that are wrong, and no other."""
    required("mypy")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    package = str(Path(fm.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={tmp_path / 'cache'}", str(script)],
        capture_output=True,
        text=True,
        env={"MYPYPATH": package, "PATH": ""},
        cwd=tmp_path,
    )
    found = {int(n) for n in re.findall(r"^script\.py:(\d+): error", run.stdout, re.MULTILINE)}
    lines = SCRIPT.splitlines()
    assert found == {n for n, line in enumerate(lines, 1) if line.endswith("# wrong")}, run.stdout + run.stderr


# --- attributes set later ---

VALUES = [
    {"num_classes": 7},
    {"p": 0.5},
    {"label_smoothing": 0.2},
    {"sampling": "device"},
    {"sampling": None},
    {"backend": "reference"},
    {"targets": "sparse"},
    {"training_only": True},
    {"labels_getter": lambda sample: sample[1]},
    {"images_getter": lambda sample: sample[0]},
    {"inplace": True},
    {"mask_classes": 3},
    {"mask_classes": 300},
    {"mask_ignore_index": 7},
    {"lam_range": (0.45, 0.5)},
    {"lam_range": [0.1, 0.2]},
    {"variant": "paper"},
    {"variant": "released"},
    {"alpha": 0.1},
    {"ratio": 0.2},
    {"weights": [0.0, 3.0]},
    {"fold": False},
    {"fold": True},
    {"padding": "keep"},
]


@pytest.mark.parametrize("value", VALUES, ids=option_id)
@pytest.mark.parametrize("cls", MODULES)
def test_set_later_is_as_given_at_construction(cls, value):
    """The attribute, the repr, the batches, and what a RandomMix takes from it; or the module has no such attribute."""
    (name,) = value
    given = {} if name == "num_classes" else {"num_classes": 5}
    mix = new(cls, per="batch", **given)
    if name not in inspect.signature(cls).parameters:
        before = repr(mix), batch(mix) if given else None
        with pytest.raises(AttributeError, match=rf"{cls.__name__} has no {name}.* takes? {name}"):
            setattr(mix, name, value[name])
        assert repr(mix) == before[0]
        return
    setattr(mix, name, value[name])
    twin = new(cls, per="batch", **given, **value)
    assert getattr(mix, name) == getattr(twin, name)
    assert repr(mix) == repr(twin)
    for seed in range(4):
        assert same(batch(mix, seed), batch(twin, seed))
    assert (mix.sampling, mix.targets) == (twin.sampling, twin.targets)
    if not isinstance(mix, fm.EmbedMix):
        assert mix.mask_ignore_index == twin.mask_ignore_index
    for duplicate in (copy.deepcopy, lambda m: m if callable(value[name]) else pickle.loads(pickle.dumps(m))):
        assert repr(duplicate(mix)) == repr(twin)
    if cls not in (fm.RandomMix, fm.EmbedMix):
        assert repr(fm.RandomMix([mix])) == repr(fm.RandomMix([twin]))


def test_a_generator_set_later():
    mix, twin = fm.CutMix(num_classes=5), fm.CutMix(num_classes=5, generator=torch.Generator())
    mix.generator = torch.Generator()
    assert same(batch(mix), batch(twin))
    generator = mix.generator
    mix.p = 0.5  # Another attribute leaves the generator what it is.
    assert mix.generator is generator
    mix.generator = None
    assert same(batch(mix), batch(fm.CutMix(num_classes=5, p=0.5)))


WRONG = [
    ("num_classes", 0, ValueError),
    ("num_classes", 10.0, TypeError),
    ("p", 5, ValueError),
    ("p", "half", TypeError),
    ("p", True, TypeError),
    ("label_smoothing", -3, ValueError),
    ("label_smoothing", float("nan"), ValueError),
    ("sampling", "gpu", ValueError),
    ("generator", 3, TypeError),
    ("backend", "numba", ValueError),
    ("targets", "Sparse", ValueError),
    ("targets", None, TypeError),
    ("training_only", 1, TypeError),
    ("labels_getter", "y", ValueError),
    ("images_getter", 0, ValueError),
    ("inplace", "yes", TypeError),
    ("mask_classes", -1, ValueError),
    ("mask_ignore_index", 0.5, TypeError),
    ("lam_range", (0.9, 0.1), ValueError),
    ("lam_range", 0.5, TypeError),
    ("variant", "Paper", ValueError),
    ("alpha", -1.0, ValueError),
    ("ratio", 1.5, ValueError),
    ("enabled", 0, TypeError),
    ("weights", [1.0], ValueError),
    ("weights", 0.5, TypeError),
    ("fold", 1, TypeError),
    ("padding", "zero", ValueError),
    ("per", "sample", AttributeError),
    ("pairing", "flip", AttributeError),
    ("decay_power", 2.0, AttributeError),
    ("max_soft", 0.2, AttributeError),
    ("cutoff", 8, AttributeError),
    ("reformulate", True, AttributeError),
    ("methods", [fm.MixUp()], AttributeError),
]


@pytest.mark.parametrize(("name", "value", "error"), WRONG)
@pytest.mark.parametrize("cls", MODULES)
def test_wrong_values_are_refused_and_nothing_changes(cls, name, value, error):
    mix = new(cls, num_classes=5)
    drawn = batch(mix)
    before = repr(mix), dict(mix.__dict__), mix._spec.clone(), drawn
    known = name in inspect.signature(cls).parameters or hasattr(cls, name)
    with pytest.raises(error if known else AttributeError, match=name) as caught:
        setattr(mix, name, value)
    assert error is not AttributeError or not known or "Make a new" in str(caught.value)
    assert repr(mix) == before[0]
    assert mix.__dict__ == before[1]
    torch.testing.assert_close(mix._spec, before[2], rtol=0, atol=0, equal_nan=True)
    assert same(batch(mix), before[3])


def test_a_list_that_was_given_is_not_kept():
    given = [0.2, 0.8]
    mix = fm.MixUp(lam_range=given)
    given[0] = 9.0
    mix.p = 0.5
    assert repr(mix) == repr(fm.MixUp(lam_range=(0.2, 0.8), p=0.5))


def test_rules_between_keywords_hold_later_too():
    mix = fm.CutMix(targets="sparse")
    with pytest.raises(ValueError, match=r'label_smoothing must be 0 with targets="sparse"'):
        mix.label_smoothing = 0.1
    mix.targets = "dense"
    mix.label_smoothing = 0.1
    with pytest.raises(ValueError, match=r'label_smoothing must be 0 with targets="sparse"'):
        mix.targets = "sparse"
    assert (mix.targets, mix.label_smoothing) == ("dense", 0.1)

    class OnAGpu(torch.Generator):
        device = torch.device("cuda")

    mix = fm.MixUp()
    with pytest.raises(ValueError, match='sampling="host"'):
        mix.generator = OnAGpu()
    mix.sampling = "device"
    mix.generator = OnAGpu()
    with pytest.raises(ValueError, match='sampling="host"'):
        mix.sampling = "host"
    assert mix.sampling == "device"
    mix = fm.MixUp(mask_classes=300)
    assert mix.mask_ignore_index is None  # Here 255 is a class.
    mix.mask_classes = 21
    assert mix.mask_ignore_index == 255
    mix.mask_ignore_index = 255
    mix.mask_classes = 300
    assert mix.mask_ignore_index == 255  # It stays as it was set.


MEMBERS = {"alpha": 0.1, "ratio": 0.1, "variant": "paper", "lam_range": (0.4, 0.5), "p": 0.3}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_a_methods_own_attributes_act_inside_a_random_mix(name, per):
    value = {name: MEMBERS[name]}
    mix = fm.RandomMix([fm.HMix(), fm.FMix(variant="released")], num_classes=5, per=per)
    twin = fm.RandomMix([fm.HMix(**value), fm.FMix(variant="released")], num_classes=5, per=per)
    setattr(mix.methods[0], name, MEMBERS[name])
    assert repr(mix) == repr(twin)
    for seed in range(4):
        assert same(batch(mix, seed), batch(twin, seed))


@pytest.mark.parametrize("name", ["num_classes", "label_smoothing", "targets", "inplace", "generator", "training_only"])
def test_what_is_the_batchs_cannot_be_set_on_a_method_of_a_random_mix(name):
    method = fm.CutMix(num_classes=5)
    mix = fm.RandomMix([fm.MixUp(), method])
    value = {"num_classes": 7, "label_smoothing": 0.1, "targets": "sparse", "generator": torch.Generator()}.get(
        name, True
    )
    for member in (method, copy.deepcopy(mix).methods[1], pickle.loads(pickle.dumps(mix)).methods[1]):
        with pytest.raises(AttributeError, match=rf"{name} is the whole batch's.*Set it on the RandomMix"):
            setattr(member, name, value)
        assert getattr(member, name) == getattr(fm.CutMix(num_classes=5), name)
    setattr(mix, name, value)
    assert getattr(mix, name) == value


def test_the_methods_of_a_random_mix_are_fixed():
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix()], num_classes=5)
    assert not hasattr(mix.methods, "append")
    with pytest.raises(TypeError):
        mix.weights[0] = 0.9
    assert set(mix.methods) <= set(mix.modules())
    mix.weights = None
    assert mix.weights == (0.5, 0.5)


def test_replicas_of_data_parallel(method):
    """What torch.nn.parallel.replicate does to a module, which needs GPUs: its children are set by their names."""
    mix = method(num_classes=5)
    replica = mix._replicate_for_data_parallel()
    for name, child in mix._modules.items():
        setattr(replica, name, copy.copy(child))
    assert same(batch(replica), batch(mix))


def test_shallow_copies_do_not_share_what_is_set():
    mix = fm.CutMix(num_classes=5)
    twin = copy.copy(mix)
    twin.num_classes = 7
    assert mix.num_classes == 5
    assert fm.RandomMix([mix]).num_classes == 5


def test_modules_pickled_before_a_keyword_was_added():
    """Their state has no such attribute: it is the default's."""
    mix = fm.RandomMix([fm.CutMix(num_classes=5), fm.MixUp(p=0.5)])
    old = copy.deepcopy(mix)
    for module in (old, *old.methods):
        for name in ("training_only", "_member"):
            module.__dict__.pop(name, None)
    old.__dict__["weights"] = [0.5, 0.5]  # It was a plain attribute then.
    old._modules["methods"] = old._modules.pop("_methods")
    old = pickle.loads(pickle.dumps(old))
    assert same(batch(old), batch(mix))
    assert repr(old) == repr(mix)
    old.eval()
    assert same(batch(old), batch(mix))


# --- attributes of what else there is ---


def handle():
    return fm.attach(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)), fm.CutMix(num_classes=5))


def wrapped(criterion):
    return handle().wrap(criterion)


def callback():
    required("lightning")
    from fusedmix.integrations.lightning import MixCallback

    return MixCallback(fm.CutMix())


OTHERS = [
    (handle, "mix", v2.MixUp(), TypeError),
    (handle, "mix", fm.MixUp(pairing="same_class"), ValueError),
    (handle, "model", torch.nn.Identity(), AttributeError),
    (handle, "plan", None, AttributeError),
    (lambda: wrapped(torch.nn.CrossEntropyLoss()), "targets", "soft", ValueError),
    (lambda: wrapped(torch.nn.CrossEntropyLoss()), "handle", None, AttributeError),
    (lambda: wrapped(torch.nn.functional.cross_entropy), "targets", "soft", ValueError),
    (lambda: fm.schedules.OffAfter(fm.MixUp(), 3), "epoch", -1, ValueError),
    (lambda: fm.schedules.OffAfter(fm.MixUp(), 3), "mix", fm.CutMix(), AttributeError),
    (lambda: fm.schedules.OffAfter(fm.MixUp(), 3), "last_epoch", 0.5, TypeError),
    (lambda: fm.schedules.LinearAlpha(fm.MixUp(), epochs=3), "end", -1.0, ValueError),
    (lambda: fm.schedules.CosineAlpha(fm.MixUp(), epochs=3), "epochs", 0, ValueError),
    (lambda: fm.schedules.LinearAlpha(fm.MixUp(), epochs=3), "base_alphas", [1.0], AttributeError),
    (lambda: fm.schedules.StepAlpha(fm.MixUp(), step_size=3), "step_size", 0, ValueError),
    (lambda: fm.schedules.StepAlpha(fm.MixUp(), step_size=3), "gamma", "x", TypeError),
    (callback, "mix", torch.nn.Identity(), TypeError),
    (callback, "mix", fm.CutMix(generator=torch.Generator()), ValueError),
    (callback, "schedules", 3, TypeError),
    (callback, "seed", 0.5, TypeError),
    (Mixup, "mixup_alpha", -1.0, ValueError),
    (Mixup, "cutmix_alpha", "1", TypeError),
    (Mixup, "cutmix_minmax", (0.9, 0.1), ValueError),
    (Mixup, "mix_prob", 2, ValueError),
    (Mixup, "switch_prob", -0.5, ValueError),
    (Mixup, "mode", "half", ValueError),
    (FastCollateMixup, "mode", "element", ValueError),
    (Mixup, "correct_lam", 1, TypeError),
    (Mixup, "label_smoothing", 1.5, ValueError),
    (Mixup, "num_classes", 0, ValueError),
    (Mixup, "multi_label", "no", TypeError),
    (Mixup, "backend", "numba", ValueError),
]


@pytest.mark.parametrize(("make", "name", "value", "error"), OTHERS)
def test_attributes_of_handles_schedules_and_adapters(make, name, value, error):
    made = make()
    before = getattr(made, name)
    with pytest.raises(error, match=r"prob\b" if name == "mix_prob" else name):
        setattr(made, name, value)
    assert getattr(made, name) is before


def test_other_attributes_set_later_act():
    attached = handle()
    attached.mix = fm.MixUp(num_classes=5, lam_range=(0.3, 0.3))
    attached.model(X)
    assert attached.plan.lam.unique().tolist() == pytest.approx([0.3])
    criterion = attached.wrap(torch.nn.CrossEntropyLoss(), targets="sparse")
    attached.mix.label_smoothing = 0.1
    with pytest.raises(ValueError, match="label_smoothing must be 0"):
        criterion(attached.model(X), Y)

    schedule = fm.schedules.LinearAlpha(fm.MixUp(), epochs=2)
    schedule.end, schedule.epochs = 0.5, 1
    schedule.step()
    assert schedule.mix.alpha == 0.5
    assert FastCollateMixup(mode="half").mode == "half"
    mixup = Mixup(mixup_alpha=1.0)
    mixup.cutmix_minmax = (0.2, 0.8)
    assert mixup.cutmix_alpha == Mixup(cutmix_minmax=(0.2, 0.8)).cutmix_alpha

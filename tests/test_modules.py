"""The modules where they are used: copied, pickled, printed, in DataLoader workers, on several ranks, resumed."""

from __future__ import annotations

import ast
import copy
import graphlib
import importlib.util
import os
import pickle
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.data import DataLoader, TensorDataset

import fusedmix as fm
from attaching import Chain
from conftest import option_id
from trainers import Collate

X, Y = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 4])


def same_batch(a, b, seed=5):
    batches = []
    for mix in (a, b):
        torch.manual_seed(seed)
        if mix.generator is not None:
            mix.generator.manual_seed(seed)
        batches.append(mix(X, Y))
    return all(torch.equal(s, t) for s, t in zip(*batches, strict=True))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("options", [{}, {"per": "sample"}, {"generator": torch.Generator()}], ids=option_id)
def test_copies_draw_the_same(method, duplicate, options):
    mix = method(num_classes=5, **options)
    twin = duplicate(mix)
    assert same_batch(mix, twin)
    if mix.generator is None:  # The repr of a generator is an address.
        assert repr(twin) == repr(mix)


def test_copies_own_their_alpha_and_generator():
    mix = fm.MixUp(num_classes=5, generator=torch.Generator())
    twin = copy.deepcopy(mix)
    twin.alpha = 0.0
    assert mix.alpha == 1.0
    state = mix.generator.get_state()
    twin(X, Y)
    assert torch.equal(mix.generator.get_state(), state)


def test_a_repr_says_what_differs_from_the_defaults():
    assert repr(fm.CutMix(alpha=0.5, num_classes=10)) == "CutMix(alpha=0.5, num_classes=10)"
    text = repr(
        fm.RandomMix([fm.MixUp(p=0.5), fm.HMix(ratio=0.5, variant="paper")], [1, 3], num_classes=10, per="sample")
    )
    for part in ("weights=[0.25, 0.75]", "num_classes=10", "per='sample'", "p=0.5", "ratio=0.5", "variant='paper'"):
        assert part in text


def test_reprs_of_what_belongs_to_a_module():
    """One line that tells what it is."""
    mix = fm.CutMix(per="sample", alpha=0.4)
    handle = fm.attach(Chain(), mix, layers=["a", ""])
    expected = f"MixHandle({mix!r}, mixes the output of layer 'a', the input of Chain)"
    assert repr(handle) == expected
    assert repr(handle.wrap(F.cross_entropy)) == "MixedFunction(cross_entropy, targets='dense')"
    handle.remove()
    assert repr(handle) == f"MixHandle({mix!r}, removed)"
    alpha = fm.schedules.CosineAlpha(mix, end=0.1, epochs=30)
    alpha.step()
    assert repr(alpha).startswith(f"CosineAlpha({mix!r}, ")
    assert "last_epoch=1" in repr(alpha)
    assert "epochs=30" in repr(alpha)
    assert "\n" not in repr(alpha) + repr(fm.schedules.OffAfter(mix, 3))


def test_the_repr_of_what_is_no_plan_any_more():
    """A plan is a tree, and a tree_map makes of one what it likes: errors and debuggers show that too."""
    plan = fm.CutMix(per="sample").sample(3, (20, 30))
    tree_map = torch.utils._pytree.tree_map
    assert repr(tree_map(lambda t: t[0], plan)) == "MixPlan(partner=(), lam=(), weight=(), masks=(12,))"
    assert repr(tree_map(lambda t: t.ndim, plan)) == "MixPlan(partner=1, lam=1, weight=1, masks=2)"
    assert repr(replace(plan, partner=plan.partner[0])).startswith("MixPlan(partner=(), lam=(3,), ")
    assert repr(replace(plan, masks=plan.masks[:, :0])).endswith("masks=(3, 0))")
    lam = torch.func.vmap(lambda lam: torch.ones(()).new_tensor(len(repr(replace(plan, lam=lam)))))(torch.rand(2, 3))
    assert lam.tolist() == [len("MixPlan(B=3, size 20×30, roll, per sample, cpu)")] * 2


PLANS = {
    "MixPlan(box, B=3, size 20×30, roll, per sample, lam 0.25 to 0.75, cpu)": (
        lambda: fm.CutMix(per="sample").sample(3, (20, 30), lam=torch.tensor([0.25, 0.75, 0.5]))
    ),
    "MixPlan(constant, B=4, size 7, flip, per pair, lam 0.50, cpu)": (
        lambda: fm.MixUp(per="pair").sample(4, (7,), lam=0.5)
    ),
    "MixPlan(gaussian, B=2, size 8×8×3, random, per batch, lam 0.30, cpu)": (
        lambda: fm.GMix(pairing="random").sample(2, (8, 8, 3), lam=0.3)
    ),
    "MixPlan(B=0, size 4×4, roll, per batch, cpu)": lambda: fm.FMix().sample(0, (4, 4)),
    "MixPlan(B=2, size 4×4, roll, per batch, meta)": lambda: fm.MixUp().sample(2, (4, 4)).to("meta"),
}


@pytest.mark.parametrize("expected", PLANS)
def test_the_repr_of_a_plan_is_one_line(expected):
    assert repr(PLANS[expected]()) == expected


def test_modules_have_no_state_to_load():
    """Nothing random or learned lives in a module, so a checkpoint of a model that holds one stays as it was."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), fm.CutMix(num_classes=3), fm.RandomMix([fm.MixUp()]))
    assert set(model.state_dict()) == {"0.weight", "0.bias"}
    model.to(torch.float16)
    assert model[1]._spec.dtype == torch.float64


def test_random_mix_follows_a_schedule_of_its_methods():
    mixup = fm.MixUp(num_classes=5)
    mix = fm.RandomMix([mixup])
    mixup.alpha = 0.0
    assert torch.equal(mix(X, Y)[0], X)


def test_what_is_fixed_at_construction_cannot_be_set():
    mix = fm.MixUp()
    for name in ("per", "pairing"):
        with pytest.raises(AttributeError):
            setattr(mix, name, "flip")
    assert fm.MixUp(per="pair").pairing == "flip"


def test_random_mix_takes_what_its_methods_agree_on():
    mix = fm.RandomMix([fm.MixUp(num_classes=5, pairing="flip"), fm.CutMix(num_classes=5), fm.GMix(per="sample")])
    assert (mix.num_classes, mix.pairing, mix.per, mix.sampling) == (5, "flip", "sample", "device")
    assert fm.RandomMix([fm.MixUp(num_classes=3), fm.CutMix(num_classes=4)], num_classes=6).num_classes == 6


def test_a_plan_is_a_pytree(method):
    plan = method(per="sample", pairing="random").sample(4, (5, 6), seed=1)
    leaves, spec = tree_flatten(plan)
    assert all(isinstance(leaf, torch.Tensor) and leaf.shape[0] == 4 for leaf in leaves)
    again = tree_unflatten(leaves, spec)
    assert isinstance(again, fm.MixPlan)
    assert torch.equal(again.mask(), plan.mask())
    assert tree_map(torch.clone, plan).size == plan.size
    assert torch.equal(pickle.loads(pickle.dumps(plan)).mask(), plan.mask())
    assert (plan.partner.dtype, plan.lam.dtype, plan.weight.dtype) == (torch.int64, torch.float32, torch.float64)
    assert plan.mask().dtype == torch.float32
    assert plan.mask().shape == (4, 5, 6)


@pytest.mark.parametrize("per", ["batch", "pair", "sample"])
def test_a_plan_has_the_length_of_its_batch(method, per):
    for b in (0, 1, 2, 5):
        plan = method(per=per, pairing="flip").sample(b, (4, 4))
        for tensor in (plan.partner, plan.lam, plan.weight):
            assert tensor.shape == (b,)
        assert plan.mask().shape == (b, 4, 4)
        if per != "sample" and b:
            first = plan.mask()[0]
            assert torch.equal(plan.mask()[plan.partner[0]], first)


# A spawned process imports torch anew.
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("sampling", ["host", "device", "own generator"])
def test_data_loader_workers(context, sampling):
    """The batches of an epoch differ, they are those of the loader's seed, and two workers draw differently."""
    data = TensorDataset(
        torch.arange(24.0).reshape(24, 1, 1, 1).expand(24, 1, 4, 4).contiguous(), torch.zeros(24).long()
    )
    if sampling == "own generator":  # Workers would draw alike, of copies of one generator: one worker must do.
        options, workers = {"generator": torch.Generator()}, 1
    else:
        options, workers = {"sampling": sampling}, 2
    collate = Collate(fm.MixUp(num_classes=2, **options))

    def epoch(seed):
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(
            data, 4, collate_fn=collate, num_workers=workers, multiprocessing_context=context, generator=generator
        )
        return [images for images, _ in loader]

    def lams(images):
        # Sample i holds the value i, its partner (i-1) mod 4 of the batch, so x̃_1 - x_0 is λ.
        return [float(x[1, 0, 0, 0] - 4 * i) for i, x in enumerate(images)]

    first = epoch(0)
    assert all(torch.equal(a, b) for a, b in zip(first, epoch(0), strict=True))
    drawn = lams(first)
    assert len({round(lam, 6) for lam in drawn}) == 6, "two batches were mixed by one draw"
    assert all(0 <= lam <= 1 for lam in drawn)
    assert sampling == "own generator" or not torch.equal(first[0], epoch(1)[0])


def test_resuming_reproduces():
    mix = fm.RandomMix([fm.MixUp(), fm.CutMix(), fm.GMix()], num_classes=5, per="sample", pairing="random")
    torch.manual_seed(3)
    mix(X, Y)
    checkpoint = torch.get_rng_state()
    rest = [mix(X, Y) for _ in range(3)]
    torch.manual_seed(99)
    torch.set_rng_state(checkpoint)
    for (a, t), (b, u) in zip(rest, [mix(X, Y) for _ in range(3)], strict=True):
        assert torch.equal(a, b)
        assert torch.equal(t, u)


RANK = """
import sys, torch, torch.distributed as dist
import fusedmix as fm

dist.init_process_group("gloo")
rank, sampling = dist.get_rank(), sys.argv[1]
torch.manual_seed(100 + rank)
x, y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
model = torch.nn.parallel.DistributedDataParallel(
    torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)), broadcast_buffers=False
)
mix = fm.CutMix(num_classes=4, sampling=sampling, per="sample")
optimizer = torch.optim.SGD(model.parameters(), 0.1)

def run(steps):
    seen = []
    for _ in range(steps):
        images, targets = mix(x, y)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        seen.append(images)
    return torch.stack(seen)

run(1)
saved = torch.get_rng_state()
mine = run(2)
every = [torch.empty_like(mine) for _ in range(2)]
dist.all_gather(every, mine)
assert not torch.equal(every[0], every[1]), "two ranks drew the same"
torch.set_rng_state(saved)
assert torch.equal(run(2), mine), "resuming drew something else"
weights = [torch.empty_like(model.module[1].weight) for _ in range(2)]
dist.all_gather(weights, model.module[1].weight.detach())
assert torch.equal(weights[0], weights[1])
"""


# Nobody leaves while the other still talks to it; then at once, because torch's threads may outlive what they use, and
# abort the process ("terminate called without an active exception").
LEAVE = """
import os
dist.barrier()
print(f"rank {rank} ok", flush=True)
os._exit(0)
"""


def on_two_ranks(tmp_path, program, *arguments):
    script = tmp_path / "rank.py"
    script.write_text(program + LEAVE)
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert all(f"rank {rank} ok" in run.stdout for rank in range(2))


@pytest.mark.thorough
@pytest.mark.parametrize("sampling", ["host", "device"])
def test_two_ranks(tmp_path, sampling):
    on_two_ranks(tmp_path, RANK, sampling)


ATTACHED_RANK = """
import torch, torch.distributed as dist
import torch.nn.functional as F
import fusedmix as fm
from torch import nn

dist.init_process_group("gloo")
rank = dist.get_rank()
x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(rank))
y = torch.tensor([0, 1, 2, 3, 3, 1])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Linear(144, 4)
    def forward(self, x, place=None, plan=None):
        x = self.one(fm.mix(x, plan) if place == "" else x)
        return self.two((fm.mix(x, plan) if place == "one" else x).tanh().flatten(1))

for where in ("inside", "around"):
    net, plain = Net(), Net()
    ddp = nn.parallel.DistributedDataParallel(net)
    handle = fm.attach(net if where == "inside" else ddp, fm.CutMix(per="sample"), layers=["", "one"])
    criterion = handle.wrap(nn.CrossEntropyLoss())
    assert not list(ddp.buffers())
    optimizer, by_hand = (torch.optim.SGD(m.parameters(), 0.1) for m in (net, plain))
    torch.manual_seed(100 + rank)

    def run(steps):
        lams, places = [], set()
        for _ in range(steps):
            optimizer.zero_grad()
            plain.load_state_dict(net.state_dict())
            criterion(ddp(x), y).backward()
            plan = handle.plan
            place = "" if plan.size == (8, 8) else "one"
            by_hand.zero_grad()
            F.cross_entropy(plain(x, place, plan), fm.mix_labels(y, plan, num_classes=4)).backward()
            for p, q in zip(net.parameters(), plain.parameters()):
                mean = q.grad.clone()
                dist.all_reduce(mean)
                torch.testing.assert_close(p.grad, mean / 2)
            optimizer.step()
            lams.append(plan.lam)
            places.add(place)
        return torch.stack(lams), places

    run(1)
    saved = torch.get_rng_state()
    mine, places = run(6)
    assert places == {"", "one"}
    every = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(every, mine)
    assert not (every[0] == every[1]).any(), "two ranks drew the same"
    torch.set_rng_state(saved)
    assert torch.equal(run(6)[0], mine), "resuming drew something else"
    ddp.eval()
    torch.testing.assert_close(criterion(ddp(x), y), F.cross_entropy(net.forward(x), y))
    dist.barrier()
    del ddp
"""


@pytest.mark.thorough
def test_two_ranks_of_an_attached_model(tmp_path):
    on_two_ranks(tmp_path, ATTACHED_RANK)


def test_importing_is_light():
    """Importing touches no GPU, compiles nothing and imports none of the optional packages."""
    code = (
        "import sys, torch; before = set(sys.modules); import fusedmix; new = set(sys.modules) - before;"
        "bad = [m for m in new if m.split('.')[0] in ('torchvision','timm','triton','matplotlib','sklearn','skimage')];"
        "assert not bad, bad; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


NAMES_OF_ITS_OWN = {"functional", "schedules"}  # They are modules, and public.


def test_dir_shows_the_public_names():
    assert set(dir(fm)) == set(fm.__all__)
    assert all(hasattr(fm, name) for name in dir(fm))
    modules = {name for name in dir(fm) if isinstance(getattr(fm, name), types.ModuleType)}
    assert modules == NAMES_OF_ITS_OWN


@pytest.mark.parametrize("first", ["", "import torch", "from fusedmix.transforms import CutMix"])
def test_names_come_when_they_are_used(first):
    """Whatever was imported before; `import fusedmix` alone imports no PyTorch, and after it everything is there."""
    code = (
        f"import sys\n{first}\nbefore = 'torch' in sys.modules\nimport fusedmix as fm\n"
        "assert ('torch' in sys.modules) == before\n"
        "from fusedmix import MixUp, schedules, ops\n"
        "import torch\n"
        "assert fm.MixUp is MixUp and fm.transforms.MixUp is MixUp and fm.ops is ops\n"
        "assert torch.ops.fusedmix_reference.mix and sorted(fm.__all__) == dir(fm)\n"
        "star = {}\nexec('from fusedmix import *', star)\nassert set(fm.__all__) <= set(star)\n"
        "for name in ('nothing', '__wrapped__'):\n    assert not hasattr(fm, name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def modules_of_the_package():
    root = Path(fm.__file__).parent
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__")
        if path.stem != "__main__" and "integrations." not in name:
            yield name


def test_any_module_may_be_imported_first():
    """There is no circle among the imports."""
    tree = {
        name: ast.parse(Path(importlib.util.find_spec(name).origin).read_text()) for name in modules_of_the_package()
    }
    needs = {name: set() for name in tree}
    for name, parsed in tree.items():
        for node in parsed.body:  # Only what is imported with the module counts.
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fusedmix":
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                needs[name] |= {module if module in tree else node.module for module in whole} & set(tree)
    needs["fusedmix"] = set()  # The package imports nothing before somebody asks.
    tuple(graphlib.TopologicalSorter(needs).static_order())  # This raises CycleError where there is a circle.

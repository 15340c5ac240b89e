"""What cpp computes depends on no threads, instruction set or process."""

from __future__ import annotations

import itertools
import os
import threading

import pytest
import torch

import fusedmix as fm
from batches import DTYPES, images_of
from callers import masks_of, python
from conftest import METHODS
from fusedmix.methods import Resize
from operators.test_gathers import patches_of, terms_of
from operators.test_step import K, seeded
from oracle import bits

pytestmark = pytest.mark.usefixtures("cpp")

# Enough for several threads, which share out places or samples.
SHAPES = ((5, 3, 67, 129), (3, 2, 9, 40, 61), (6, 2, 9001), (97, 3, 13, 17), (200, 2, 90))


def everything(cpp):
    """All that the backend computes, bit for bit, under names."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    for number, ((name, method), shape) in enumerate(itertools.product(METHODS.items(), SHAPES)):
        size = shape[2:]
        per, pairing = ("batch", "flip") if number % 2 else ("sample", "random")
        plan = method(per=per, pairing=pairing).sample(shape[0], size, seed=number)
        masks = masks_of(plan)
        at = f"{name} {shape}"
        for index, tensor in enumerate((*masks[:2], plan.lam, plan.weight, cpp.mask(*masks[1:3], size))):
            found[f"{at} plan {index}"] = bits(tensor)
        values = torch.rand(shape, dtype=torch.float64, generator=generator) * 256
        for dtype, last in itertools.product(DTYPES, (False, True)):
            x = values.to(dtype)
            x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
            where = f"{at} {dtype} {last}"
            found[f"{where} mix"] = bits(cpp.mix(x, *masks))
            if dtype != torch.uint8:
                found[f"{where} adjoint"] = bits(cpp.mix_adjoint(x, *masks))
            found[f"{where} mix_with"] = bits(cpp.mix_with(x, x, *masks))
            if number < len(SHAPES):  # They ask for no method.
                patches = patches_of(shape, len(size), 2, number)
                found[f"{where} paste"] = bits(cpp.paste(x, *patches, number % len(Resize)))
                found[f"{where} blend"] = bits(cpp.blend(x, *terms_of(shape, 3, number)))
            cpp.mix_(x, *masks)
            found[f"{where} mix_"] = bits(x)
        for labels in (torch.arange(shape[0]), torch.rand(shape[0], 5000, generator=generator).half()):
            targets = cpp.mix_labels(labels, plan.partner, plan.weight, 5000, 0.1)
            found[f"{at} {labels.dtype} targets"] = bits(targets)
    return found


@pytest.mark.thorough
def test_threads_change_nothing(cpp):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = everything(cpp)
        for count in (2, 5):
            torch.set_num_threads(count)
            shared = everything(cpp)
            assert alone.keys() == shared.keys()
            assert [name for name in alone if not torch.equal(alone[name], shared[name])] == []
    finally:
        torch.set_num_threads(threads)


@pytest.mark.thorough
def test_instruction_sets_change_nothing():
    code = """
        import hashlib, json
        import torch
        from fusedmix import backends
        from operators.test_threads import everything

        torch.set_num_threads(1)
        digests = {}
        for name, x in everything(backends.operators("cpu", "cpp")).items():
            digests[name] = hashlib.sha256(memoryview(x.contiguous().view(torch.uint8).numpy())).hexdigest()
        print(json.dumps(digests))
    """
    generic, best = (python(code, FUSEDMIX_ISA=isa) for isa in ("generic", "avx2"))
    assert generic.keys() == best.keys()
    assert [name for name in generic if generic[name] != best[name]] == []


def test_calls_from_several_threads(cpp):
    plans = [
        method(per="sample", pairing="random").sample(6, (40, 41), seed=i) for i, method in enumerate(METHODS.values())
    ]
    x = images_of((6, 3, 40, 41))
    expected = [fm.mix(x, plan, backend="cpp") for plan in plans]
    wrong = []

    def work():
        for _ in range(20):
            for plan, mixed in zip(plans, expected, strict=True):
                if not torch.equal(fm.mix(x, plan, backend="cpp"), mixed):
                    wrong.append(plan)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class Mixed(torch.utils.data.Dataset):
    """Batches that a worker mixes, and whether the C++ backend did it."""

    def __init__(self, module):
        self.module = module

    def __len__(self):
        return 4

    def __getitem__(self, index):
        (images, targets), _, ran = seeded(
            index, self.module, images_of((32, 3, 80, 80), seed=index), torch.arange(32) % K
        )
        # In a spawned worker the first call finds the library not loaded yet, and goes the general way.
        return images, targets, {name for name in ran if name.startswith("fusedmix_")} == {"fusedmix_cpp::mix_batch"}


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.thorough)])
def test_dataloader_workers(start):
    """Workers mix by the C++ backend, also those that were forked from a process that did so on several threads."""
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip("not on this system")
    dataset = Mixed(fm.CutMix(num_classes=K))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        expected = [dataset[index] for index in range(len(dataset))]
    finally:
        torch.set_num_threads(threads)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2 if start == "fork" else 1, multiprocessing_context=start, timeout=100
    )
    for (images, targets, by_cpp), (same_images, same_targets, _) in zip(loader, expected, strict=True):
        assert by_cpp
        assert torch.equal(images, same_images)
        assert torch.equal(targets, same_targets)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_of_a_threaded_parent():
    """It neither hangs nor differs once it has set its threads to one, as all of PyTorch needs it to where OpenMP's are
    GNU's."""
    code = """
        import json, os
        import torch
        import fusedmix as fm

        torch.set_num_threads(4)
        x = torch.arange(64 * 3 * 64 * 64.0).reshape(64, 3, 64, 64)
        plan = fm.GMix(per="sample", pairing="random").sample(64, (64, 64), seed=1)
        mixed = fm.mix(x, plan, backend="cpp")
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            same = torch.equal(fm.mix(x, plan, backend="cpp"), mixed)
            os._exit(0 if same else 1)
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
    """
    assert python(code, timeout=60) == 0

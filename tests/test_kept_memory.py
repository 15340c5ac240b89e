"""The memory of large batches on the CPU: kept for the next ones, and never lent twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

import fusedmix as fm

LARGE = (44, 3, 256, 256)  # 33 MiB of float32

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(torch.__version__ < "2.11", reason="before 2.11 torch lets nobody keep the memory of a tensor"),
]


def mixed(x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """By cpp, and what the reference says."""
    plan = fm.CutMix(per="sample").sample(len(x), x.shape[2:], seed=seed)
    return fm.mix(x, plan, backend="cpp"), fm.mix(x, plan, backend="reference")


def test_memory_of_a_batch_that_is_gone_serves_the_next_one():
    x = torch.rand(LARGE)
    first, expected = mixed(x)
    assert torch.equal(first, expected)
    place = first.data_ptr()
    del first
    second, expected = mixed(x, seed=1)  # over what the first one left there
    assert second.data_ptr() == place
    assert torch.equal(second, expected)


def test_batches_that_live_do_not_share_memory():
    x = torch.rand(LARGE)
    for _ in range(2):
        alive = [mixed(x, seed) for seed in range(4)]  # more than are kept
        assert len({batch.data_ptr() for batch, _ in alive}) == 4
        assert all(torch.equal(batch, expected) for batch, expected in alive)
        del alive


def test_a_view_keeps_the_memory():
    x = torch.rand(LARGE)
    batch, expected = mixed(x)
    row = batch[3, 1]
    del batch
    other, _ = mixed(x, seed=1)
    assert torch.equal(row, expected[3, 1])
    assert other.data_ptr() != row.untyped_storage().data_ptr()


@pytest.mark.parametrize(("batch", "reused"), [(LARGE[0], True), (2 * LARGE[0] - 4, True), (2 * LARGE[0] + 4, False)])
def test_memory_is_for_tensors_of_more_than_half_its_size(batch: int, reused: bool):
    x = torch.rand(batch, *LARGE[1:])
    both = [mixed(x)[0], mixed(x)[0]]
    kept = {each.data_ptr() for each in both}
    del both  # and with them whatever was kept before
    assert (mixed(x[: LARGE[0]])[0].data_ptr() in kept) == reused


def test_layout_and_dtype_are_those_of_the_new_tensor():
    x = torch.rand(2 * LARGE[0], *LARGE[1:])
    for each in (x[: LARGE[0]], x.half(), x[: LARGE[0]].contiguous(memory_format=torch.channels_last)):
        batch, expected = mixed(each)
        assert batch.dtype == each.dtype
        assert batch.stride() == each.stride()
        assert torch.equal(batch, expected)


def test_threads_give_back_what_others_took():
    x = torch.rand(LARGE)
    wrong = []

    def work(seed: int) -> None:
        for step in range(4):
            batch, expected = mixed(x, 10 * seed + step)
            if not torch.equal(batch, expected):
                wrong.append(seed)
            given_back = threading.Thread(target=lambda held: held.clear(), args=([batch],))
            del batch
            given_back.start()
            given_back.join()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts what Linux calls page faults")
@pytest.mark.parametrize(("kept", "most"), [("1", 50), ("0", None)])
def test_pages_are_asked_for_once(kept: str, most: int | None):
    """Of large pages a batch has 16, of small ones 8,448."""
    program = f"""
import resource, torch, fusedmix as fm
x = torch.rand{LARGE}
plan = fm.MixUp().sample(len(x), x.shape[2:])
fm.mix(x, plan, backend="cpp")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fm.mix(x, plan, backend="cpp")
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    env = {**os.environ, "FUSEDMIX_KEEP_MEMORY": kept}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    faults = int(done.stdout)
    assert faults < most if most is not None else faults >= 10 * 16

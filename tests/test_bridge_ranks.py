"""What the processes of one launch tell each other through its store, here in threads; and batches that do not fit."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, tensor

from s3prl_ekd.bridge import memory, ranks
from s3prl_ekd.errors import EkdError


def world(rank: int, store: Any, size: int = 2, local_rank: int | None = None, node: int = 0) -> ranks.World:
    made = ranks.World()
    made.rank, made.size, made.store, made.node = rank, size, store, node
    made.local_rank = rank if local_rank is None else local_rank
    return made


def test_a_rank_is_told_who_it_is_by_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "2"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    found = ranks.World()
    assert (found.size, found.rank, found.local_rank, found.node) == (8, 5, 1, 2)
    assert found.distributed and not found.is_rank_zero and found.where.startswith(" (rank 5 on ")
    monkeypatch.delenv("LOCAL_RANK")
    assert ranks.World().local_rank == 5  # all on one machine
    for name in told:
        monkeypatch.delenv(name, raising=False)
    alone = ranks.World()
    assert not alone.distributed and alone.is_rank_zero and alone.where == ""


@pytest.fixture
def store() -> Any:
    return dist.HashStore()


def at_once(*acts: Callable[[], Any]) -> list[Any]:
    """What each rank's act came to: its value or its error."""
    found: list[Any] = [None] * len(acts)

    def run(index: int) -> None:
        try:
            found[index] = acts[index]()
        except EkdError as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_ranks_that_found_another_checkpoint_are_refused(store: Any) -> None:
    """A folder that the nodes do not share: one would go on from step 8, its peers begin."""
    first, second, third = (world(rank, store, 3) for rank in range(3))
    same, other, none = at_once(
        lambda: first.agree("checkpoint", "x/states-8.ckpt"),
        lambda: second.agree("checkpoint", "x/states-8.ckpt"),
        lambda: third.agree("checkpoint", ""),
    )
    assert same is None and other is None
    assert str(none).startswith("checkpoint: x/states-8.ckpt on rank 0, but none here; the experiment folder and the ")
    world(0, None, 1).agree("checkpoint", "alone")  # no store is asked


def test_one_rank_of_each_node_downloads_first(store: Any) -> None:
    order: list[str] = []

    def load(one: ranks.World) -> None:
        with one.local_rank_zero_first():
            if one.local_rank == 0:
                time.sleep(0.2)
            order.append(f"{one.node}.{one.local_rank}")

    worlds = [world(rank, store, 4, local_rank=rank % 2, node=rank // 2) for rank in range(4)]
    assert at_once(*(lambda one=one: (load(one), order.copy())[1] for one in worlds)) == [order.copy()] * 4  # type: ignore[misc]
    assert sorted(order) == ["0.0", "0.1", "1.0", "1.1"]
    assert order.index("0.0") < order.index("0.1") and order.index("1.0") < order.index("1.1")
    load(world(0, None, 1))


def test_an_error_is_said_once_on_each_node_and_ends_who_waits(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")  # as torchrun: the store outlives its first rank
    monkeypatch.setattr(ranks.time, "sleep", lambda seconds: None)
    said = [world(rank, store, 4, local_rank=rank % 2, node=rank // 2).may_report(f"of {rank}") for rank in range(4)]
    assert said == [True, False, True, False]
    with pytest.raises(ranks.PeerError, match="^of 3$"):
        world(1, store).agree("checkpoint", "")
    assert world(0, None, 1).may_report("alone")


def test_who_never_comes_is_waited_for_no_longer_than_said(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PATIENCE", timedelta(seconds=0.2))
    with pytest.raises(EkdError, match=r"not all of the 2 ranks came within 0:00:00.200000 \(start/all\)"):
        world(0, store)._barrier("start")


@pytest.mark.parametrize("error", [RuntimeError("[../gloo/x.cc] Connection closed"), RuntimeError("NCCL error")])
def test_a_lost_peer(error: RuntimeError) -> None:
    assert ranks.lost_peer(error) and not ranks.lost_peer(RuntimeError("shapes do not fit"))


def take_gpus(
    monkeypatch: pytest.MonkeyPatch, store: Any, visible: list[list[str]], device: str = "cuda"
) -> list[tuple[int, int]]:
    """(rank, GPU) as ranks of one machine take them, each of which sees GPUs of these UUIDs."""
    taken: list[tuple[int, int]] = []
    for rank, gpus in enumerate(visible):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: len(gpus))
        monkeypatch.setattr(torch.cuda, "set_device", lambda gpu, rank=rank: taken.append((rank, gpu)))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu, gpus=gpus: SimpleNamespace(uuid=gpus[gpu]))
        monkeypatch.setattr(ranks.World, "join", lambda self, backend: None)
        world(rank, store, len(visible)).start(device)
    return taken


def test_each_rank_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch, store: Any) -> None:
    assert take_gpus(monkeypatch, store, 2 * [["A", "B"]]) == [(0, 0), (1, 1)]
    with pytest.raises(EkdError, match="--nproc_per_node: this machine has 2 GPUs, no more ranks fit"):
        take_gpus(monkeypatch, store, 3 * [["A", "B"]])
    with pytest.raises(EkdError, match="--device cuda:1: each rank takes a GPU of its own; give --device cuda"):
        take_gpus(monkeypatch, store, 2 * [["A", "B"]], "cuda:1")


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_ranks_that_see_one_gpu_each_take_it(monkeypatch: pytest.MonkeyPatch, store: Any, device: str) -> None:
    """As under ``srun --gpus-per-task=1``, where each rank's GPU is cuda:0 to it."""
    assert take_gpus(monkeypatch, store, [["A"], ["B"]], device) == [(0, 0), (1, 0)]
    with pytest.raises(EkdError, match="--nproc_per_node: another rank has taken the only GPU that this one sees"):
        take_gpus(monkeypatch, store, [["C"], ["C"]], device)


def training(skip: memory.SkipBatch, steps: list[int], accumulated: int = 0) -> tuple[Any, ...]:
    """As s3prl's runners: each of these steps meets a batch that does not fit."""
    gradient_accumulate_steps, backward_steps = 4, accumulated
    for global_step in steps:
        wavs, features, loss = [[0.0] * 16_000, [0.0] * 8_000], tensor(1.0), tensor(2.0)
        try:
            raise RuntimeError(f"CUDA out of memory at step {global_step} of {gradient_accumulate_steps}")
        except RuntimeError:
            skip()
    return backward_steps, wavs, features, loss


def test_ten_batches_in_a_row_are_hopeless_ten_in_all_are_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="s3prl_ekd")
    emptied: list[int] = []
    skip = memory.SkipBatch(lambda: emptied.append(1), "ADVICE")
    training(skip, [step for step in range(9) for _ in range(9)])
    assert len(emptied) == 81
    assert caplog.messages[-1] == (
        "step 8: a batch of 2 clips, 2 s of audio, does not fit into the GPU's memory and is skipped; ADVICE"
    )
    with pytest.raises(EkdError, match="out of GPU memory at step 8: 10 batches in a row do not fit; ADVICE"):
        training(skip, [8])
    skip()  # an evaluation's, where nothing went wrong
    assert len(emptied) == 83


@pytest.mark.parametrize(("counted", "left"), [(0, 0), (7, 4), (8, 8)])
def test_a_batch_that_did_not_fit_leaves_nothing_behind(counted: int, left: int) -> None:
    """Neither its memory nor, of the batches that were accumulated for its step, their number."""
    found: tuple[int, *tuple[Tensor | None, ...]] = training(memory.SkipBatch(lambda: None), [1], counted)
    assert found == (left, None, None, None)

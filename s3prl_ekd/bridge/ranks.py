"""The processes of one torchrun launch: joining them, one voice for errors, one writer of files.

A process is told who it is by environment variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), which
torchrun sets. What a training step exchanges is ``distributed.py``'s.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from s3prl_ekd.errors import EkdError

TORCHRUN = "torchrun --nproc_per_node=N --no-python run_pretrain.py"
TORCHRUN_DOWNSTREAM = "torchrun --nproc_per_node=N --no-python run_downstream.py"
# How long ranks wait for each other in an exchange before they give up. In pretraining for a checkpoint to be written,
# or at the start for another node's downloads; downstream for rank 0, which evaluates alone.
PATIENCE = timedelta(minutes=30)
EVALUATION = timedelta(hours=6)


class World:
    """This process and its peers; of size 1 without a launcher, when most of what is here does nothing."""

    def __init__(self) -> None:
        """Reads the environment only; torch is not imported yet."""
        self.size, self.rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
        self.local_rank = _number("LOCAL_RANK", self.rank)
        self.node = _number("GROUP_RANK", 0)
        self.store: Any = None

    @property
    def distributed(self) -> bool:
        return self.size > 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether files, messages and the progress bar are this process's."""
        return self.rank == 0

    def connect(self) -> None:
        """Reach the launch's key-value store, so that one rank speaks for all; silence the others' standard output.

        Raises:
            EkdError: a variable of the launch is missing or not a number, or nobody answers there.
        """
        for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "GROUP_RANK"):
            if not os.environ.get(name, "0").isdigit():
                raise EkdError(f"{name}={os.environ[name]}: expected a whole number, as torchrun sets it")
        if not self.distributed:
            return
        import torch.distributed as dist

        if not self.is_rank_zero:
            sys.stdout = open(os.devnull, "w")  # s3prl prints as if it were alone
            warnings.simplefilter("ignore")
        try:
            self.store, _, _ = next(dist.rendezvous("env://", timeout=PATIENCE))
        except (ValueError, RuntimeError) as error:
            raise EkdError(
                f"WORLD_SIZE is {self.size}, but torchrun did not start this process, or is out of reach: {error}"
            ) from error
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = dist.PrefixStore(f"s3prl_ekd/{attempt}", self.store)

    def start(self, device: str) -> None:
        """Join the process group (gloo, with nccl for what lies on GPUs) and take this rank's GPU.

        Args:
            device: "cuda" (one GPU a rank) or "cpu"; "cuda:0" where this rank sees no other.

        Raises:
            EkdError: there are fewer GPUs than ranks, or ``device`` names one GPU for all.
        """
        if not self.distributed:
            return
        backend = "gloo"
        if device.startswith("cuda"):
            self.take_gpu(device, self.local_rank, "--nproc_per_node")
            backend = "cpu:gloo,cuda:nccl"
        self.join(backend)

    def take_gpu(self, device: str, local_rank: int, option: str) -> None:
        """Make current the GPU of that number, or the only one that this process sees, whatever its number.

        Schedulers show each rank its own GPU alone (``srun --gpus-per-task=1``), and it is cuda:0 to all of them.

        Args:
            device: "cuda", or "cuda:0" where it is the only one.
            option: of the number, for an error.

        Raises:
            EkdError: there are fewer GPUs than ranks, or ``device`` names one GPU for all.
        """
        import torch

        count = torch.cuda.device_count()
        if count != 1:
            if device != "cuda":
                raise EkdError(f"--device {device}: each rank takes a GPU of its own; give --device cuda")
            if local_rank >= count:
                raise EkdError(f"{option}: this machine has {count} GPUs, no more ranks fit")
            torch.cuda.set_device(local_rank)
            return
        torch.cuda.set_device(0)
        gpu = torch.cuda.get_device_properties(0).uuid
        if self.store is not None and self.store.add(f"gpu/{gpu}", 1) > 1:
            raise EkdError(f"{option}: another rank has taken the only GPU that this one sees, no more ranks fit")

    def join(self, backend: str, timeout: timedelta = PATIENCE) -> None:
        """``torch.distributed.init_process_group``, over the store that is connected already."""
        import torch.distributed as dist

        known: dict[str, Any] = {}
        if self.store is not None:
            self._barrier("start")
            known = {"store": self.store, "rank": self.rank, "world_size": self.size}
        dist.init_process_group(backend, timeout=timeout, **known)

    @staticmethod
    def end() -> None:
        """Leave the process group, if one was joined."""
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()

    # --------------------------------------------------------------------------------------------------- one voice

    def may_report(self, text: str) -> bool:
        """Leave an error for the other ranks to find; whether it is to be printed here: once on each node."""
        if not self.distributed:
            return True
        if self.store is None:
            return self.is_rank_zero
        if self.local_rank > 0:
            time.sleep(1.0)  # what all ranks meet, such as a mistake in a config, is the first rank's to say
        try:
            self.store.set("failed", text)
            mine = self.store.add(f"reported/{self.node}", 1) == 1
        except RuntimeError:  # the launcher is gone
            return True
        if self.is_rank_zero and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(2.0)  # without torchrun the store ends with this process
        return mine

    @property
    def where(self) -> str:
        """For messages: empty on the first rank, else " (rank 3 on HOST)"."""
        return "" if self.is_rank_zero else f" (rank {self.rank} on {socket.gethostname()})"

    def agree(self, what: str, value: str) -> None:
        """See that this rank found the same as the first one.

        Raises:
            EkdError: it did not.
        """
        if not self.distributed:
            return
        if self.is_rank_zero:
            self.store.set(what, value)
            return
        self._await(what)
        theirs = self.store.get(what).decode()
        if theirs != value:
            raise EkdError(
                f"{what}: {theirs or 'none'} on rank 0, but {value or 'none'} here; the experiment folder and the data "
                "must be shared by all nodes"
            )

    @contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        """On each node one rank goes first, then its neighbours: what it downloads, they find. All end together."""
        if not self.distributed:
            yield
            return
        key = f"went_first/{self.node}"
        if self.local_rank > 0:
            self._await(key)
        yield
        if self.local_rank == 0:
            self.store.set(key, "1")
        self._barrier("loaded")

    def _barrier(self, place: str) -> None:
        """Wait for all ranks, where an exchange would wait for ever for one that has failed already."""
        if self.store.add(f"{place}/arrived", 1) == self.size:
            self.store.set(f"{place}/all", "1")
        self._await(f"{place}/all")

    def _await(self, key: str) -> None:
        """Wait for a key of the store, as store.get would, but within reach of signals and of other ranks' errors.

        Raises:
            PeerError: another rank has failed.
            EkdError: nothing came for :data:`PATIENCE`.
        """
        deadline = time.monotonic() + PATIENCE.total_seconds()
        while not self.store.check([key]):
            if self.store.check(["failed"]):
                raise PeerError(self.store.get("failed").decode())
            if time.monotonic() > deadline:
                raise EkdError(f"not all of the {self.size} ranks came within {PATIENCE} ({key})")
            time.sleep(0.1)


class PeerError(EkdError):
    """Another rank's error, in its own words."""


def lost_peer(error: RuntimeError) -> bool:
    """Whether an exchange failed since a peer is gone: not this rank's own error."""
    import torch.distributed as dist

    words = ("gloo", "NCCL", "Connection closed by peer")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


def downstream_size(args: Namespace) -> int:
    """Processes of a distributed downstream run, as s3prl's script takes it; 0 of one without torchrun."""
    return _number("WORLD_SIZE", 1) if args.local_rank is not None else 0


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default

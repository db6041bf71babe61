"""Where a downstream training stands in its epoch: kept in its checkpoints, and found again by the run that goes on.

s3prl's runner keeps the number of the epoch alone, and begins that epoch anew with the random states that the program
starts with: the same first batches come again after every stop, and a score is another than without one. Here the
random states of the epoch's start give its order again, what was trained on is read and left out, and the random states
of the checkpoint go on: on a CPU bit for bit the run that was never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_BAR_AFTER = 5  # seconds

KEY = "EKD_Resume"
"""In a checkpoint: the batches of the epoch and how many of them were drawn, the random states at its start and now,
the scale of fp16's loss."""


class TrainingPlace:
    """The place of one training, in one process; where several train together, s3prl saves the state of one.

    Args:
        save: the runner's ``torch.save``.
    """

    def __init__(self, save: Callable[..., None]) -> None:
        self._save = save
        self._loader: _Followed | None = None  # of the epoch
        self._go_on: Mapping[str, Any] | None = None  # from here, with the next epoch that begins
        self._evaluates = False

    def follow(self, get_dataloader: Callable[..., Any], state: Mapping[str, Any]) -> Callable[..., Any]:
        """Note what a training draws, from the place on that a checkpoint holds.

        Args:
            get_dataloader: of the task's expert.
            state: the checkpoint that the run goes on from; empty for none. One of s3prl's own holds no place.

        Returns:
            What takes the place of ``get_dataloader``.
        """
        from s3prl_ekd.bridge.scaler import load_state_on_create
        from s3prl_ekd.random_state import random_state, set_random_state

        self._go_on = state.get(KEY)
        load_state_on_create(self._go_on["scaler"] if self._go_on else None)

        def followed(*args: Any, **kwargs: Any) -> Any:
            if self._evaluates:
                return get_dataloader(*args, **kwargs)
            if self._go_on is not None:
                set_random_state(self._go_on["start"])
            start = random_state()
            loader = get_dataloader(*args, **kwargs)  # an expert may draw here too
            self._loader, self._go_on = _Followed(loader, start, self._go_on), None
            return self._loader

        return followed

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """What is drawn meanwhile is not trained on."""
        self._evaluates = True
        try:
            yield
        finally:
            self._evaluates = False

    def save(self, state: Any, path: str) -> None:
        """``torch.save``, with the place in the checkpoint."""
        from s3prl_ekd.bridge.scaler import scaler_state
        from s3prl_ekd.random_state import random_state

        if self._loader is not None:
            state = {**state, KEY: self._loader.place() | {"now": random_state(), "scaler": scaler_state()}}
        self._save(state, path)


class _Followed:
    """The batches of one epoch, counted; where an earlier run stopped in it, those that are left.

    Args:
        loader: of the epoch.
        start: the random states at its start.
        place: that of the checkpoint; None for an epoch that begins.
    """

    def __init__(self, loader: DataLoader[Any], start: dict[str, Any], place: Mapping[str, Any] | None) -> None:
        self._loader, self._start = loader, start
        self._from = place
        self._drawn = 0
        if place is None:
            return
        was, now = place["of"], len(loader)
        if was == now:
            tqdm.write(f"[ekd] {place['drawn']} of the epoch's {now} batches were trained on already")
        else:
            tqdm.write(f"[ekd] the epoch had {was} batches and has {now} now: it starts again, some clips come twice")
            self._from = None

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        from s3prl_ekd.random_state import set_random_state

        place, self._from = self._from, None
        over = place is not None and place["drawn"] == len(self)
        batches: Iterator[Any] = iter(()) if over else iter(self._loader)
        if place is not None:
            self._drawn = place["drawn"]
            again = islice(batches, self._drawn)
            for _ in tqdm(again, "read again", self._drawn, leave=False, dynamic_ncols=True, delay=_BAR_AFTER):
                pass
            set_random_state(place["now"])
        for batch in batches:
            self._drawn += 1
            yield batch

    def place(self) -> dict[str, Any]:
        """What gives the rest of this epoch again."""
        return {"of": len(self), "drawn": self._drawn, "start": self._start}

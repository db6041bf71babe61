"""Hidden states of clips on disk, one ``.npy`` file each: ``FOLDER/ab/ab12...ef.npy``, float32 (S, T, D).

Many processes may read and write one folder: a file appears whole or not at all, and all would write the same. Nothing
waits for the disk, so after a power cut a folder is to be removed.
Shapes: S states, T frames, D channels.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from s3prl_ekd.whole_file import whole_file
from s3prl_ekd.writable import make_writable

log = logging.getLogger(__name__)


class StateFiles:
    """The states of one model.

    Args:
        folder: of this model alone; made unless it is there.
        key: the configuration's key, for messages.

    Raises:
        EkdError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self._full = False
        make_writable(folder, f"{key}: {folder}", f"; name another folder with -o config.{key}=DIR, or None")

    def read(self, name: str) -> Tensor | None:
        """(S, T, D), or None where nothing whole is stored under this name."""
        try:
            states = np.load(self._path(name), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return torch.from_numpy(states) if states.ndim == 3 else None

    def write(self, name: str, states: Tensor) -> None:
        """Keep (S, T, D) under a name. A full disk is said once; from then on nothing more is kept."""
        if self._full:
            return
        path = self._path(name)
        try:
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as partial, open(partial, "wb") as file:
                np.save(file, states.numpy(), allow_pickle=False)
        except FileNotFoundError:
            pass  # another host's process of the same number was writing it too
        except OSError as error:
            self._full = True
            log.warning("%s: %s: cannot be written (%s); no more states are kept", self.key, path, error.strerror)

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.npy"

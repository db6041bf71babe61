"""A frozen upstream whose states of a clip are kept: ``runner.cache_states`` of ``run_downstream.py``.

s3prl's runner encodes its corpus again in every epoch, for every learning rate, fold and seed, though a frozen model
gives the same states each time. With a folder under ``runner.cache_states`` the states of a clip that comes back are
read from there.

Every clip is encoded alone. s3prl pads clips to one batch, and in a model with GroupNorm (HuBERT, WavLM, DistilHuBERT
Base) padding shifts the states of all shorter clips, so that they depend on who else is in the batch; a stored state
must not. Scores are therefore near those without a cache, but not the same numbers. The upstream computes in its own
precision, also where the runner trains in fp16, so that a state does not depend on the split it was stored in either.

Shapes: B clips, S states, T frames, D channels. What is kept is what s3prl's featurizer selects, before its weighted
sum. Which file holds what: ``state_files.py``.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ekd.bridge.state_files import StateFiles
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.clips import with_frames
from s3prl_ekd.teachers.fingerprint import add_weights

KEY = "runner.cache_states"
Select = Callable[[dict[str, Any]], Any]

log = logging.getLogger(__name__)
_REMEMBERED = 500_000  # clips; some 50 MB
_FORMAT = "1"  # of what is stored; another one goes into other folders
_ALIKE = 0.01  # of each of a probe's states: far more than rounding on another device, less than another model
_TOLERATED = 5  # frames: s3prl's featurizer takes fewer too many or too few (upstream/interfaces.py)


class CachedUpstream(nn.Module):
    """A frozen upstream and a folder of its states.

    Only clips that come a second time in a run are stored: random crops (SID) never do, and would fill the disk. So a
    run encodes a clip twice at most, and one that finds it stored not at all.

    Args:
        model: an s3prl upstream; encodes as ever until :meth:`begin`.
        folder: may serve many models; each has a folder of its own in it.
        what: names the model beyond its weights: upstream, config file.
    """

    def __init__(self, model: nn.Module, folder: Path, what: Sequence[str]) -> None:
        super().__init__()
        self.model, self.folder, self.what = model, folder, tuple(what)
        self._files: StateFiles | None = None
        self._seen: set[str] = set()
        self._select: Select = dict
        self._selection, self._rate = "", 1

    def begin(self, selection: str, layer: int | None, rate: int, select: Select) -> None:
        """From now on keep states.

        Args:
            selection: key under which the featurizer looks for states (``-s``).
            layer: the only one that it takes (``-l``), or None.
            rate: samples a frame.
            select: the featurizer's choice from an upstream's output: (B, T, D), or a list of S of them.

        Raises:
            EkdError: the folder cannot be written, or holds the states of another model of equal weights.
        """
        self._selection, self._rate, self._select = selection, rate, select
        digest = self._digest(f"{selection} {layer}")
        files = StateFiles(self.folder / digest[:16], KEY)
        device = next((value.device for value in self.model.state_dict().values()), torch.device("cpu"))
        # as loud as speech, and off zero, so that a model which normalises waveforms differs from one which does not
        probe = 0.02 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)) + 0.01
        found, stored = self._encode(probe.to(device)), files.read("probe")
        if stored is None:
            files.write("probe", found)
        elif stored.shape != found.shape or bool(
            ((stored - found).norm(dim=(1, 2)) > _ALIKE * found.norm(dim=(1, 2))).any()
        ):
            raise EkdError(
                f"{KEY}: {files.folder}: holds states of another model with the same weights; remove it, or name "
                "another folder"
            )
        self._files = files
        log.info("[ekd] hidden states are stored in %s; clips are encoded one by one", files.folder)

    def get_downsample_rates(self, key: str) -> int:
        """Samples a frame, as the upstream says."""
        return self.model.get_downsample_rates(key)  # type: ignore[operator]  # s3prl's interface of an upstream

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Any]:
        """B clips, 1-D at 16 kHz -> the selected states, (B, T, D) or a list of S of them, under the selected key."""
        if self._files is None:
            return self.model(wavs)
        clips = [self._states(wav) for wav in wavs]
        states = nn.utils.rnn.pad_sequence([clip.transpose(0, 1) for clip in clips], batch_first=True)  # (B, T, S, D)
        several = states.to(wavs[0].device, non_blocking=True).unbind(2)
        return {self._selection: several[0] if len(several) == 1 else list(several)}

    def _states(self, wav: Tensor) -> Tensor:
        """(S, T, D) of a clip, on the CPU, from the folder or the model."""
        assert self._files is not None
        samples = wav.detach().cpu().contiguous().numpy()
        name = hashlib.blake2b(samples.tobytes(), digest_size=16).hexdigest()
        states = self._files.read(name)
        if states is None:
            states = self._encode(wav)
            if name in self._seen:
                self._files.write(name, states)
            else:
                if len(self._seen) >= _REMEMBERED:
                    self._seen.clear()
                self._seen.add(name)
        return states

    def _encode(self, wav: Tensor) -> Tensor:
        """(S, T, D) of a clip alone, with as many frames as s3prl's featurizer reads of it: round(N / rate).

        The convolutions often make one frame less. In a batch of several that frame would be padding; here it is the
        clip's last once more.

        Raises:
            EkdError: the upstream makes more or fewer frames than its rate says, where s3prl has a bare assertion.
        """
        with torch.no_grad(), torch.autocast(wav.device.type, enabled=False):
            chosen = self._select(self.model([wav]))
        stacked = torch.stack(list(chosen)) if isinstance(chosen, (list, tuple)) else chosen.unsqueeze(0)
        states = stacked[:, 0].float().cpu()
        wanted = round(len(wav) / self._rate)
        if abs(wanted - states.shape[1]) >= _TOLERATED:
            raise EkdError(
                f"{self.what[0]}: {states.shape[1]} frames of {len(wav)} samples, expected about {wanted}: its "
                f"get_downsample_rates says {self._rate} samples a frame"
            )
        return with_frames(states, max(wanted, 1)).contiguous()

    def _digest(self, choice: str) -> str:
        """Of weights, model and choice: equal digests give equal states."""
        digest = hashlib.sha256("\0".join((_FORMAT, *self.what, choice)).encode())
        add_weights(digest, self.model)
        return digest.hexdigest()

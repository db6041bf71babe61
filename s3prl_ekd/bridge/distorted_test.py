"""A test on distorted audio: ``runner.distortion`` of ``run_downstream.py -m evaluate``.

The heads were trained on clean speech, and what the upstream hears is distorted: how much a score falls tells how
robust a student is. What is drawn for a clip depends on its samples and the seed alone, so every model hears the same,
whatever the batch, the device and the order.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s3prl_ekd.bridge.taskdata_mixtures import has_mixtures
from s3prl_ekd.config.loading import load_distortion
from s3prl_ekd.data.distort import Distorter
from s3prl_ekd.errors import EkdError
from s3prl_ekd.user_paths import expanded

KEY = "runner.distortion"


class DistortedAudio:
    """What an upstream hears in place of its clips.

    Args:
        file: YAML with a section ``distortion``.

    Raises:
        EkdError: mistakes in it, or missing sources.
    """

    def __init__(self, file: str) -> None:
        self.distorter = Distorter(load_distortion(Path(file)), file)

    def put_before(self, upstream: nn.Module) -> None:
        """From now on ``upstream(wavs)`` hears distorted clips."""
        upstream.register_forward_pre_hook(lambda _, args: ([self.hear(wav) for wav in args[0]], *args[1:]))

    def hear(self, wav: Tensor) -> Tensor:
        """One clip, (samples,) at 16 kHz, distorted.

        Raises:
            AudioError: a noise or room response cannot be read.
        """
        wave = wav.detach().float().cpu().contiguous().numpy()
        clip = int.from_bytes(hashlib.blake2b(wave.tobytes(), digest_size=8).digest(), "big")
        return torch.from_numpy(self.distorter.apply(wave, self.distorter.draw(0, clip))).to(wav)


def distorted_audio(
    config: dict[str, Any], task: str, trains: bool, beside: bool, source: str
) -> DistortedAudio | None:
    """What the upstream hears, where ``runner.distortion`` names a file, whose path becomes absolute; else None.

    Args:
        config: the merged downstream config.
        task: s3prl's -d.
        trains: ``-m train``.
        beside: results go into the checkpoint's own folder.
        source: the config's file, for messages.

    Raises:
        EkdError: no such file, mistakes in it, missing sources; a training, a test that would write over the
            predictions of the clean one, or a task that works on the audio itself.
    """
    file = config["runner"].get("distortion")
    if file is None:
        return None
    key = f"{source}: {KEY}"
    if trains:
        raise EkdError(f"{key}: is for a test (-m evaluate); heads are trained on the clips as they are")
    if has_mixtures(task):
        raise EkdError(f"{key}: not possible for {task}: s3prl masks and scores the undistorted mixture")
    if beside:
        raise EkdError(
            f"{key}: give -p another DIR for the predictions; the checkpoint's folder is for those on clean audio"
        )
    if not isinstance(file, str) or not expanded(file).is_file():
        raise EkdError(f"{key}: {file!r}: expected a YAML file with a section distortion")
    path = config["runner"]["distortion"] = str(expanded(file).absolute())
    return DistortedAudio(path)

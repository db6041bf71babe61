"""Units: frames of MFCC or of an encoder's hidden state, clustered by k-means; one unit a frame is the target.

Shapes: T frames of 20 ms, F features.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import ThreadpoolController
from torch import Tensor

from recipes.tiny_teachers.settings import UnitSettings
from s3prl_ekd.audio import SAMPLE_RATE, read_audio
from s3prl_ekd.compat.shims import apply_shims
from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.clips import normalize_wave
from s3prl_ekd.model.encoder import Encoder
from s3prl_ekd.shape import EncoderShape
from s3prl_ekd.whole_file import whole_file

logger = logging.getLogger(__name__)
apply_shims()  # torchaudio does not import beside every torch

CPU = torch.device("cpu")
Features = Callable[[np.ndarray], np.ndarray]
"""(samples,) float32 at 16 kHz -> (T, F) float32, as many frames as the encoder's convolutions make."""


@dataclass(frozen=True)
class Units:
    """The units of a corpus, in the order of its length table."""

    values: np.ndarray
    """(all frames,) int16."""
    offsets: np.ndarray
    """(utterances + 1,) int64: frames of utterance i are offsets[i] to offsets[i + 1]."""
    clusters: int

    def crop(self, item: int, first: int, frames: int) -> np.ndarray:
        """(frames,) units of an utterance from its frame ``first`` on; -1 beyond its end."""
        start = self.offsets[item] + first
        found = self.values[start : min(start + frames, self.offsets[item + 1])]
        return np.pad(found, (0, frames - len(found)), constant_values=-1)

    @property
    def perplexity(self) -> float:
        """Of the units' frequencies: as many as are in even use."""
        share = np.bincount(self.values, minlength=self.clusters) / len(self.values)
        return float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))


def make_units(
    table: LengthTable,
    settings: UnitSettings,
    encoder: Encoder | None,
    shape: EncoderShape,
    made_by: Mapping[str, Any],
    file: Path,
    device: torch.device = CPU,
) -> Units:
    """The corpus's units, read from ``file`` where they were made before.

    Args:
        table: the corpus.
        settings: what is clustered.
        encoder: whose states; None for MFCC.
        shape: of the model that will be trained: it counts the frames.
        made_by: all that the units depend on; its ``seed`` is that of k-means and of the utterances it is fitted on.
        file: an ``.npz``.
        device: where the encoder computes.

    Raises:
        EkdError: audio that cannot be read; a file made by something else.
    """
    seed, fingerprint = int(made_by["seed"]), json.dumps(made_by, sort_keys=True)
    counts = np.array([shape.frames(int(samples)) for samples in table.samples])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if file.is_file():
        with np.load(file, allow_pickle=False) as there:
            if str(there["made_by"]) != fingerprint or not np.array_equal(there["offsets"], offsets):
                raise EkdError(f"{file}: made with other settings, weights or audio; name another --out")
            return Units(there["values"], offsets, settings.clusters)
    features = mfcc if encoder is None else _state_reader(encoder.to(device), settings.layer, device)
    if settings.normalize:
        features = normalized(features)
    chosen = np.random.default_rng(seed).permutation(len(table.paths))[: max(1, round(settings.share * len(counts)))]
    sample = np.concatenate([frames for _, frames in _each(table, counts, features, np.sort(chosen))])
    logger.info("[units] k-means: %d clusters of %d frames of %d", settings.clusters, *sample.shape)
    if len(sample) < settings.clusters:
        raise EkdError(
            f"units.clusters: {settings.clusters} clusters of {len(sample)} frames; there is too little data"
        )
    # each restart is cheap, and batches of thousands keep rare clusters alive
    kmeans = MiniBatchKMeans(settings.clusters, batch_size=8192, n_init=5, max_iter=30, random_state=seed)
    values = np.empty(offsets[-1], dtype=np.int16)
    # scikit-learn's threads and torch's spin against each other: with one thread of the former it's 12 times faster
    pools = ThreadpoolController()
    with pools.limit(limits=1):
        kmeans.fit(sample)
    for item, frames in _each(table, counts, features, np.arange(len(counts))):
        with pools.limit(limits=1):
            values[offsets[item] : offsets[item + 1]] = kmeans.predict(frames)
    units = Units(values, offsets, settings.clusters)
    logger.info("[units] %d frames, perplexity of the units %.0f", len(values), units.perplexity)
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"values": values, "offsets": offsets, "centres": kmeans.cluster_centers_}
    with whole_file(file) as partial, open(partial, "wb") as stream:
        np.savez(stream, **arrays, made_by=np.array(fingerprint))
    return units


def normalized(features: Features) -> Features:
    """The same features, each with mean 0 and deviation 1 over its utterance; one that does not vary is 0."""

    def read(wave: np.ndarray) -> np.ndarray:
        frames = features(wave)
        return (frames - frames.mean(0)) / np.maximum(frames.std(0), 1e-5)

    return read


def mfcc(wave: np.ndarray) -> np.ndarray:
    """(samples,) -> (T, 39): 13 MFCC with first and second differences, every 20 ms over 25 ms windows.

    HuBERT's first targets; computed every 10 ms as there, so that the differences span as much, and thinned out.
    """
    import torchaudio

    frames = torchaudio.compliance.kaldi.mfcc(
        torch.from_numpy(wave).unsqueeze(0), sample_frequency=SAMPLE_RATE, use_energy=False
    ).t()  # (13, 10 ms frames)
    first = torchaudio.functional.compute_deltas(frames)
    second = torchaudio.functional.compute_deltas(first)
    return torch.cat([frames, first, second]).t()[::2].contiguous().numpy()


def _state_reader(encoder: Encoder, layer: int, device: torch.device) -> Features:
    @torch.inference_mode()
    def read(wave: np.ndarray) -> np.ndarray:
        clip: Tensor = torch.from_numpy(wave).unsqueeze(0).to(device)
        if encoder.shape.normalize:
            clip = normalize_wave(clip, None, encoder.shape.normalize_eps)
        return encoder(clip, states=[layer]).states[layer][0].float().cpu().numpy()

    return read


def _each(
    table: LengthTable, counts: np.ndarray, features: Features, items: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(item, its (T, F) features), T as the model's own convolutions count."""
    for done, item in enumerate(items.tolist()):
        wave = read_audio(table.paths[item])
        wave = np.pad(wave[: table.samples[item]], (0, max(0, table.samples[item] - len(wave))))
        frames = features(wave)
        if len(frames) < counts[item]:  # convolutions with a longer reach end a frame earlier
            frames = np.pad(frames, ((0, counts[item] - len(frames)), (0, 0)), mode="edge")
        yield item, frames[: counts[item]]
        if done % 1000 == 999:
            logger.info("[units] %d of %d utterances", done + 1, len(items))

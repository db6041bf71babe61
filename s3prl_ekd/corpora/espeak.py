"""Synthetic speech from the libespeak-ng that the wheel ``espeakng-loader`` carries, called through ctypes.

One sentence, one voice, one setting of pitch and rate in; 16 kHz samples out. Which sentences and voices make up the
demo corpus is ``demo.py``. What is said depends on what was said before, as the library keeps state: two
:class:`Espeak` give the same samples for the same sequence of calls, except by voices with breath noise (``breath`` in
their voice file: f2, f3, f5, Alicia), whose noise differs from run to run. Not for several threads.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from s3prl_ekd.audio import resample
from s3prl_ekd.errors import EkdError

# espeak-ng's speak_lib.h
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Prosody:
    """How something is said. ``pitch`` and ``pitch_range``: 0..99, 50 is the voice's own; ``rate``: words per minute;
    ``volume``: 0..200, 100 is the voice's own."""

    pitch: int = 50
    pitch_range: int = 50
    rate: int = 165
    volume: int = 100


class Espeak:
    """The synthesiser.

    Raises:
        EkdError: the wheel is not installed, or the library does not start.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("espeakng_loader") is None:
            raise EkdError("the demo voices are not installed; expected: pip install 's3prl-ekd[demo]'")
        import espeakng_loader

        # The library never resets some of its state (flutter, wave phase), not even in espeak_Terminate. A copy of the
        # file is loaded as a library of its own, so that every Espeak starts alike.
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(espeakng_loader.get_library_path(), folder)
            self._library = ctypes.CDLL(copy)
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
            *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
        ]
        data = str(espeakng_loader.get_data_path()).encode()
        self.rate = self._library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, _INITIALIZE_DONT_EXIT)
        if self.rate <= 0:
            raise EkdError(f"espeak-ng does not start (code {self.rate}); its data folder is {data.decode()}")
        self._blocks: list[np.ndarray] = []
        self._callback = _CALLBACK(self._receive)  # kept: ctypes does not hold a reference
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    def say(self, text: str, voice: str, prosody: Prosody) -> np.ndarray:
        """Synthesise a sentence.

        Args:
            text: English.
            voice: an espeak voice, with a variant behind ``+`` (``en-us+f3``).
            prosody: pitch, range, rate and volume.

        Returns:
            float32 array (samples,) at 16 kHz, about -1..1.

        Raises:
            EkdError: no such voice, or nothing was said.
        """
        library = self._library
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise EkdError(f"espeak-ng has no voice {voice!r}")
        for key, value in (
            (_RATE, prosody.rate), (_VOLUME, prosody.volume), (_PITCH, prosody.pitch), (_RANGE, prosody.pitch_range)
        ):  # fmt: skip
            library.espeak_SetParameter(key, int(value), 0)
        self._blocks = []
        data = text.encode() + b"\0"
        status = library.espeak_Synth(data, len(data), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        library.espeak_Synchronize()
        if status != 0 or not self._blocks:
            raise EkdError(f"espeak-ng said nothing for {text!r} (code {status})")
        wave = np.concatenate(self._blocks).astype(np.float32) / 32768
        return resample(wave, self.rate)

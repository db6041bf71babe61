"""Published scores of other systems on the real SUPERB data, to set beside one's own. None of them is ours.

Public SUPERB test sets, ASR without a language model, percent; from the SUPERB leaderboard and the systems' papers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row of other people's numbers; parameters in millions, scores in percent."""

    name: str
    params: float
    pr: float
    sid: float
    er: float
    asr: float


PUBLIC_SUPERB = (
    Published("HuBERT Base", 94.7, 5.41, 81.42, 64.92, 6.42),
    Published("WavLM Base+", 94.7, 3.92, 89.42, 68.65, 5.59),
    Published("DistilHuBERT", 23.5, 16.27, 73.54, 63.02, 13.37),
    Published("DPHuBERT", 23.6, 9.67, 76.83, 63.16, 10.47),
    Published("DPWavLM", 23.6, 8.22, 82.11, 65.24, 10.19),
    Published("STaRHuBERT-L", 26.6, 7.97, 78.66, 63.48, 8.91),
    Published("USAD Small", 24.0, 7.8, 73.5, 66.3, 9.5),
)

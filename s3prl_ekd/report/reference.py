"""Published scores of other systems on the real SUPERB data, to set beside your own. None is ours.

Percent, ASR without a language model; from the SUPERB leaderboard and the systems' papers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One row of other people's numbers: parameters in millions, scores in percent by our names of the tasks."""

    name: str
    params: float
    pr: float
    sid: float
    er: float
    asr: float
    ks: float | None = None
    ic: float | None = None


PUBLIC_SUPERB = (
    Published("HuBERT Base", 94.7, 5.41, 81.42, 64.92, 6.42, 96.30, 98.34),
    Published("WavLM Base+", 94.7, 3.92, 89.42, 68.65, 5.59, 97.37, 99.00),
    Published("DistilHuBERT", 23.5, 16.27, 73.54, 63.02, 13.37, 95.98, 94.99),
    Published("DPHuBERT", 23.6, 9.67, 76.83, 63.16, 10.47, 96.36, 97.92),
    Published("DPWavLM", 23.6, 8.22, 82.11, 65.24, 10.19, 96.27, 98.58),
    Published("STaRHuBERT-L", 26.6, 7.97, 78.66, 63.48, 8.91, 96.56, 97.50),
    Published("USAD Small", 24.0, 7.8, 73.5, 66.3, 9.5, 96.8, 95.5),
)

# The challenge's hidden test set, where the organisers evaluate
HIDDEN_SET = (
    Published("HuBERT Base", 94.7, 19.19, 70.33, 60.16, 37.25),
    Published("WavLM Base+", 94.7, 15.29, 83.08, 57.42, 31.47),
    Published("RobustHuBERT", 94.7, 18.61, 81.25, 60.16, 36.10),
    Published("Robust DistilHuBERT (heads kept)", 27.0, 30.87, 79.42, 56.04, 61.13),
)

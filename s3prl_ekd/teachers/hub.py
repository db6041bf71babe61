"""The s3prl hub names that our own encoder computes: name -> checkpoint file, family, shape.

Every other s3prl upstream is reached through its own expert (``s3prl:NAME``, adapter.py). The files are those that
s3prl's own hubconf modules name, which a test checks. Shapes are what is known before the download; the file's own
configuration decides, and a file of another depth or width is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from s3prl_ekd.shape import (
    DATA2VEC_BASE,
    DATA2VEC_LARGE,
    DISTILHUBERT,
    HUBERT_BASE,
    HUBERT_LARGE,
    WAV2VEC2_LARGE_LV60,
    WAVLM_BASE,
    WAVLM_LARGE,
    EncoderShape,
)

CONVERTED = "https://huggingface.co/s3prl/converted_ckpts/resolve/main/"
_DISTILHUBERT = "https://huggingface.co/leo19941227/distilhubert/resolve/main/distilhubert_ls960_4-8-12.ckpt"
_MS_HUBERT = "https://huggingface.co/s3prl/MS-HuBERT/resolve/main/iter3.pt"

# fairseq's HubertModel and WavLM count the frames of a padded clip otherwise than its wav2vec 2.0
_HUBERT_BASE = HUBERT_BASE.with_(padding_rule="fairseq")
_HUBERT_LARGE = HUBERT_LARGE.with_(padding_rule="fairseq")
_WAVLM_BASE = WAVLM_BASE.with_(padding_rule="fairseq")
_WAVLM_LARGE = WAVLM_LARGE.with_(padding_rule="fairseq")
_WAV2VEC2_LARGE = HUBERT_BASE.with_(width=1024, layers=24, ffn_width=4096, heads=16)  # LibriSpeech's: post-norm
_XLS_R_1B = WAV2VEC2_LARGE_LV60.with_(width=1280, layers=48, ffn_width=5120)
_XLS_R_2B = WAV2VEC2_LARGE_LV60.with_(width=1920, layers=48, ffn_width=7680)


@dataclass(frozen=True)
class HubEntry:
    """One name's checkpoint."""

    file: str
    """File among s3prl's converted checkpoints, or a whole URL."""
    family: str
    """hubert, wavlm, wav2vec2, data2vec, unispeech_sat, distilhubert."""
    shape: EncoderShape

    @property
    def url(self) -> str:
        """Where s3prl downloads it from."""
        return self.file if self.file.startswith("https://") else CONVERTED + self.file


def _family(family: str, rows: dict[str, tuple[str, EncoderShape]]) -> dict[str, HubEntry]:
    return {name: HubEntry(file, family, shape) for name, (file, shape) in rows.items()}


HUB: dict[str, HubEntry] = {
    **_family("hubert", {
        "hubert": ("hubert_base_ls960.pt", _HUBERT_BASE),
        "hubert_base": ("hubert_base_ls960.pt", _HUBERT_BASE),
        "hubert_large_ll60k": ("hubert_large_ll60k.pt", _HUBERT_LARGE),
        "hubert_base_robust_mgr": ("HuBERT_base_robust_mgr_best_loss_2.7821.pt", _HUBERT_BASE),
        "contentvec": ("contentvec_km100.pt", _HUBERT_BASE),
        "contentvec_km100": ("contentvec_km100.pt", _HUBERT_BASE),
        "contentvec_km500": ("contentvec_km500.pt", _HUBERT_BASE),
        "mhubert_base_vp_en_es_fr_it3": ("mhubert_base_vp_en_es_fr_it3.pt", _HUBERT_BASE),
        "ms_hubert": (_MS_HUBERT, _HUBERT_BASE),
    }),
    **_family("wavlm", {
        "wavlm": ("wavlm_base_plus.pt", _WAVLM_BASE),
        "wavlm_base": ("wavlm_base.pt", _WAVLM_BASE),
        "wavlm_base_plus": ("wavlm_base_plus.pt", _WAVLM_BASE),
        "wavlm_large": ("wavlm_large.pt", _WAVLM_LARGE),
    }),
    **_family("wav2vec2", {
        "wav2vec2": ("wav2vec_small.pt", HUBERT_BASE),
        "wav2vec2_base_960": ("wav2vec_small.pt", HUBERT_BASE),
        "wav2vec2_large_960": ("libri960_big.pt", _WAV2VEC2_LARGE),
        "wav2vec2_large_ll60k": ("wav2vec_vox_new.pt", WAV2VEC2_LARGE_LV60),
        "wav2vec2_large_lv60_cv_swbd_fsh": ("w2v_large_lv_fsh_swbd_cv.pt", WAV2VEC2_LARGE_LV60),
        "wav2vec2_large_voxpopuli_100k": ("wav2vec2_large_100k.pt", WAV2VEC2_LARGE_LV60),
        "wav2vec2_base_s2st_es_voxpopuli": ("wav2vec2_base_s2st_es_voxpopuli.pt", HUBERT_BASE),
        "wav2vec2_base_s2st_en_librilight": ("wav2vec2_base_s2st_en_librilight.pt", HUBERT_BASE),
        "xlsr_53": ("xlsr_53_56k.pt", WAV2VEC2_LARGE_LV60),
        "xls_r_300m": ("xlsr2_300m.pt", WAV2VEC2_LARGE_LV60),
        "xls_r_1b": ("xlsr2_960m_1000k.pt", _XLS_R_1B),
        "xls_r_2b": ("xlsr2_2B_1000k.pt", _XLS_R_2B),
    }),
    **_family("data2vec", {
        "data2vec": ("audio_base_ls.pt", DATA2VEC_BASE),
        "data2vec_base_960": ("audio_base_ls.pt", DATA2VEC_BASE),
        "data2vec_large_ll60k": ("vox_pretrained.pt", DATA2VEC_LARGE),
    }),
    **_family("unispeech_sat", {
        "unispeech_sat": ("unispeech_sat_base_plus.pt", _HUBERT_BASE),
        "unispeech_sat_base": ("unispeech_sat_base.pt", _HUBERT_BASE),
        "unispeech_sat_base_plus": ("unispeech_sat_base_plus.pt", _HUBERT_BASE),
        "unispeech_sat_large": ("unispeech_sat_large.pt", _HUBERT_LARGE),
    }),
    **_family("distilhubert", {
        "distilhubert": (_DISTILHUBERT, DISTILHUBERT),
        "distilhubert_base": (_DISTILHUBERT, DISTILHUBERT),
    }),
}  # fmt: skip

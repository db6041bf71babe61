"""SUPERB's tasks by their short names, and what s3prl's ``-d`` calls them."""

PAPER_TASKS = ("pr", "sid", "er", "asr")
"""The four of EKD's paper, which ``s3prl-ekd evaluate`` runs where it is not told which."""

DOWNSTREAM = {
    "pr": "ctc",
    "sid": "voxceleb1",
    "er": "emotion",
    "asr": "asr",
    "ks": "speech_commands",
    "ic": "fluent_commands",
}
"""Those that are prepared, evaluated and reported on."""

FURTHER = {
    "asv": "sv_voxceleb1",
    "sd": "diarization",
    "qbe": "quesst14_dtw",
    "se": "enhancement_stft",
    "ss": "separation_stft",
}
"""Those that ``run_downstream.py`` runs besides, with a config of ours."""

WITH_CONFIG = DOWNSTREAM | FURTHER
CONFIGS = {downstream: f"downstream_configs/{task}.yaml" for task, downstream in WITH_CONFIG.items()}
"""s3prl's -d -> our config of that task, among the files that ship."""

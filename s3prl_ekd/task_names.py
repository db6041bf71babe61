"""SUPERB's tasks by their short names, and what s3prl's ``-d`` calls them."""

DOWNSTREAM = {"pr": "ctc", "sid": "voxceleb1", "er": "emotion", "asr": "asr"}
"""The four that are prepared, evaluated and reported on."""

FURTHER = {
    "ks": "speech_commands",
    "ic": "fluent_commands",
    "asv": "sv_voxceleb1",
    "sd": "diarization",
    "qbe": "quesst14_dtw",
}
"""Those that ``run_downstream.py`` runs besides, with a config of ours."""

WITH_CONFIG = DOWNSTREAM | FURTHER

"""The four tasks by SUPERB's short names, and what s3prl's ``-d`` calls them."""

DOWNSTREAM = {"pr": "ctc", "sid": "voxceleb1", "er": "emotion", "asr": "asr"}

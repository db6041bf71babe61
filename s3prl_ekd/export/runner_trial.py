"""The organisers' own loading code over a local folder: s3prl's downstream runner trains two steps of ER with it.

``python -m s3prl_ekd.export.runner_trial FOLDER WORK``: WORK gets a made corpus in IEMOCAP's layout and the experiment.
``snapshot_download`` is the only thing replaced (it returns FOLDER); ``args.from_hf_hub=True`` then takes the same way
as ``--hub huggingface`` does on the organisers' machines (s3prl's downstream/runner.py, _get_upstream).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

RATE = 16_000
LABELS = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}
STEPS = 2


def main(argv: list[str]) -> int:
    """Make the corpus, then hand over to ``s3prl.run_downstream``."""
    folder, work = (Path(value).resolve() for value in argv)
    config = write_corpus(work)
    import huggingface_hub

    from s3prl_ekd.compat.hub import register

    register()  # s3prl needs its patches on this stack; it loads the submission by itself
    huggingface_hub.snapshot_download = lambda *args, **kwargs: str(folder)  # type: ignore[assignment]
    from s3prl import run_downstream

    sys.argv = ["run_downstream.py", "-m", "train", "-u", "local/submission", "-d", "emotion", "-c", str(config),
                "-p", str(work / "experiment"), "--device", "cpu", "-o", "args.from_hf_hub=True"]  # fmt: skip
    run_downstream.main()
    return 0


def write_corpus(work: Path) -> Path:
    """Fourteen noisy tones of four emotions under WORK, and the task's config; returns the config's path."""
    import soundfile
    import yaml

    entries: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    generator = np.random.default_rng(0)
    for index in range(14):
        name = f"Session1/sentences/wav/Ses01F/Ses01F_{index:03d}.wav"
        path = work / "IEMOCAP" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(int((0.3 + 0.05 * index) * RATE)) / RATE
        wave = 0.2 * np.sin(2 * np.pi * (150 + 30 * index) * time) + 0.02 * generator.standard_normal(len(time))
        soundfile.write(path, wave.astype(np.float32), RATE)
        part = "train" if index < 10 else "test"
        entries[part].append({"path": name, "label": list(LABELS)[index % 4], "speaker": "Ses01F"})
    for part, rows in entries.items():
        path = work / "meta_data" / "Session1" / f"{part}_meta_data.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"labels": LABELS, "meta_data": rows}))
    config = {
        "runner": {
            "total_steps": STEPS, "gradient_clipping": 1, "gradient_accumulate_steps": 1, "log_step": 1,
            "eval_step": STEPS, "save_step": STEPS, "max_keep": 1,
            "eval_dataloaders": ["dev", "test"],
        },
        "optimizer": {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 1e-4},
        "downstream_expert": {
            "datarc": {
                "root": str(work / "IEMOCAP"), "meta_data": str(work / "meta_data"), "test_fold": "fold1",
                "pre_load": True, "train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0, "valid_ratio": 0.2,
            },
            "modelrc": {
                "projector_dim": 32, "select": "UtteranceLevel", "UtteranceLevel": {"pooling": "MeanPooling"},
            },
        },
    }  # fmt: skip
    path = work / "er.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The run of every variant with small teachers (benchmarks/variants.py): its configurations and its figures."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks import variants
from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.model.encoder import count_parameters
from s3prl_ekd.model.student import Student
from s3prl_ekd.teachers.build import check_teachers
from s3prl_ekd.teachers.stand_ins import write_stand_ins


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_stand_ins(tmp_path_factory.mktemp("teachers"), variants.EIGHTH)


@pytest.mark.parametrize("name", variants.variants())
def test_a_small_variant_differs_from_its_file_in_size_and_sources_alone(
    name: str, teachers: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / f"small_{name}.yaml"
    file.write_text(yaml.safe_dump(variants.small_config(name, teachers, 32_000)))
    small, full = load_model_config(file), load_model_config(variants.variant_file(name))
    check_teachers(small, str(file))
    ours, theirs = small.model_dump(mode="json"), full.model_dump(mode="json")
    sources = {source: str(teachers[stand_in]) for source, stand_in in variants.STAND_INS.items()}
    for teacher in theirs["ekd"]["teachers"]:
        teacher["source"] = sources[teacher["source"]]
    theirs["ekd"]["initialise_from"] = sources.get(theirs["ekd"]["initialise_from"], theirs["ekd"]["initialise_from"])
    theirs["task"]["sequence_length"] = 32_000
    assert ours["ekd"] == theirs["ekd"] and ours["task"] == theirs["task"]
    changed = {key for key in theirs["student"] if ours["student"][key] != theirs["student"][key]}
    assert changed == {"width", "ffn_width", "heads", "conv_layers", "pos_conv_kernel", "pos_conv_groups"}
    assert 40 < count_parameters(Student(full.student).encoder) / count_parameters(Student(small.student).encoder) < 80


def test_a_variant_with_a_teacher_that_has_no_stand_in_is_one_line(
    teachers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "new.yaml"
    file.write_text("base: config_model.yaml\nekd: {initialise_from: wav2vec2_base_960}\n")
    monkeypatch.setattr(variants, "variant_file", lambda name: file)
    with pytest.raises(EkdError, match="new.yaml: no small teacher stands in for 'wav2vec2_base_960'"):
        variants.small_config("new", teachers, 32_000)


def test_first_and_last_losses_are_means_of_ten_steps() -> None:
    lines = [
        {"step": step, "loss": 1.0 / step, "audio_seconds_per_second": float(step), "data_wait": 0.1,
         "skipped_files": step // 30,
         "heads": {"a.4": {"l1": 1.0 / step, "cosine": 0.5}, "b.4": {"l1": 1.0, "cosine": step / 100}}}
        for step in range(1, 41)
    ]  # fmt: skip
    result = variants.summary(lines, cosine_weight=2.0)
    assert result["first"] == pytest.approx(sum(1 / step for step in range(1, 11)) / 10)
    assert result["last"] == pytest.approx(sum(1 / step for step in range(31, 41)) / 10)
    assert result["heads"]["a.4"]["last"] == pytest.approx(result["last"] + 1.0)
    assert result["heads"]["b.4"]["first"] == pytest.approx(1.0 + 2.0 * 0.055)
    assert result["heads_fallen"] == 1 and result["skipped_files"] == 1
    assert result["audio_seconds_per_second"] == 30.5  # of steps 21 to 40
    assert variants.summary(lines, 2.0, l1_weight=3.0)["heads"]["b.4"]["first"] == pytest.approx(3.0 + 2.0 * 0.055)
    result["audio_seconds_per_processor_second"] = None  # a system without /proc
    assert (
        variants.markdown({"average": result})
        .splitlines()[-1]
        .startswith("| `average` | 0.293 | 0.028 | -90% | 1 of 2 |")
    )

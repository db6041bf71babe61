"""Both YAML files: what ships is right, and every mistake is one line that names file and key."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from dotted import changed

from s3prl_ekd.checked import read_yaml
from s3prl_ekd.config import check_runner_config, load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.models import choose_teacher
from s3prl_ekd.macs.models import model_cost
from s3prl_ekd.shape import BASE_CONV
from s3prl_ekd.teachers.build import check_teachers
from s3prl_ekd.variants import find_model_config, packaged

VARIANTS = sorted(packaged("variants").glob("*.yaml"))


def test_the_default_is_the_papers_recipe() -> None:
    config = load_model_config(packaged("config_model.yaml"))
    assert config.ekd.mode == "multi_head"
    assert [t.source for t in config.ekd.teachers] == ["hubert_base", "hubert_base_robust_mgr", "wavlm_base_plus"]
    assert all(t.layers == [4, 8, 12] for t in config.ekd.teachers)
    assert (config.ekd.initialise_from, config.ekd.cosine_weight) == ("hubert", 1.0)
    assert (config.student.layers, config.student.width, config.student.feature_grad_mult) == (2, 768, 0.1)
    assert config.task.sequence_length == 250_000
    runner = check_runner_config(read_yaml(packaged("config_runner.yaml")), "config_runner.yaml")
    assert (runner.runner.total_steps, runner.runner.gradient_clipping) == (200_000, 5.0)
    assert (runner.optimizer.lr, runner.optimizer.model_extra["betas"]) == (2e-4, [0.9, 0.98])
    assert runner.pretrain_expert.datarc.train_batch_size == 24


@pytest.mark.parametrize("file", VARIANTS, ids=lambda file: file.stem)
def test_every_variant_is_a_few_lines_and_fits_its_teachers(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= (9 if file.stem != "embedded" else 15)  # whose teachers have a width of their own
    config = load_model_config(file)
    plan = check_teachers(config)
    heads = sum(len(target.labels) for target in plan.target_sets)
    assert heads == 3 * (len(config.ekd.teachers) if config.ekd.mode == "multi_head" else 1)


def test_there_is_a_variant_for_each_mode_pair_and_single_teacher() -> None:
    seen = set()
    for file in VARIANTS:
        config = load_model_config(file)
        seen.add((config.ekd.mode, tuple(sorted(t.name for t in config.ekd.teachers))))
    every = ("hubert", "robust_hubert", "wavlm")
    assert {("layerwise_average", every), ("layerwise_concat", every)} <= seen
    for teachers in [(a,) for a in every] + [(a, b) for a in every for b in every if a < b]:
        assert ("multi_head", teachers) in seen


def test_what_g_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name, a path of this repository, a file of the user's, which comes first; so do all commands, and Python."""
    monkeypatch.chdir(tmp_path)
    average = packaged("variants/average.yaml")
    assert find_model_config("average") == find_model_config("average.yaml") == average
    assert load_model_config("average") == load_model_config(average)
    assert find_model_config("pretrain/ekd/variants/average.yaml") == average
    assert find_model_config("config_model") == find_model_config("./pretrain/ekd/config_model.yaml")
    mine = tmp_path / "average.yaml"
    mine.write_text("base: config_model.yaml\n")
    assert find_model_config("average") == find_model_config(str(mine)) == mine
    assert load_model_config("average") == load_model_config(packaged("config_model.yaml"))
    with pytest.raises(EkdError, match=r"^load_model_config: embeded: no such config file \(variants.* embedded\?$"):
        load_model_config("embeded")
    with pytest.raises(EkdError, match="^embedded: no such configuration file$"):
        load_model_config(Path("embedded"))  # a path is a file
    for wrong in ("avreage", "../average", "/nowhere/average.yaml"):
        hint = r"; did you mean average\?" if "/" not in wrong else ""
        message = rf"^--untrained {wrong}: no such config file \(variants by name: average, .*wavlm\){hint}$"
        with pytest.raises(EkdError, match=message):
            find_model_config(wrong, "--untrained")


def test_a_copy_in_an_experiment_folder_still_finds_its_base(tmp_path: Path) -> None:
    copied = tmp_path / "config_model.yaml"  # the name under which s3prl's runner copies it
    copied.write_text(packaged("variants/average.yaml").read_text())
    assert load_model_config(copied) == load_model_config(packaged("variants/average.yaml"))


def test_a_checkpoints_dictionary_reads_back() -> None:
    config = load_model_config(packaged("config_model.yaml"))
    assert load_model_config(config.model_dump(mode="json")) == config


BASE = yaml.safe_load(packaged("config_model.yaml").read_text())
MODEL_MISTAKES = {
    "ekd.cosine_weigth: unknown key; did you mean cosine_weight": {"ekd.cosine_weigth": 1.0},
    "ekd.mode: input should be": {"ekd.mode": "average"},
    "ekd.teachers[0].layer: unknown key; did you mean layers": {"ekd.teachers.0.layer": [1]},
    "ekd.teachers[0].source: required key is missing": {"ekd.teachers": [{"name": "a"}]},
    "ekd.teachers[0]: layers [4, 4] must be distinct": {"ekd.teachers.0.layers": [4, 4]},
    "two teachers are called 'wavlm'": {"ekd.teachers.0.name": "wavlm"},
    "student.layers: input should be a valid integer, found 'two'": {"student.layers": "two"},
    "student.dropout: input should be less than 1": {"student.dropout": 1.5},
    "task: sequence_length: 100 samples; expected 4000": {"task.sequence_length": 100},
    "ekd: initialise_layers: has no effect while initialise_from is null": {
        "ekd.initialise_from": None, "ekd.initialise_layers": [1, 2]
    },
    "ekd: initialise_parts: has no effect while initialise_from is null": {
        "ekd.initialise_from": None, "ekd.initialise_parts": "conv_stack"
    },
    "ekd: initialise_layers: has no effect with initialise_parts: conv_stack": {
        "ekd.initialise_layers": "spread", "ekd.initialise_parts": "conv_stack"
    },
    "student.feature_grad_mult: 0 would keep a conv stack of random weights": {
        "ekd.initialise_from": None, "student.feature_grad_mult": 0.0
    },
    "ekd.cosine_weight: input should be a finite number, found inf": {"ekd.cosine_weight": float("inf")},
    "ekd.weights.hubert: input should be a finite number": {"ekd.weights.hubert": float("nan")},
    "distortion.additive.weights.clean: input should be a finite number": {
        "distortion.additive.weights.clean": float("nan")
    },
    "distortion: changes nothing; it has neither additive nor non_additive": {"distortion": {"setup": "same"}},
    "optimizer: belongs in config_runner.yaml (-c)": {"optimizer.lr": 1.0},
    "ekd.teachers[0].name: expected letters, digits and underscores, a letter first, found 'my-hubert'": {
        "ekd.teachers.0.name": "my-hubert"
    },
    "ekd: l1_weight: with cosine_weight it is 0 too": {"ekd.l1_weight": 0.0, "ekd.cosine_weight": 0.0},
    "ekd.l1_weight: input should be greater than or equal to 0": {"ekd.l1_weight": -1.0},
    "ekd.cosine_weight: '1e-1' is text to YAML; write 1.0e-1": {"ekd.cosine_weight": "1e-1"},
}  # fmt: skip


@pytest.mark.parametrize("expected", MODEL_MISTAKES)
def test_model_mistakes_name_file_and_key(expected: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(changed(BASE, MODEL_MISTAKES[expected])))
    with pytest.raises(EkdError) as caught:
        load_model_config(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ") and expected in message and "\n" not in message


SEVERAL_MISTAKES = {
    "x: unknown key (also wrong: task.sequence_length)": {"x": 1, "task": {"sequence_length": 100}},
    "mode: input should be 'layerwise_average', 'layerwise_concat' or 'multi_head', found 'y' (also wrong: "
    "teachers[0].layer, teachers[1].source, a, b and 2 more)": {
        "mode": "y", "a": 1, "b": 1, "c": 1, "d": 1,
        "teachers": [{"name": "a", "source": "b", "layer": 4}, {"name": "b"}],
    },
    "initialise_layers: input should be 'first' or 'spread', or a valid list, found 'sprad'": {
        "initialise_layers": "sprad"
    },
    "initialise_layers: input should be 'first' or 'spread', or a valid list, found {'a': 1} (also wrong: z)": {
        "initialise_layers": {"a": 1}, "z": 1
    },
    "initialise_layers[0]: input should be a valid integer, found 'a'": {"initialise_layers": ["a", 4]},
}  # fmt: skip


@pytest.mark.parametrize("expected", SEVERAL_MISTAKES)
def test_of_several_mistakes_the_first_is_explained_and_each_is_named(expected: str) -> None:
    changes = dict(SEVERAL_MISTAKES[expected])
    values = copy.deepcopy(BASE)
    values["task"] |= changes.pop("task", {})
    values["ekd"] |= changes
    with pytest.raises(EkdError) as caught:
        load_model_config(values)
    said = str(caught.value).removeprefix("config_model.yaml: ")
    assert said.replace("ekd.", "") == expected


NARROW = {"student.width": 96, "student.heads": 4, "student.ffn_width": 64}


def last_kernel(size: int) -> dict[str, Any]:
    """A student whose last convolution makes fewer frames."""
    return {"ekd.initialise_from": None, "student.conv_layers": [*map(list, BASE_CONV[:-1]), [512, size, 2]]}


TEACHER_MISTAKES = {
    "ekd.teachers[1].layers: 14 > 12": {"ekd.teachers.1.layers": [4, 14]},
    "ekd.teachers[1].source: 'hubert_bas' is no s3prl hub name": {"ekd.teachers.1.source": "hubert_bas"},
    "ekd.teachers[1].source: 'fbank' is no s3prl hub name of the wav2vec2 family, checkpoint file or transformers "
    "folder; another upstream of s3prl's is 's3prl:fbank'": {"ekd.teachers.1.source": "fbank"},
    "ekd.teachers[1].name: 'train' is a word of torch's": {"ekd.teachers.1.name": "train"},
    "ekd.teachers[1].name: 'training' is a word of torch's": {"ekd.teachers.1.name": "training"},
    "ekd.teachers[1].name: 'debiased': s3prl would treat all weights of a head": {"ekd.teachers.1.name": "debiased"},
    "ekd.residual_heads: the difference would have the name of a teacher, 'hubert_minus_wavlm'": {
        "ekd.teachers.1.name": "hubert_minus_wavlm", "ekd.residual_heads": [["hubert", "wavlm"]]
    },
    "ekd.mode: layerwise_average needs teachers of one width": {
        "ekd.mode": "layerwise_average", "ekd.teachers.1.source": "hubert_large_ll60k"
    },
    "ekd.initialise_from: WavLM's gated attention": {"ekd.initialise_from": "wavlm"},
    "ekd.initialise_from: width is 96 in the student, 768 in the teacher, so weights cannot be copied; use null for "
    "random weights, or initialise_parts: conv_stack": NARROW,
    "ekd.initialise_from: conv_layers is ": {
        "ekd.initialise_parts": "conv_stack", "student.conv_layers": [[64, *layer[1:]] for layer in BASE_CONV]
    },
    "student: width 768 is not a multiple of heads 5": {"student.heads": 5},
    "student.conv_layers: 9 frames of a clip that has 12 in hubert_base; they may": last_kernel(8),
}  # fmt: skip


@pytest.mark.parametrize("expected", TEACHER_MISTAKES)
def test_teacher_mistakes_show_before_any_download(expected: str) -> None:
    config = load_model_config(changed(BASE, TEACHER_MISTAKES[expected]))
    with pytest.raises(EkdError) as caught:
        check_teachers(config, "my.yaml")
    assert str(caught.value).startswith(f"my.yaml: {expected}")


def test_a_student_of_its_own_start_or_of_two_frames_fewer_is_none() -> None:
    for changes in (NARROW | {"ekd.initialise_from": None}, last_kernel(6)):
        assert check_teachers(load_model_config(changed(BASE, changes))).initialiser is None


def test_paths_of_teachers_become_absolute_and_names_stay_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("models/one", "hubert"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mine.yaml").write_text(
        "base: config_model.yaml\nekd:\n  teachers:\n    - {name: hubert, source: models/one}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = load_model_config("mine.yaml")
    assert config.ekd.teachers[0].source == str(tmp_path / "models/one")
    assert config.ekd.initialise_from == "hubert"  # the teacher of that name, not the folder
    paths = ("random:models/one", "s3prl:hubert_local:models/one")
    for source in (*paths, "random:hubert_base", "s3prl:fbank", "random:", "s3prl:hubert_local:"):
        (tmp_path / "mine.yaml").write_text(
            f"base: config_model.yaml\nekd:\n  teachers:\n    - {{name: hubert, source: '{source}'}}\n"
        )
        found = load_model_config("mine.yaml").ekd.teachers[0].source
        assert found == source.replace("models/one", str(tmp_path / "models/one"))


def test_a_folder_that_is_called_as_a_teacher_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results are: evaluate --teacher hubert_base --out hubert_base, called again."""
    monkeypatch.chdir(tmp_path)
    for name in ("hubert_base", "wavlm_base_plus"):
        (tmp_path / name).mkdir()
    config = load_model_config("hubert_wavlm")
    assert [teacher.source for teacher in config.ekd.teachers] == ["hubert_base", "wavlm_base_plus"]
    assert [source.kind for source in check_teachers(config).sources.values()] == ["hub", "hub"]
    assert choose_teacher("hubert_base", None).checkpoint == "hubert_base"
    assert model_cost("hubert_base") == model_cost("hubert")
    (tmp_path / "hubert_base" / "config.json").write_text("{}")  # a transformers model, which is meant
    config = load_model_config("hubert_wavlm")
    assert config.ekd.teachers[0].source == str(tmp_path / "hubert_base")
    with pytest.raises(EkdError, match="hubert_base/config.json: model_type None is not supported"):
        check_teachers(config)


def test_a_home_that_nobody_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read is looked for as it stands, as shells do; nothing is written to a folder of that name."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text("base: embedded.yaml\nekd: {initialise_from: ~nobody-here/a.pt}\n")
    config = load_model_config(file)
    with pytest.raises(EkdError, match="mine.yaml: ekd.initialise_from: no such file or folder: .*/~nobody-here/a.pt"):
        check_teachers(config, str(file))
    with pytest.raises(EkdError, match="-g ~nobody-here/a.yaml: no such config file"):
        find_model_config("~nobody-here/a.yaml", "-g")
    file.write_text("base: embedded.yaml\nekd: {cache_targets: ~nobody-here/targets}\n")
    with pytest.raises(EkdError, match="mine.yaml: ekd.cache_targets: ~nobody-here/targets: there is no user"):
        load_model_config(file)


def test_runner_mistakes_name_file_and_key() -> None:
    base = read_yaml(packaged("config_runner.yaml"))
    for expected, key, value in (
        ("runner.total_step: unknown key; did you mean total_steps", "runner.total_step", 1),
        ("runner: save_step: 10000 must be below total_steps: 100", "runner.total_steps", 100),
        ("optimizer.lr: '2e-4' is text to YAML; write 2.0e-4", "optimizer.lr", "2e-4"),
        ("pretrain_expert.datarc.sets: expected 1 or more, found []", "pretrain_expert.datarc.sets", []),
        ("datarc: sets: 'a' is named twice", "pretrain_expert.datarc.sets", ["a", "a"]),
        ("datarc.seed: input should be greater than or equal to 0", "pretrain_expert.datarc.seed", -1),
        ("ekd: belongs in config_model.yaml (-g)", "ekd", {}),
        ("downstream_expert: belongs in a task's configuration (run_downstream.py -c)", "downstream_expert", {}),
        ("optimizer.lr: input should be a finite number", "optimizer.lr", float("inf")),
        ("optimizer.name: input should be 'AdamW_with_schedule', ", "optimizer.name", "Adamm"),
        ("optimizer: warmup: AdamW_with_schedule has warmup_proportion, betas, eps", "optimizer.warmup", 0.1),
        (
            "optimizer: warmup_propotion: AdamW_with_schedule has warmup_proportion, betas, eps; did you mean "
            "warmup_proportion?",
            "optimizer.warmup_propotion",
            0.1,
        ),
        ("optimizer: betas: expected two numbers, as in [0.9, 0.98], found 0.9", "optimizer.betas", 0.9),
        ("optimizer: torch_optim_name: TorchOptim needs it", "optimizer", {"name": "TorchOptim", "lr": 1.0}),
    ):
        with pytest.raises(EkdError) as caught:
            check_runner_config(changed(base, {key: value}), "my.yaml")
        assert str(caught.value).startswith("my.yaml: ") and expected in str(caught.value)


def test_what_torchs_own_optimizers_take_is_theirs() -> None:
    values = read_yaml(packaged("config_runner.yaml"))
    values["optimizer"] = {"name": "TorchOptim", "torch_optim_name": "SGD", "lr": 0.1, "momentum": 0.9}
    values["runner"]["gradient_clipping"] = float("inf")
    assert check_runner_config(values, "my.yaml").optimizer.model_extra["momentum"] == 0.9


def test_other_teachers_do_not_start_the_student_from_one_of_the_base(tmp_path: Path) -> None:
    """It would be downloaded for that, and the student would not be what its file says."""
    file = tmp_path / "mine.yaml"
    values = {"base": "config_model.yaml", "ekd": {"teachers": [{"name": "wavlm", "source": "random:wavlm_base"}]}}
    file.write_text(yaml.safe_dump(values))
    message = rf"^{file}: ekd.initialise_from: 'hubert', as set in config_model.yaml, is not among .*\(wavlm\)"
    with pytest.raises(EkdError, match=message):
        load_model_config(file)
    for start in ("wavlm", None, "embedded:tiny_hubert"):
        values["ekd"]["initialise_from"] = start
        file.write_text(yaml.safe_dump(values))
        assert load_model_config(file).ekd.initialise_from == start


def test_what_replaces_a_merged_key_stands_there_once(tmp_path: Path) -> None:
    """``<<`` of a mapping that itself has a ``<<``, wherever in the file the two stand."""
    file = tmp_path / "a.yaml"
    file.write_text("a: &a {x: 1}\nb: {inner: &b {<<: *a, x: 2}}\nc: {<<: *b}\nd: {<<: [*a, *b]}\n")
    assert read_yaml(file) == {"a": {"x": 1}, "b": {"inner": {"x": 2}}, "c": {"x": 2}, "d": {"x": 1}}


def test_files_that_are_no_yaml(tmp_path: Path) -> None:
    for name, text, expected in (("a.yaml", "a: [", "line"), ("b.yaml", "- 1", "expected a mapping"),
                                 ("c.yaml", "base: nothing.yaml", "base: no file 'nothing.yaml'"),
                                 ("d.yaml", "base: d.yaml", "base: 'd.yaml' is this file, or one that starts from it"),
                                 ("e.yaml", "ekd: {mode: a}\nekd: {}", "e.yaml: line 2 .*key 'ekd' is given twice"),
                                 ("f.yaml", "ekd: {mode: a, mode: b}", "key 'mode' is given twice"),
                                 ("g.yaml", "ekd: {mode: {{ MODE }}}", "g.yaml: line 1 is not valid YAML"),
                                 ("h.yaml", "ekd: {mode: 2023-02-31}", "h.yaml: cannot be read .day is")):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(EkdError, match=expected):
            load_model_config(tmp_path / name)
    with pytest.raises(EkdError, match="no such configuration file"):
        load_model_config(tmp_path / "none.yaml")

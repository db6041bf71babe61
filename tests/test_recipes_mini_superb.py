"""The experiment of recipes/mini_superb: its rows, its statistics, its tables, and a small run of it by its command."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch
import yaml

from recipes.mini_superb import __main__ as command
from recipes.mini_superb import mfcc, settings, tables
from recipes.mini_superb.settings import Experiment, read_experiment, rows, variant_file
from recipes.mini_superb.statistics import METRICS, difference, mean_and_error
from recipes.mini_superb.students import every_target, model_config
from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.student_checkpoint import read_checkpoint
from s3prl_ekd.task_names import PAPER_TASKS
from s3prl_ekd.teachers.build import check_teachers

HERE = Path(command.__file__).parent
PER, SID, ER, WER, CER = METRICS


def test_rows_are_what_the_paper_compares(experiment: Experiment) -> None:
    named = {row.name: row.kind for row in rows(experiment)}
    assert len(named) == len(rows(experiment))
    for single in ("hubert", "robust_hubert", "wavlm"):
        assert named[single] == "student" and named[f"tiny_{single}"] == "teacher"
    assert {"fbank", "untrained", "start", "merged", "config_model", "recommended"} <= set(named)
    assert [row.name for row in rows(experiment) if row.from_random] == [
        f"{name}_from_random" for name in experiment.from_random
    ]
    assert {name for claim in tables.CLAIMS for name in claim[2:]} <= set(named)
    assert {name for claim in tables.TEACHER_CLAIMS for name in claim} <= set(named)
    with pytest.raises(EkdError, match="two rows are called 'hubert'"):
        rows(experiment.model_copy(update={"merged": {"hubert": ["wavlm", "robust_hubert"]}}))


def test_students_differ_from_their_variants_in_size_and_sources_alone(experiment: Experiment, tmp_path: Path) -> None:
    made = [row for row in rows(experiment) if row.kind == "student"]
    assert {row.name for row in made} > {*experiment.students, *experiment.ablations}
    for row in made:
        file = tmp_path / "model.yaml"
        file.write_text(yaml.safe_dump(model_config(experiment, row)))
        ours, theirs = load_model_config(file), row.read_variant()
        check_teachers(ours, str(file))
        assert ours.ekd.initialise_from == (None if row.from_random else experiment.initialise_from)
        assert [t.name for t in ours.ekd.teachers] == [t.name for t in theirs.ekd.teachers]
        assert all(t.layers == [2, 4, 6] for t in ours.ekd.teachers)
        assert all(t.source == experiment.teachers[s.source] for t, s in zip(ours.ekd.teachers, theirs.ekd.teachers,
                                                                             strict=True))  # fmt: skip
        same = {
            "mode",
            "cosine_weight",
            "l1_weight",
            "targets",
            "teacher_dropping",
            "balance",
            "weights",
            "residual_heads",
        }
        assert ours.ekd.model_dump(include=same) == theirs.ekd.model_dump(include=same)


def test_an_upstream_of_s3prls_starts_no_student(experiment: Experiment) -> None:
    row = next(row for row in rows(experiment) if row.kind == "student")
    with pytest.raises(EkdError, match="initialise_from: s3prl:mel: is an upstream of s3prl's own"):
        model_config(experiment.model_copy(update={"initialise_from": "s3prl:mel"}), row)


def test_ablations_change_one_thing_or_two(experiment: Experiment) -> None:
    base, recommended = (load_model_config(variant_file(name)).ekd for name in ("config_model", "recommended"))
    found = {row.name: row.read_variant().ekd for row in rows(experiment) if row.name in experiment.ablations}
    dropping = {"teacher_dropping": found["teacher_dropping"].teacher_dropping}
    assert dropping["teacher_dropping"].probability == 0.5
    assert found["teacher_dropping"] == base.model_copy(update=dropping) != base
    assert recommended == base.model_copy(update={"targets": recommended.targets}) != base
    assert found["standardised_and_dropping"] == recommended.model_copy(update=dropping)


def test_the_target_cache_is_filled_for_every_variant(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = every_target(experiment)["ekd"]
    filled = {teacher["name"]: set(teacher["layers"]) for teacher in found["teachers"]}
    assert filled == {name: {2, 4, 6} for name in ("hubert", "robust_hubert", "wavlm")}
    for row in (row for row in rows(experiment) if row.kind == "student"):
        ekd = model_config(experiment, row)["ekd"]
        assert all(set(teacher["layers"]) <= filled[teacher["name"]] for teacher in ekd["teachers"])
        assert ekd["teacher_precision"] == found["teacher_precision"]
    (tmp_path / "ffn.yaml").write_text("base: config_model.yaml\nekd: {targets: {tap: ffn}}\n")
    real = settings.variant_file
    monkeypatch.setattr(settings, "variant_file", lambda name: tmp_path / "ffn.yaml" if name == "ffn" else real(name))
    with pytest.raises(EkdError, match="cache_targets: the targets of ffn are no part of one cache; use false"):
        every_target(experiment.model_copy(update={"students": ["hubert", "ffn"]}))
    with pytest.raises(EkdError, match="the targets of changed are no part of one cache"):
        every_target(experiment.model_copy(update={"ablations": {"changed": {"targets": {"tap": "ffn"}}}}))


def test_mistakes_in_the_file_are_named(tmp_path: Path) -> None:
    values = yaml.safe_load((HERE / "experiment.yaml").read_text())
    file = tmp_path / "experiment.yaml"

    def message(**changes: object) -> str:
        file.write_text(yaml.safe_dump(values | changes))
        with pytest.raises(EkdError) as caught:
            read_experiment(file)
        return str(caught.value)

    assert "students[0]: 'hubbert' is no file of pretrain/ekd/variants/" in message(students=["hubbert"])
    assert "from_random[0]: 'hubbert' is no file of pretrain/ekd/variants/" in message(from_random=["hubbert"])
    assert "longer.hubbert: is no file of pretrain/ekd/variants/" in message(longer={"hubbert": 6000})
    assert "longer.hubert: expected more steps than every row's 1500, found 1500" in message(longer={"hubert": 1500})
    wrong = message(ablations={"a": {"modde": "average"}})
    assert "experiment.yaml: ablations.a: " in wrong and "ekd.modde: unknown key; did you mean mode?" in wrong
    assert "ablations.a: changes nothing" in message(ablations={"a": {}})
    assert "ablations.../x: names a folder" in message(ablations={"../x": {"mode": "average"}})
    assert "merged...: names a folder" in message(merged={"..": ["hubert", "wavlm"]})
    assert "experiment.yaml: two rows are called 'hubert'" in message(ablations={"hubert": {"cosine_weight": 2.0}})
    assert "ablations.a.precision: is the experiment's" in message(ablations={"a": {"precision": "fp32"}})
    evaluation = values["evaluation"]
    for changes, told in (
        ({"preset": "smal"}, "--preset: no preset 'smal'"),
        ({"override": ["pr:lr"]}, "--override 'pr:lr': expected TASK:"),
        ({"seeds": [1, 1]}, "1 is listed twice"),
        ({"lr": {"prr": [0.1]}}, "unknown task 'prr'"),
        ({"lr": {"pr": [0.0]}}, "learning rate '0.0': expected a positive number"),
    ):
        found = message(evaluation=evaluation | changes)
        assert found.startswith(f"{file}: evaluation: ") and told in found
    assert "merged.m: expected two or more of the students" in message(merged={"m": ["hubert"]})
    assert "stepz: unknown key" in message(distillation=values["distillation"] | {"stepz": 1})


def items(rng: np.random.Generator, share: float, seeds: int = 3, utterances: int = 400) -> dict:
    """Utterances of 10 tokens, each of its own speaker, each token wrong with a probability."""
    return {str(seed): {str(n): [int(rng.binomial(10, share)), 10] for n in range(utterances)} for seed in range(seeds)}


def test_means_and_their_errors() -> None:
    mean, error = mean_and_error({"1": 37.5, "2": 12.5})
    assert (mean, error) == (25.0, pytest.approx(12.5))
    assert mean_and_error({"1": 3.0}) == (3.0, None)


def test_a_gain_is_the_difference_of_the_scores_of_record() -> None:
    words = {"1": {"a-1": [1, 2, 3, 12], "b-1": [1, 4, 0, 12]}}
    other = {"1": {"a-1": [1, 2, 6, 12], "b-1": [3, 4, 0, 12]}}
    assert difference(WER, words, other).gain == pytest.approx(100 * (4 / 6 - 2 / 6))
    assert difference(CER, words, other).gain == pytest.approx(100 * 3 / 24)
    # folds of 1 and 3 utterances count alike, as in s3prl's five-fold mean
    ours = {"1": {"03_a": [0, 1, 1], "04_a": [1, 1, 2], "04_b": [0, 1, 2], "05_a": [0, 1, 2]}}
    theirs = {"1": {"03_a": [1, 1, 1], "04_a": [1, 1, 2], "04_b": [1, 1, 2], "05_a": [0, 1, 2]}}
    assert difference(ER, ours, theirs).gain == pytest.approx(100 * ((1 + 2 / 3) / 2 - (0 + 1 / 3) / 2))


def test_differences_have_a_direction_and_an_honest_error() -> None:
    rng = np.random.default_rng(0)
    good, bad = items(rng, 0.2), items(rng, 0.3)
    found = difference(PER, good, bad)
    assert found.gain == pytest.approx(10, abs=2) and found.beyond_noise  # lower is better: the first row gains
    assert difference(SID, good, bad).gain == pytest.approx(found.gain)  # so it does in what is right
    assert difference(PER, bad, good).gain == pytest.approx(-found.gain)
    # binomial: each row's rate has a variance of p (1 - p) / tokens; over seeds and over speakers it shows twice
    expected = 100 * math.sqrt((0.2 * 0.8 + 0.3 * 0.7) / (3 * 400 * 10))
    assert expected < found.error < 2.5 * expected
    assert 2 <= found.freedom <= 2 + 399
    same = difference(PER, good, good)
    assert same.gain == 0 and not same.beyond_noise
    # of equal rows few differences may look real: one in twenty by chance, less with both errors added
    beyond = sum(
        difference(PER, items(rng, 0.3, utterances=80), items(rng, 0.3, utterances=80)).beyond_noise for _ in range(200)
    )
    assert beyond <= 15
    paired = {seed: {n: [min(10, e + 1), 10] for n, (e, _) in utts.items()} for seed, utts in good.items()}
    assert difference(PER, good, paired).error < 0.5  # what both share cancels
    assert difference(PER, {"1": good["1"]}, {"2": bad["2"]}) is None  # no common seed
    assert difference(PER, {"1": good["1"]}, {"1": bad["1"]}).error > 0  # one seed: the test set's noise alone


def test_speakers_are_what_is_drawn() -> None:
    """Rows that are equal in truth, but whose speakers take to one or the other: utterances would see differences."""
    rng = np.random.default_rng(0)

    def row(likes: np.ndarray) -> dict:
        made = {}
        for seed in "123":
            made[seed] = {f"{s}-{n}": [int(rng.binomial(10, likes[s])), 10] for s in range(8) for n in range(30)}
        return made

    found = [difference(PER, row(rng.uniform(0.1, 0.5, 8)), row(rng.uniform(0.1, 0.5, 8))) for _ in range(100)]
    assert sum(one.beyond_noise for one in found) <= 10
    spread = float(np.std([one.gain for one in found]))
    assert spread / 1.5 < float(np.mean([one.error for one in found])) < 1.5 * spread


@pytest.mark.parametrize("word", ["-h", "--results"])
def test_a_call_for_help_and_a_wrong_word_write_no_tables(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PAGE", None)  # a page that is touched is an AttributeError
    with pytest.raises(SystemExit):
        tables.main([word])


def test_the_page_gets_its_tables() -> None:
    page = "a\n<!-- scores -->\nold\n<!-- end -->\nb\n<!-- claims -->\n<!-- end -->\n"
    filled = tables.fill(page, {"scores": "S\n", "claims": "C\n"})
    assert filled == "a\n<!-- scores -->\nS\n<!-- end -->\nb\n<!-- claims -->\nC\n<!-- end -->\n"
    assert tables.fill(filled, {"scores": "S\n", "claims": "C\n"}) == filled
    with pytest.raises(EkdError, match="no <!-- teachers -->"):
        tables.fill(page, {"teachers": "T\n"})
    for name in ("scores", "claims", "teachers"):
        assert f"<!-- {name} -->" in tables.PAGE.read_text()


def test_the_page_is_what_the_results_give(experiment: Experiment) -> None:
    """docs/results.md holds no number that results/ does not."""
    results = tables.read_results(experiment, tables.RESULTS)
    made = {
        "scores": tables.score_table(results),
        "claims": tables.claim_table(results),
        "teachers": tables.teacher_table(results),
    }
    page = tables.PAGE.read_text()
    assert tables.fill(page, made) == page


def test_items_agree_with_the_scores_of_record(experiment: Experiment) -> None:
    """Every kept row: what its utterances add up to is what the runner printed."""
    for result in tables.read_results(experiment, tables.RESULTS).values():
        for metric in METRICS:
            for seed, utterances in result.items(metric.task).items():
                names = list(utterances)
                wrong = float(metric.errors(utterances, names) @ metric.weights(utterances, names)[1])
                score = wrong if metric.lower_is_better else 100 - wrong
                assert score == pytest.approx(result.of_record(metric)[seed], abs=0.02)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows by the real commands on synthetic speech, one at all tasks and a second seed; again: nothing is redone."""
    pytest.importorskip("espeakng_loader")
    from s3prl_ekd.corpora.demo import SMALL, make_demo_corpus

    make_demo_corpus(tmp_path / "speech", SMALL)
    emotions = tmp_path / "speech" / "er" / "manifest.tsv"  # two of its five folds are as good
    rows = pandas.read_csv(emotions, sep="\t")
    rows[rows["fold"] <= 2].to_csv(emotions, sep="\t", index=False)
    values = yaml.safe_load((HERE / "experiment.yaml").read_text())
    values["students"], values["merged"] = ["hubert", "wavlm"], {"merged": ["hubert", "wavlm"]}
    values["longer"] = {"hubert": 6}
    values["distillation"] |= {"steps": 4, "batch_seconds": 8.0, "crop_seconds": 2.0, "cache_targets": True}
    few = "config.runner.total_steps=2,,config.runner.eval_step=2,,config.runner.save_step=2"
    values["evaluation"] |= {"preset": "tiny", "seeds": [1, 2], "override": [few]}
    values["evaluation"]["lr"] = {"pr": [1e-2], "sid": [1e-1, 1e-2], "er": [1e-3], "asr": [1e-3]}
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(values))
    words = ["--speech", str(tmp_path / "speech"), "--work", str(tmp_path / "work"), "--experiment", str(file)]
    words += ["--results", str(tmp_path / "results"), "--parallel", "2", "--only"]
    one = [*words, "hubert", "--seeds", "1"]
    assert command.main(one) == 0
    assert command.main([*words, "merged", "--seeds", "1", "--tasks", "sid"]) == 0
    assert command.main([*words, "hubert", "--seeds", "2", "--tasks", "sid"]) == 0
    assert command.main([*words, "hubert_longer", "--seeds", "1", "--tasks", "sid"]) == 0
    small = read_experiment(file)
    results = tables.read_results(small, tmp_path / "results")
    assert list(results) == ["hubert", "hubert_longer", "merged"]
    assert results.pop("hubert_longer").distillation["1"]["steps"] == 6
    for name, result in results.items():
        seeds = {"sid": ["1", "2"]} if name == "hubert" else {}
        done = dict.fromkeys(PAPER_TASKS, ["1"]) if name == "hubert" else {"sid": ["1"]}
        found = {task: sorted(result.items(task)) for task in PAPER_TASKS}
        assert {task: seeds_of for task, seeds_of in found.items() if seeds_of} == done | seeds
        first, *second = (scores["tasks"]["sid"] for scores in result.scores.values())
        assert [rate["lr"] for rate in first["grid"]] == [0.1, 0.01] and len(second) == len(seeds)
        assert all(score["lr"] == first["lr"] and "grid" not in score for score in second)
        assert str(tmp_path) not in json.dumps(result.scores)  # no path of this machine is kept
    assert results["hubert"].distillation["2"]["steps"] == 4 and not results["merged"].distillation
    for student in ("hubert/seed1", "wavlm/seed1", "hubert/seed2"):  # the teachers computed once for all
        found = re.search(
            r"targets of (\d+) of (\d+) windows", (tmp_path / "work/students" / student / "pretrain.log").read_text()
        )
        assert found is not None and found[1] == found[2] != "0"
    weights = [
        read_checkpoint(tmp_path / "work/students/hubert" / seed / "run")["encoder"] for seed in ("seed1", "seed2")
    ]
    assert not all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())  # a student a seed
    assert "HuBERT alone" in tables.score_table(results)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("states-*.ckpt")}
    assert command.main(one) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("states-*.ckpt")} == before
    values["distillation"]["lr"] = 1.0e-4
    file.write_text(yaml.safe_dump(values))
    assert command.main(one) == 2
    assert "students/hubert/seed1/made_by.json: this student was made with other settings" in capsys.readouterr().err
    values["distillation"] |= {"batch_seconds": 6.0}  # it shapes the windows
    file.write_text(yaml.safe_dump(values))
    shutil.rmtree(tmp_path / "work/students")
    assert command.main(one) == 2
    message = capsys.readouterr().err
    assert "filling/made_by.json: this target cache was made with other settings" in message
    assert f"remove {tmp_path}/work/filling and {tmp_path}/work/targets" in message


def test_the_mfcc_floor_is_of_the_classifiers_own_test_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Tones: each speaker's are its own; of each emotion too, but in the last fold all are mixed up."""
    rate = 16_000
    tones = {"a": 300.0, "b": 900.0, "c": 2700.0}
    for name in ("sid", "er"):
        (tmp_path / name).mkdir()
    for name, hertz in tones.items():
        for number in range(3):
            wave = 0.1 * np.sin(2 * np.pi * (hertz + 10 * number) * np.arange(rate // 2) / rate)
            soundfile.write(tmp_path / f"{name}{number}.wav", wave, rate)
    splits = ("train", "train", "test")
    sid = [f"{name}{number}.wav\t{splits[number]}\t{name}" for name in tones for number in range(3)]
    (tmp_path / "sid" / "manifest.tsv").write_text("\n".join(["path\tsplit\tspeaker", *sid, ""]))
    er = [
        f"{name}{number}.wav\t{number + 1}\ts{number}\t{'cab'['abc'.index(name)] if number == 2 else name}"
        for name in tones
        for number in range(3)
    ]
    (tmp_path / "er" / "manifest.tsv").write_text("\n".join(["path\tfold\tspeaker\temotion", *er, ""]))
    assert mfcc.main(["--speech", str(tmp_path)]) == 0
    printed = capfd.readouterr().out.split()
    assert printed[:3] == ["SID", "100.0", "ER"] and float(printed[3]) <= 66.7  # nothing of the last fold is right
    assert mfcc.main(["--speech", str(tmp_path / "none")]) == 2

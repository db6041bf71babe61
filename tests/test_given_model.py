"""Keys of the model file on the command line (``-o upstream_config.``): what they become, in a new run and in one that
goes on; by the class, and by the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trouble_lab
import yaml
from console import check_mistakes

from s3prl_ekd.bridge.given_model import GivenModel
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.config import load_model_config
from s3prl_ekd.errors import EkdError
from s3prl_ekd.student_checkpoint import newest_checkpoint
from s3prl_ekd.torch_file import read_torch_file

KEY = "upstream_config."


def given(*items: str, file: str | None = None) -> GivenModel:
    return GivenModel.of(file, ",,".join(f"{KEY}{item}" for item in items))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("layerwise_average", "layerwise_average"),
        ("'spread'", "spread"),
        ("[4, 8]", [4, 8]),
        ("None", None),
        ("False", False),
        ("2*10", 20),
        ("1e-3", 0.001),
        ("hf:owner/name", "hf:owner/name"),
        ("{'a': 1.5}", {"a": 1.5}),
        ("max", max),  # as s3prl reads it
    ],
)
def test_a_value_is_what_s3prl_makes_of_it(value: str, expected: object, capsys: pytest.CaptureFixture[str]) -> None:
    from s3prl.utility.helper import override

    found: dict[str, Any] = {}
    override(f"config.a.b = {value}", None, found)
    capsys.readouterr()
    assert given(f"a.b = {value}").changes == found == {"a": {"b": expected}}
    assert capsys.readouterr() == ("", "")  # s3prl says it


def test_only_keys_of_the_model_are_the_models() -> None:
    both = GivenModel.of(None, f"config.runner.x=1,, {KEY}ekd.mode=a ,,args.seed=2,,{KEY}ekd.weights.a=3")
    assert both.changes == {"ekd": {"mode": "a", "weights": {"a": 3}}}
    for text in (None, "none", "config.ekd.x=1", "args.upstream_config='x.yaml'"):
        assert GivenModel.of(None, text).changes == {}


@pytest.mark.parametrize("item", ["ekd.teachers[0].layers=[4]", "ekd.teachers.0.layers=[4]", "ekd.teachers.1={}"])
def test_an_element_of_a_list_is_not_reached(item: str) -> None:
    with pytest.raises(EkdError, match="reaches no element of a list; give the whole list"):
        given(item)
    assert given("ekd.teachers=[{'layers': [4.5]}]").changes  # a point or a bracket of the value is no key


def test_a_key_behind_the_value_of_another_is_a_mistake() -> None:
    with pytest.raises(EkdError, match="goes on behind the value of another"):
        given("ekd.mode=a", "ekd.mode.b=1")


def test_the_keys_are_those_of_a_file_on_top(tmp_path: Path) -> None:
    (tmp_path / "top.yaml").write_text(
        "base: embedded.yaml\nekd: {cosine_weight: 0.5, weights: {tiny_wavlm: 2.0}}\nstudent: {layers: 3}\n"
        "distortion: {additive: {snr: [0, 5]}}\n"
    )
    keys = "ekd.cosine_weight=0.5", "ekd.weights.tiny_wavlm=2.0", "student.layers=3", "distortion.additive.snr=[0, 5]"
    assert given(*keys).load("embedded") == load_model_config(tmp_path / "top.yaml")
    with pytest.raises(EkdError, match=r"ekd.initialise_from: 'hubert', as set in embedded.yaml, is not among"):
        given("ekd.teachers=[{'name': 'a', 'source': 'embedded:tiny_wavlm', 'layers': [2]}]").load("embedded")


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise").mkdir()
    found = given("ekd.cache_targets=cache", "distortion.additive.noise=['noise']").load("embedded")
    assert found.ekd.cache_targets == str(tmp_path / "cache")
    assert found.distortion is not None and found.distortion.additive is not None
    assert found.distortion.additive.noise == [str(tmp_path / "noise")]


def test_a_mistake_names_the_option_or_the_file_by_its_key() -> None:
    one = given("ekd.mode=a", "student.layers=3", "ekd.teachers=[]")
    for message, expected in (
        ("x.yaml: ekd.mode: wrong", f"-o {KEY}ekd.mode: wrong"),
        ("x.yaml: ekd.teachers[1].layers: 9 > 6", f"-o {KEY}ekd.teachers[1].layers: 9 > 6"),
        ("x.yaml: student.layers.x: unknown key", f"-o {KEY}student.layers.x: unknown key"),
        (
            "x.yaml: student: unknown key; did you mean students?",
            f"-o {KEY}student: unknown key; did you mean students?",
        ),
        ("x.yaml: student.layers2: wrong", "x.yaml (with -o): student.layers2: wrong"),
        ("x.yaml: ekd: they do not fit", "x.yaml (with -o): ekd: they do not fit"),
        ("y.yaml: ekd.mode: wrong", "y.yaml: ekd.mode: wrong"),
        ("no file at all", "no file at all"),
    ):
        assert one.named(message, "x.yaml") == expected
        assert one.named(expected, "x.yaml") == expected
        assert GivenModel("x.yaml").named(message, "x.yaml") == message


def test_a_run_that_goes_on_keeps_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start").mkdir()
    (tmp_path / "start/states-4.ckpt").touch()
    kept = load_model_config("embedded").model_dump(mode="json")
    kept["ekd"] |= {"mode": "layerwise_average", "initialise_from": str(tmp_path / "start/states-4.ckpt")}
    kept["ekd"]["cache_targets"] = str(tmp_path / "gone")
    del kept["ekd"]["l1_weight"]  # of an earlier version

    for same in (
        "ekd.mode='layerwise_average'",
        "ekd.cosine_weight=1",
        "ekd.initialise_from=start",
        "student.mask=None",
    ):
        given(same).check_kept(kept, "s.ckpt")
    for other, keys in (
        ("ekd.mode=multi_head", "ekd.mode"),
        ("ekd.initialise_from=None", "ekd.initialise_from"),
        ("distortion.additive.snr=[0, 5]", "distortion"),
        ("ekd.teachers=[{'name': 'a', 'source': 'embedded:tiny_hubert'}]", "ekd.teachers"),
    ):
        with pytest.raises(EkdError) as caught:
            given(other).check_kept(kept, "s.ckpt")
        assert str(caught.value).startswith(
            f"-o upstream_config: {keys}: not as in s.ckpt, and a run that goes on keeps"
        )
    with pytest.raises(EkdError, match=r"^s.ckpt: ekd.modee: unknown key"):
        given("ekd.modee=1").check_kept(kept, "s.ckpt")
    moved = given("ekd.cache_targets=moved")
    moved.check_kept(kept, "s.ckpt")  # a new place
    assert moved.follow(kept, "s.ckpt", "ekd")["ekd"]["cache_targets"] == str(tmp_path / "moved")
    assert given("ekd.mode=layerwise_average").follow(kept, "s.ckpt", "ekd")["ekd"] == kept["ekd"]
    (tmp_path / "gone").symlink_to(tmp_path / "start")
    given("ekd.mode=layerwise_average").check_kept(kept, "s.ckpt")  # it leads elsewhere by now
    with pytest.raises(EkdError, match="ekd.cache_targets: not as in s.ckpt"):
        moved.check_kept(kept, "s.ckpt")


@pytest.mark.slow
def test_an_ablation_needs_no_file_of_its_own(lab: Path, tmp_path: Path) -> None:
    """It is the run of a file with these keys; the same command with -a goes on, one with others does not."""
    wanted = {"mode": "layerwise_average", "cosine_weight": 0.5, "weights": {"average": 2.0}}
    changes = ",,".join(f"{KEY}ekd.{key}={value}" for key, value in wanted.items())
    changes += f",,{KEY}student.layers=1,,{KEY}distortion.additive.snr=[0, 5]"
    model = yaml.safe_load((lab / "model.yaml").read_text())
    model["ekd"] |= wanted
    model["student"] |= {"layers": 1}
    model["distortion"] = {"additive": {"snr": [0, 5]}}
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(model))

    def words(name: str, model: Path, more: str = "", **runner: int) -> list[str]:
        found = trouble_lab.arguments(lab, model, name, "cpu", **runner)
        return [*found[:-1], found[-1] + more]

    trouble_lab.run(tmp_path, *words("file", tmp_path / "file.yaml", total_steps=4, save_step=2))
    command = words("option", lab / "model.yaml", f",,{changes}", total_steps=4, save_step=2)
    _, err = trouble_lab.run(tmp_path, *command, faults="3:kill", status=-9)
    assert f"[Override] - {KEY}student.layers = 1" in err
    for other in ("ekd.mode=multi_head", "ekd.cosine_weight=0.7"):
        _, err = trouble_lab.run(tmp_path, "-u", "ekd", "-e", "option", "-o", f"{KEY}{other}", status=2)
        key = other.partition("=")[0]
        assert f"error: -o upstream_config: {key}: not as in option/states-2.ckpt, and" in err.splitlines()[-1]
    _, err = trouble_lab.run(tmp_path, *command, "-a")
    assert "ignored" not in err
    one, two = (read_torch_file(newest_checkpoint(tmp_path / name)) for name in ("file", "option"))
    assert one["Step"] == two["Step"] == 4 and one["Upstream_Config"] == two["Upstream_Config"]
    assert all((value == two["EKD"]["encoder"][name]).all() for name, value in one["EKD"]["encoder"].items())
    assert read_yaml(tmp_path / "file/config_model.yaml") == read_yaml(tmp_path / "option/config_model.yaml")
    # the file alone is another model than the checkpoint's
    _, err = trouble_lab.run(tmp_path, *words("option", lab / "model.yaml", total_steps=5, save_step=2), "-a")
    assert f"ignored: -g {lab}/model.yaml (differs in ekd.mode, ekd.cosine_weight, student.layers, distortion)" in err


@pytest.mark.slow
def test_mistakes_on_the_command_line_are_one_line(lab: Path, tmp_path: Path) -> None:
    base = f"-u ekd -p x -g {lab}/model.yaml -c {lab}/runner.yaml -o {KEY}"
    mistakes = {
        f"{base}ekd.modee=1": f"error: -o {KEY}ekd.modee: unknown key; did you mean mode?",
        f"{base}ekd.mode=average": f"error: -o {KEY}ekd.mode: input should be 'layerwise_average', ",
        f"{base}students.layers=1": f"error: -o {KEY}students: unknown key; did you mean student?",
        f"{base}student.layers=7": f"error: {lab}/model.yaml (with -o): ",  # more than there are to start from
        f"{base}ekd.mode.x=1": "model.yaml (with -o): ekd.mode: input should be 'layerwise_average', ",
        f"{base}ekd.teachers=[]": "model.yaml (with -o): ekd.initialise_from: 'hubert', as set in model.yaml, is not",
        f"{base}ekd.weights.nobody=1.0": f"error: -o {KEY}ekd.weights",
        f"{base}ekd.cosine_weight=2e-4x": f"error: -o {KEY}ekd.cosine_weight: input should be a valid number",
    }
    check_mistakes("pretrain", mistakes, tmp_path)
    assert not (tmp_path / "x").exists()

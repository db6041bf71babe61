"""The Hugging Face folder: transformers computes what we compute; it comes back as student and teacher; the upload."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from export_student import write_student

from s3prl_ekd.cli import main
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate.inputs import content
from s3prl_ekd.export import cards
from s3prl_ekd.export.huggingface import export_huggingface
from s3prl_ekd.export.superb import export_superb
from s3prl_ekd.export.superb_expert import UpstreamExpert as SubmittedExpert
from s3prl_ekd.shape import HUBERT_BASE
from s3prl_ekd.student_checkpoint import load_student
from s3prl_ekd.teachers import sources
from s3prl_ekd.upstream.ekd_student.expert import UpstreamExpert

SAMPLES = (16_000, 11_111, 9_000)


def export(ckpt: Path, out: Path, *words: str) -> int:
    """The status of ``s3prl-ekd export hf``."""
    return main(["export", "hf", "--ckpt", str(ckpt), "--out", str(out), *words])


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "student"
    assert export(checkpoint, folder, "--training-data", "train-clean-100") == 0
    return folder


def test_transformers_computes_the_same(checkpoint: Path, exported: Path) -> None:
    from transformers import AutoFeatureExtractor, AutoModel

    model, report = AutoModel.from_pretrained(exported, output_loading_info=True)
    assert type(model).__name__ == "HubertModel"
    assert not report["missing_keys"] and not report["unexpected_keys"]
    extractor = AutoFeatureExtractor.from_pretrained(exported)
    wavs = [torch.randn(count).numpy() for count in SAMPLES]
    inputs = extractor(wavs, sampling_rate=16_000, padding=True, return_tensors="pt")
    assert inputs["attention_mask"].sum(1).tolist() == list(SAMPLES)  # by itself
    encoder, _, _ = load_student(checkpoint)
    with torch.no_grad():
        theirs = model.eval()(**inputs, output_hidden_states=True).hidden_states
        ours = encoder(inputs["input_values"], torch.tensor(SAMPLES))
        expert = UpstreamExpert(str(checkpoint)).eval()([torch.from_numpy(wav) for wav in wavs])["hidden_states"]
    assert len(theirs) == len(ours.states) == len(expert) == 3
    speech = ours.mask
    for layer in range(3):  # state 0 is the input of layer 1 in both
        torch.testing.assert_close(theirs[layer][speech], ours.states[layer][speech], atol=1e-5, rtol=0)
    for layer in (1, 2):
        torch.testing.assert_close(theirs[layer][speech], expert[layer][speech], atol=1e-5, rtol=0)


def test_comes_back_as_student_and_teacher(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    wavs = [torch.randn(count) for count in SAMPLES]
    with torch.no_grad():
        expected = UpstreamExpert(str(checkpoint)).eval()(wavs)["hidden_states"]
        found = UpstreamExpert(str(exported)).eval()(wavs)["hidden_states"]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)

    teacher = sources.describe(str(exported))
    assert teacher.family == "hubert" and not teacher.shape.feature_norm
    weights, own = sources.load(teacher).state_dict(), load_student(checkpoint)[0].state_dict()
    assert weights.keys() == own.keys() and all(torch.equal(weights[name], own[name]) for name in own)

    again = tmp_path / "again"
    assert export(exported, again) == 0
    assert (again / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    assert "Converted from a transformers model" in (again / "README.md").read_text()
    assert main(["export", "superb", "--ckpt", str(exported), "--out", str(tmp_path / "superb")]) == 0


@pytest.mark.parametrize("normalize", [False, True])
def test_a_distilhubert_folder_by_transformers_own_hand(tmp_path: Path, normalize: bool) -> None:
    """As published: a HubertModel saved by transformers, two layers, no norm before the projection."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, conv_dim=[32] * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, feat_proj_layer_norm=False,
    )  # fmt: skip
    model = HubertModel(config).eval()
    model.save_pretrained(tmp_path)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalize, return_attention_mask=False)
    extractor.save_pretrained(tmp_path)
    clip = 0.001 * torch.randn(12_345) + 0.5  # normalising shows: the group norm's epsilon is near this variance
    wave = extractor(clip.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    assert main(["export", "superb", "--ckpt", str(tmp_path), "--out", str(tmp_path / "superb")]) == 0
    with torch.no_grad():
        theirs = model(wave, output_hidden_states=True).hidden_states
        # their fp32 loses five digits to the offset; ours takes it away first and keeps them
        exact = model.double()(wave.double(), output_hidden_states=True).hidden_states
        student = UpstreamExpert(str(tmp_path)).eval()([clip])["hidden_states"]
        submitted = SubmittedExpert(str(tmp_path / "superb" / "model.pt"))([clip])["hidden_states"]
        teacher = sources.load(sources.describe(str(tmp_path)))(wave).states
    for layer in range(3):
        torch.testing.assert_close(teacher[layer], exact[layer].float(), atol=1e-5, rtol=0)
        if layer:  # state 0 is the projected features here, theirs has the positions added
            torch.testing.assert_close(student[layer], exact[layer].float(), atol=1e-5, rtol=0)
            torch.testing.assert_close(submitted[layer], theirs[layer], atol=1e-4 if normalize else 1e-5, rtol=0)


def score_record(checkpoint: Path) -> dict[str, Any]:
    """Scores of a checkpoint as ``s3prl-ekd evaluate`` writes them."""
    return {
        "label": "mine", "upstream": "ekd_student", "checkpoint": str(checkpoint), "preset": "quick",
        "checkpoint_sha256": content(checkpoint), "cache_states": True,
        "tasks": {"pr": {"per": 51.25, "n_utterances": 7, "steps": 300, "lr": 0.01}},
    }  # fmt: skip


def test_card(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert (config["num_hidden_layers"], config["feat_proj_layer_norm"], config["hidden_dropout"]) == (2, False, 0.1)
    card = (exported / "README.md").read_text()
    for word in ("license: mit", "wavlm_base_plus", "train-clean-100", "284,000 parameters", "multi_head"):
        assert word in card
    assert "## Scores" not in card
    scores, record = tmp_path / "scores.json", score_record(checkpoint)
    scores.write_text(json.dumps(record))
    assert export(checkpoint, tmp_path / "x", "--scores", str(scores), "--licence", "cc-by-4.0") == 0
    card = (tmp_path / "x" / "README.md").read_text()
    for word in ("| PR (PER %) | 51.25 | 7 | 300 | 0.01 |", "encoded alone", "license: cc-by-4.0"):
        assert word in card
    assert not (tmp_path / "x" / "LICENSE").exists()
    several = {"seeds": [1, 2], "tasks": {"pr": record["tasks"]["pr"] | {"standard_error": {"per": 0.5}}}}
    scores.write_text(json.dumps(record | several))
    export_huggingface(checkpoint, tmp_path / "z", scores=scores)
    card = (tmp_path / "z" / "README.md").read_text()
    assert "| PR (PER %) | 51.25 ± 0.50 | 7 |" in card and "Means over 2 seeds" in card
    folds = {"acc": 50.0, "n_utterances": 8, "folds": {"fold1": {}, "fold2": {}}}
    scores.write_text(json.dumps(record | {"tasks": {"er": folds}}))
    export_huggingface(checkpoint, tmp_path / "z", scores=scores)
    assert "ER is the mean over fold1, fold2 alone." in (tmp_path / "z" / "README.md").read_text()
    scores.write_text(json.dumps(record | {"checkpoint": "other.ckpt", "checkpoint_sha256": "0" * 64}))
    with pytest.raises(EkdError, match="holds the scores of other.ckpt, which is not what .*states"):
        export_huggingface(checkpoint, tmp_path / "y", scores=scores)
    scores.write_text(json.dumps(record | {"label": "fbank", "upstream": "fbank"}))
    with pytest.raises(EkdError, match="scores of 'fbank'"):
        export_huggingface(checkpoint, tmp_path / "y", scores=scores)


def test_a_folder_of_somebody_else_stays(checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "whisper"
    theirs.mkdir()
    for name in ("config.json", "README.md", "expert.py", "model.pt"):
        (theirs / name).write_text("mine")
    for kind in ("hf", "superb"):
        assert main(["export", kind, "--ckpt", str(checkpoint), "--out", str(theirs)]) == 2
    assert {file.read_text() for file in theirs.iterdir()} == {"mine"}
    ours = tmp_path / "ours"
    export_huggingface(checkpoint, ours)
    assert (ours / "LICENSE").is_file()
    export_huggingface(checkpoint, ours, licence="cc-by-nc-4.0")  # an earlier export is written over
    assert not (ours / "LICENSE").exists()


def test_a_checkpoint_of_others_writes_nothing_of_its_own_into_a_card(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    ekd = state["EKD"]["config"]["ekd"]
    ekd["teachers"][0] |= {"name": "x](javascript:a)<script>\n\n# Mine\n", "source": "/models/`a`\n<b>"}
    ekd["initialise_from"] = "<img src=x>\n# Mine"
    state["EKD"]["head_sets"][0]["labels"][0] = "4 |\n# Mine"
    torch.save(state, tmp_path / "evil.ckpt")
    card = (export_huggingface(tmp_path / "evil.ckpt", tmp_path / "hf") / "README.md").read_text()
    card += (export_superb(tmp_path / "evil.ckpt", tmp_path / "superb", keep_heads=True) / "README.md").read_text()
    assert not any(words in card for words in ("\n# Mine", "<script>", "<img", "<b>", "](java", "`a`"))


def test_an_earlier_card_keeps_what_is_not_said_again(checkpoint: Path, tmp_path: Path, caplog) -> None:
    """The documented order: export with everything, look at it, push."""
    out, card = tmp_path / "out", tmp_path / "out" / "README.md"
    other = write_student(tmp_path / "other" / "states-1.ckpt", seed=9)
    everything = ("--training-data", "other corpus", "--licence", "mit")
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps(score_record(checkpoint)))
    mine = ("--training-data", "my corpus", "--licence", "cc-by-4.0", "--scores", str(scores))
    assert export(checkpoint, out, *mine) == 0
    rich = card.read_text()
    caplog.set_level(logging.INFO)
    assert export(checkpoint, out) == 0
    assert card.read_text() == rich
    assert not (out / "LICENSE").exists()
    assert export(checkpoint, out, "--training-data", "another corpus") == 0
    assert card.read_text().splitlines()[:-1] == rich.replace("my corpus", "another corpus").splitlines()[:-1]

    (out / "LICENSE").write_text("mine")
    weights = (out / "model.safetensors").read_bytes()
    made = next(line for line in rich.splitlines() if "made with s3prl-ekd" in line)
    for edited in (f"{rich}\nMine.\n", rich.replace("# Dist", "# My dist"), rich.replace(made, f"{made}, mended")):
        card.write_text(edited)
        caplog.clear()
        assert export(checkpoint, out) == 0
        assert f"{card}: stays as it is: the weights are the same" in caplog.text
        for words in (("--training-data", "third corpus"), ("--scores", str(scores))):
            assert export(checkpoint, out, *words) == 2
        assert export(other, out) == export(other, out, *everything) == 2  # which cannot be given for these weights
        assert card.read_text() == edited and (out / "LICENSE").read_text() == "mine"
        assert (out / "model.safetensors").read_bytes() == weights


def test_a_card_is_no_poorer_for_an_export_of_the_folder_itself(checkpoint: Path, tmp_path: Path, capfd) -> None:
    """A transformers folder does not know how its student was trained; where it came first, its card becomes richer."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert export(checkpoint, first, "--training-data", "my corpus") == 0
    rich = (first / "README.md").read_text()
    assert export(first, first) == 0
    assert export(first, first, "--licence", "cc-by-4.0") == 2
    assert "says how the student was trained, which --ckpt does not" in capfd.readouterr().err
    assert (first / "README.md").read_text() == rich
    assert export(first, second, "--training-data", "my corpus") == 0
    assert (second / "README.md").read_text() != rich
    assert export(checkpoint, second) == 0
    assert (second / "README.md").read_text() == rich


def test_a_config_that_was_edited_is_never_written_over(checkpoint: Path, tmp_path: Path, caplog, capfd) -> None:
    """As an edited card: it stays while the weights are the same, and is refused where they are others."""
    out, other = tmp_path / "out", write_student(tmp_path / "other" / "states-1.ckpt", seed=9)
    caplog.set_level(logging.INFO)
    assert export(checkpoint, out, "--training-data", "my corpus") == 0
    written = {name: (out / name).read_text() for name in ("config.json", "preprocessor_config.json")}
    for name, key, value in (
        ("config.json", "hidden_dropout", 0.25),
        ("config.json", "id2label", {"0": "yes"}),
        ("preprocessor_config.json", "note", "mine"),
    ):
        file, whole = out / name, {other: text for other, text in written.items() if other != name}
        edited = json.dumps(json.loads(written[name]) | {key: value})
        file.write_text(edited)
        caplog.clear()
        for more in ([], ["--training-data", f"corpus of {key}"]):
            assert export(checkpoint, out, *more) == 0
            assert file.read_text() == edited and f"{file}: stays as it is: it was edited" in caplog.text
        assert export(out, out) == 0 and file.read_text() == edited
        assert {other: (out / other).read_text() for other in whole} == whole
        before = {path: path.read_bytes() for path in out.iterdir()}
        capfd.readouterr()
        assert export(other, out, "--training-data", "other corpus") == 2
        message = f"error: {file}: was edited, or another version wrote it, for other weights; name another folder\n"
        assert capfd.readouterr().err.endswith(message)
        assert {path: path.read_bytes() for path in out.iterdir()} == before
        file.write_text(written[name])
    # a folder that is exported onto itself does not know the dropout, and keeps it
    assert json.loads(written["config.json"])["hidden_dropout"] > 0
    caplog.clear()
    assert export(out, out) == 0 and "config.json" not in caplog.text
    assert (out / "config.json").read_text() == written["config.json"]
    assert export(other, out, "--training-data", "other corpus") == 0
    # what another version wrote is replaced where it is known to be that version's
    file, card = out / "config.json", out / "README.md"
    earlier = file.read_text().replace('"layerdrop": 0.0', '"layerdrop": 0.5')
    text = cards._SEAL.sub("", card.read_text()).replace(cards.digest(file.read_text()), cards.digest(earlier))
    file.write_text(earlier)
    card.write_text(cards._sealed(text))
    assert export(other, out) == 0 and '"layerdrop": 0.0' in file.read_text()


def test_a_kill_leaves_no_card_beside_other_weights(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    """The next export would find its weights there and keep the card, which is of others."""
    out, other = tmp_path / "out", write_student(tmp_path / "other" / "states-1.ckpt", seed=9)
    export_huggingface(checkpoint, out, data="my corpus")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("s3prl_ekd.export.huggingface.cards.huggingface_card", killed)
        export_huggingface(other, out, data="other corpus")
    with pytest.raises(EkdError, match="is not empty and holds no earlier export"):
        export_huggingface(other, out)
    assert not (out / "README.md").exists()


def test_a_card_of_other_weights_is_not_made_poorer(checkpoint: Path, tmp_path: Path, capfd) -> None:
    out, other = tmp_path / "out", write_student(tmp_path / "other" / "states-1.ckpt", seed=9)
    assert export(checkpoint, out, "--training-data", "my corpus", "--licence", "cc-by-4.0") == 0
    before = {file: file.read_bytes() for file in out.iterdir()}
    capfd.readouterr()
    assert export(other, out) == 2
    told = capfd.readouterr().err
    assert f"--out {out}: holds other weights, and its README.md says more of them" in told
    assert "give --licence, --training-data, or name another folder" in told
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    assert export(other, out, "--training-data", "other corpus", "--licence", "mit") == 0
    card = (out / "README.md").read_text()
    assert "other corpus" in card and "my corpus" not in card and "license: mit" in card
    # a licence of mit is what an export says by itself
    assert export(checkpoint, out, "--training-data", "x") == 0


def test_a_card_says_over_how_many_seeds_each_task_was_averaged() -> None:
    def task(*seeds: str) -> dict[str, object]:
        return {"acc": 1.0, "per": 1.0, "standard_error": {}} | ({"seeds": dict.fromkeys(seeds)} if seeds else {})

    record = {"label": "x", "seeds": [1, 2, 3], "tasks": {"pr": task("1", "2"), "sid": task("1", "2", "3")}}
    assert "Means over 2 to 3 seeds ±" in cards.scores_section(record)


def test_what_is_no_student(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EkdError, match="no config.json"):
        UpstreamExpert(str(tmp_path / "empty"))
    assert export(tmp_path / "nothing", tmp_path / "out") == 2


def test_push_only_when_asked(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple] = []

    class Hub:
        def create_repo(self, repository: str, **options: object) -> None:
            calls.append(("create", repository, options))

        def upload_folder(self, **options: Any) -> SimpleNamespace:
            calls.append(("upload", options["repo_id"], sorted(file.name for file in options["folder_path"].iterdir())))
            if options["repo_id"] == "me/refused":
                raise OSError("no network")
            return SimpleNamespace(oid="abc123")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    out = tmp_path / "out"
    assert export(checkpoint, out) == 0 and calls == []
    assert export(checkpoint, out, "--push", "me/student", "--private") == 0
    assert "uploaded to me/student (abc123)" in capfd.readouterr().out
    assert calls[0] == ("create", "me/student", {"private": True, "exist_ok": True})
    assert calls[1][2] == ["LICENSE", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert export(checkpoint, out, "--push", "me/refused") == 2
    assert "no network" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--licence", "cc: by"), "--licence 'cc: by': expected an identifier, such as mit or cc-by-4.0"),
        (("--licence", "mit\ntags: x"), "expected an identifier"),  # the card's header is YAML
        (("--private",), "--private: is for --push OWNER/NAME"),
    ],
)
def test_mistakes_leave_nothing(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    assert export(checkpoint, out, *words) == 2
    assert message in capfd.readouterr().err and not out.exists()


@pytest.mark.parametrize(
    "source,shown",
    [
        ("hubert_base", "hubert_base"),
        ("/home/me/secret/my_hubert", "my_hubert"),
        ("s3prl:fbank", "s3prl:fbank"),
        ("models/x.pt", "x.pt"),
    ],
)
def test_a_card_does_not_tell_where_files_lay(source: str, shown: str) -> None:
    text = cards._origin({"config": {"ekd": {"teachers": [{"name": "one", "source": source}]}}})
    assert f"one (`{shown}`)" in text and "secret" not in text
    ekd = {"teachers": [], "mode": "multi_head", "cosine_weight": 1.0, "initialise_from": source}
    method = cards._method({"config": {"ekd": ekd}}, HUBERT_BASE)
    assert f"started from: {shown}" in method and "secret" not in method

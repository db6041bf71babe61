"""Models side by side: ``-u ekd_ensemble``, its list, and what it costs; the same of a student with its heads."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from bridge_corpora import overrides, voxceleb
from console import forked
from export_student import write_student
from torch import nn

from s3prl_ekd.bridge import checkpoints, downstream_arguments
from s3prl_ekd.bridge.upstream_weights import KEY, UpstreamWeights
from s3prl_ekd.ensemble_file import read_members
from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import models
from s3prl_ekd.evaluate.cost import upstream_cost
from s3prl_ekd.evaluate.inputs import changed_input, model_digest
from s3prl_ekd.macs.models import checkpoint_cost, model_cost
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_transformers
from s3prl_ekd.upstream.ekd_ensemble.expert import UpstreamExpert
from s3prl_ekd.upstream.ekd_student.expert import UpstreamExpert as StudentExpert
from s3prl_ekd.upstream.ekd_teacher.expert import UpstreamExpert as TeacherExpert

WAVS = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (9_000, 16_000)]


def write_list(file: Path, *entries: object) -> Path:
    file.write_text(yaml.safe_dump(list(entries)))
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students, a teacher as deep and as wide, and a narrower one; ``two.yaml`` lists the students."""
    made = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        (made / f"run{seed}").mkdir()
        write_student(made / f"run{seed}" / "states-10.ckpt", seed=seed)
    write_transformers(random_encoder(TINY.with_(layers=2), seed=0), made / "teacher")
    write_transformers(random_encoder(TINY.with_(layers=2, width=128), seed=0), made / "narrow")
    write_list(made / "two.yaml", {"ckpt": "run1"}, {"ckpt": "run2/states-10.ckpt"})
    return made


def states(expert: nn.Module, key: str = "hidden_states") -> list[torch.Tensor]:
    with torch.no_grad():
        return expert.eval()(WAVS)[key]


def test_states_are_joined_layer_by_layer(folder: Path) -> None:
    found = states(UpstreamExpert(str(folder / "two.yaml")))
    one, other = (states(StudentExpert(str(folder / f"run{seed}"))) for seed in (1, 2))
    assert len(found) == 3
    for joined, *parts in zip(found, one, other, strict=True):
        assert torch.equal(joined, torch.cat(parts, dim=-1))
    mean = states(UpstreamExpert(str(folder / "two.yaml")), "mean")
    assert all(torch.equal(value, (a + b) / 2) for value, a, b in zip(mean, one, other, strict=True))


def test_teachers_stand_beside_students(folder: Path, tmp_path: Path) -> None:
    """Of another width too, where no mean can be taken."""
    file = write_list(
        tmp_path / "all.yaml", {"teacher": str(folder / "narrow")}, {"ckpt": str(folder / "run1")},
        {"teacher": f"random:{folder / 'teacher'}"},
    )  # fmt: skip
    expert = UpstreamExpert(str(file))
    found = states(expert)
    assert [state.shape[2] for state in found] == [128 + 2 * TINY.width] * 3
    assert torch.equal(found[0][..., :128], states(TeacherExpert(str(folder / "narrow")))[0])
    with pytest.raises(KeyError):
        states(expert, "mean")


def test_s3prls_featurizer_takes_it(folder: Path) -> None:
    import s3prl_ekd

    s3prl_ekd.register()
    from s3prl.nn import Featurizer, S3PRLUpstream

    upstream = S3PRLUpstream("ekd_ensemble", path_or_url=str(folder / "two.yaml")).eval()
    assert upstream.num_layers == 3
    lengths = torch.tensor([16_000, 9_000])
    with torch.no_grad():
        pooled, _ = Featurizer(upstream)(*upstream(torch.randn(2, 16_000), lengths))
    assert pooled.shape == (2, 50, 2 * TINY.width)


MISTAKES = {
    "ckpt: run1": "expected a list of two models or more, each of them {ckpt: CHECKPOINT} or {teacher: SOURCE}",
    "- {ckpt: run1}": "expected a list of two models or more",
    "- {ckpt: run1}\n- run2": "[1]: expected {ckpt: CHECKPOINT} or {teacher: SOURCE}",
    "- {ckpt: run1}\n- {ckpt: run2, teacher: x}": "[1]: expected {ckpt: CHECKPOINT} or {teacher: SOURCE}",
    "- {ckpt: run1}\n- {ckpt: 3}": "[1]: expected {ckpt: CHECKPOINT} or {teacher: SOURCE}",
    "- {ckpt: run1}\n- {student: run2}": "[1]: unknown key 'student'; expected {ckpt: CHECKPOINT} or {teacher: SOURCE}",
    "- {ckpt: run3}\n- {ckpt: run2}": "[0]: ckpt: no such file or folder: ",
    "- {ckpt: run1}\n- {ckpt: ''}": "[1]: ckpt: no such file or folder: ",
    "- {ckpt: run1}\n- {teacher: hubert_bsae}": "[1]: teacher: 'hubert_bsae' is no s3prl hub name",
    "- {ckpt: run1}\n- {teacher: 's3prl:fbank'}": "[1]: teacher: s3prl:fbank: is an upstream of s3prl's own",
    "- {ckpt: run1}\n- {ckpt: 'hf:a/b@'}": "[1]: ckpt: 'hf:a/b@': the revision behind @ is missing",
}


def test_every_mistake_of_the_list_is_one_line(folder: Path) -> None:
    file = folder / "wrong.yaml"
    for text, expected in MISTAKES.items():
        file.write_text(text)
        with pytest.raises(EkdError) as error:
            read_members(file)
        assert str(error.value).startswith(f"{file}: {expected}"), text


def test_models_of_unlike_depth_are_refused(folder: Path) -> None:
    deep = write_transformers(random_encoder(TINY.with_(layers=3), seed=0), folder / "deep")
    file = write_list(folder / "unlike.yaml", {"ckpt": "run1"}, {"teacher": str(deep)})
    with pytest.raises(EkdError, match=rf"{file}: \[1\]: layers 3, but 2 of \[0\]; they must be equal$"):
        UpstreamExpert(str(file))
    (folder / "notes.ckpt").write_text("no checkpoint")
    with pytest.raises(EkdError, match=rf"{file}: \[0\]: .*notes.ckpt: cannot be read"):
        UpstreamExpert(str(write_list(file, {"ckpt": "notes.ckpt"}, {"ckpt": "run1"})))


def test_the_launcher_checks_the_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(ckpt: str | None) -> str:
        args = Namespace(upstream="ekd_ensemble", upstream_ckpt=ckpt, upstream_model_config=None, hub="torch")
        downstream_arguments.check_upstream(args)
        return args.upstream_ckpt

    monkeypatch.chdir(folder)
    assert check("two.yaml") == str(folder / "two.yaml")
    (folder / "one.yaml").write_text("- {ckpt: run1}")
    wrong = {
        None: "-u ekd_ensemble: give the list of its models with -k FILE.yaml",
        "none.yaml": "-k none.yaml: no such list of models",
        "one.yaml": "expected a list of two",
    }
    for ckpt, said in wrong.items():
        with pytest.raises(EkdError, match=said):
            check(ckpt)


def test_a_head_notices_other_weights_of_any_of_them(folder: Path) -> None:
    """Also the same ones in another order, which would be other channels."""
    saved: list[dict] = []
    orders = [({"ckpt": "run1"}, {"ckpt": "run2"}), ({"ckpt": "run2"}, {"ckpt": "run1"})]
    for entries in (*orders, orders[0]):
        expert = UpstreamExpert(str(write_list(folder / "any.yaml", *entries)))
        weights = UpstreamWeights(lambda state, path: saved.append(state))
        weights.compare(expert, Namespace(upstream_trainable=False, past_exp=None), {})
        weights.save({}, "x")
    first, turned, again = (state[KEY] for state in saved)
    assert first == again != turned


def test_it_costs_what_its_models_cost(folder: Path) -> None:
    one, other = (checkpoint_cost(folder / f"run{seed}") for seed in (1, 2))
    both = model_cost(str(folder / "two.yaml"))
    assert (both.params, both.macs) == (one.params + other.params, one.macs + other.macs)
    (model,) = models.choose_models([("upstream", "ekd_ensemble"), ("ckpt", str(folder / "two.yaml"))])
    assert (model.label, model.arguments()) == ("two", ["-u", "ekd_ensemble", "-k", str(folder / "two.yaml")])
    assert upstream_cost(model) == {"params": both.params, "macs": both.macs}
    with pytest.raises(EkdError, match=r"--upstream ekd_ensemble: give the list of its models too: --ckpt FILE.yaml"):
        models.choose({"upstream": "ekd_ensemble"})
    with pytest.raises(EkdError, match="--heads: .*two.yaml is a list of models"):
        model_cost(str(folder / "two.yaml"), heads=True)


def test_a_student_with_heads_is_a_row_of_its_own(folder: Path) -> None:
    given = [("upstream", "ekd_student_with_heads"), ("ckpt", str(folder / "run1"))]
    (model,) = models.choose_models(given)
    assert model.label == "run1/states-10 with heads"
    assert model.arguments()[:2] == ["-u", "ekd_student_with_heads"]
    counted, whole = upstream_cost(model), model_cost(str(folder / "run1"), heads=True)
    assert counted == {"params": whole.params, "macs": whole.macs}
    assert whole.params > checkpoint_cost(folder / "run1").params
    with pytest.raises(EkdError, match="--upstream ekd_student_with_heads: give the student too: --ckpt CKPT"):
        models.choose({"upstream": "ekd_student_with_heads"})


def test_scores_of_it_stand_on_the_weights_of_all(folder: Path, tmp_path: Path) -> None:
    from s3prl_ekd.evaluate.inputs import _digest_of, _model

    for seed in (1, 2):
        write_student(tmp_path / f"{seed}.ckpt", seed=seed)
    model = models.choose(
        {"upstream": "ekd_ensemble",
         "ckpt": str(write_list(tmp_path / "list.yaml", {"ckpt": "1.ckpt"}, {"ckpt": "2.ckpt"}))}
    )  # fmt: skip
    before = model_digest(model)
    recorded = {name: _digest_of(name) for name in _model(model)}
    assert changed_input(recorded) is None
    write_student(tmp_path / "2.ckpt", seed=3)
    assert model_digest(model) != before and changed_input(recorded) == str(tmp_path / "2.ckpt")
    write_student(tmp_path / "2.ckpt", seed=2)
    assert changed_input(recorded) is None
    for others in (["2.ckpt", "1.ckpt"], ["1.ckpt", "1.ckpt"], ["1.ckpt", "gone.ckpt"]):  # another model by that name
        write_list(tmp_path / "list.yaml", *({"ckpt": other} for other in others))
        assert changed_input(recorded) == f"the models of {tmp_path / 'list.yaml'}"


@pytest.mark.slow
def test_a_task_is_trained_and_tested_on_it(folder: Path, tmp_path: Path) -> None:
    """Joined and averaged; on a member that was trained again the head is not tested."""
    data = overrides("voxceleb1", voxceleb(tmp_path / "vox"))
    for seed in (1, 2):
        write_student(tmp_path / f"{seed}.ckpt", seed=seed)
    write_list(tmp_path / "list.yaml", {"ckpt": "1.ckpt"}, {"ckpt": "2.ckpt"})
    train = ["-m", "train", "-d", "voxceleb1", "--device", "cpu", "-o", data]
    several, with_heads = ("ekd_ensemble", "list.yaml"), ("ekd_student_with_heads", "1.ckpt")
    for name, (upstream, ckpt), selection, width, states in (
        ("joined", several, "hidden_states", 2 * TINY.width, 3),
        ("mean", several, "mean", TINY.width, 3),
        ("heads", with_heads, "heads_averaged", TINY.width, 6),
    ):
        words = [*train, "-p", name, "-u", upstream, "-k", ckpt, "-s", selection]
        done = forked("run_downstream.py", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        head = checkpoints.read(tmp_path / name / "states-2.ckpt")
        assert head["Downstream"]["projector.weight"].shape[1] == width
        assert head["Featurizer"]["weights"].shape == (states,)
    words = [*train, "-p", "typo", "-u", several[0], "-k", several[1], "-s", "man"]
    done = forked("run_downstream.py", *words, cwd=tmp_path)
    said = "error: -s man: the upstream has none of that name; it has hidden_states, last_hidden_state, paper, mean"
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1] == said
    assert not (tmp_path / "typo").exists()
    test = ["-m", "evaluate", "-e", tmp_path / "joined" / "states-2.ckpt", "--device", "cpu"]
    assert forked("run_downstream.py", *test, cwd=tmp_path).returncode == 0
    write_student(tmp_path / "2.ckpt", seed=3)
    done = forked("run_downstream.py", *test, cwd=tmp_path)
    assert done.returncode == 2
    assert f"error: -k {tmp_path / 'list.yaml'}: these are not the weights that " in done.stderr

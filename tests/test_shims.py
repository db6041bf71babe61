"""Each mend of the bridge: still needed by this stack and still asked for by s3prl, and working where applied."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
import torch
from packaging.version import Version

from s3prl_ekd.compat.modules import s3prl_folder
from s3prl_ekd.compat.shims import SHIMS, active_shims, apply_shims
from s3prl_ekd.errors import EkdError
from s3prl_ekd.torch_file import read_torch_file

NAMES = [shim.name for shim in SHIMS]
COMPARES_MINOR = Version(version("torchaudio")) < Version("2.11.1")  # of CUDA, torch's with its own

# Where s3prl 0.4.18 asks for the thing: when its source no longer matches, the mend is to be deleted.
ASKED = {
    "import torchaudio": ("run_downstream.py", r"import torchaudio\n"),
    "torchaudio.set_audio_backend": ("run_downstream.py", r"set_audio_backend\("),
    "torchaudio.sox_effects": ("upstream/mos_prediction/expert.py", r"torchaudio\.sox_effects import"),
    "torchaudio.info": ("util/audio_info.py", r"torchaudio\.info\("),
    "torchaudio.load": ("downstream/asr/dataset.py", r"torchaudio\.load\("),
    "huggingface_hub.HfFolder": ("run_downstream.py", r"import .*HfFolder"),
    "huggingface_hub.Repository": ("downstream/runner.py", r"import .*Repository"),
    "huggingface_hub.HfApi.login": ("run_downstream.py", r"HfApi\(\)\.login\("),
    "huggingface_hub.snapshot_download": ("downstream/runner.py", r"snapshot_download\(.*use_auth_token"),
    "torch.load of s3prl checkpoints": ("downstream/runner.py", r"torch\.load\((?!.*weights_only)"),
    "distutils": ("upstream/mockingjay/builder.py", r"from distutils"),
    "s3prl.downstream.ctc.corpus.libriphone": ("downstream/ctc/data.py", r"corpus\.libriphone import"),
    "catalyst.data.sampler": ("downstream/speech_commands/expert.py", r"catalyst\.data\.sampler import"),
    "sox.Transformer": ("downstream/sv_voxceleb1/dataset.py", r"from sox import Transformer"),
    "FigureCanvasAgg.tostring_rgb": ("utility/audio.py", r"tostring_rgb\(\)"),
    "numpy.fromstring of bytes": ("utility/audio.py", r"np\.fromstring\("),
}


@pytest.fixture(scope="module")
def plain() -> dict[str, bool]:
    """Which mends a fresh process needs, asked before any is applied."""
    code = (
        "import json; from s3prl_ekd.compat.shims import SHIMS, active_shims; assert not active_shims()\n"
        "needed = {}\n"
        "for shim in SHIMS:\n"
        "    needed[shim.name] = shim.needed()\n"
        "    if shim.name == 'import torchaudio' and needed[shim.name]: shim.apply()  # so that the others can ask\n"
        "print('NEEDED', json.dumps(needed))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=300, check=True)
    return json.loads(done.stdout.split("NEEDED ")[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_plain_stack_lacks_it(plain: dict[str, bool], name: str) -> None:
    if name == "distutils" and importlib.util.find_spec("distutils") is not None:
        pytest.skip("Python 3.11, or setuptools is installed: distutils is there")
    software, _, since = next(shim.removed_by for shim in SHIMS if shim.name == name).partition(" ")
    if software in ("torch", "torchaudio", "huggingface_hub", "matplotlib", "numpy"):
        if Version(version(software)) < Version(since):
            pytest.skip(f"{software} {version(software)} still has it")
    if name == "import torchaudio" and (torch.version.cuda is None or not COMPARES_MINOR):
        pytest.skip("torchaudio compares no minor versions of CUDA, or torch has none")
    if name == "torchaudio.load" and importlib.util.find_spec("torchcodec") is not None:
        pytest.skip("torchcodec is installed: torchaudio may read by itself")
    if name.endswith("libriphone") and (s3prl_folder() / "downstream/ctc/corpus/libriphone.py").is_file():
        pytest.skip("a git checkout of s3prl: it has the corpus code")
    assert plain[name], f"{name}: this stack has it again; delete the mend from s3prl_ekd/compat/shims.py"


@pytest.mark.parametrize("name", NAMES)
def test_s3prl_still_asks_for_it(name: str) -> None:
    file, pattern = ASKED[name]
    assert re.search(pattern, (s3prl_folder() / file).read_text()), f"s3prl's {file} no longer needs the mend {name}"


@pytest.mark.slow
@pytest.mark.parametrize("found", ["13.9", "14.0"])
def test_torch_of_another_cuda_version(found: str) -> None:
    """torch 2.15 is built for CUDA 13.2 and torchaudio 2.11.0 for 13.0; 2.11.1 takes any 13."""
    if torch.version.cuda is None or Version(version("torchaudio")) < Version("2.11"):
        pytest.skip("torchaudio compares nothing, or is built for CUDA 12")
    code = f"""
import torch
torch.version.cuda = {found!r}
try:
    import torchaudio
except RuntimeError as error:
    print("REFUSED", error)
from s3prl_ekd.compat.shims import active_shims, apply_shims
try:
    apply_shims()
except Exception as error:
    print(type(error).__name__, error)
else:
    import torchaudio
    from s3prl import hub
    half = torchaudio.functional.resample(torch.ones(1, 80), 2, 1)
    print("ACTIVE", active_shims()[0].name, torch.version.cuda, half.shape)
"""
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=300)
    refused = re.search("REFUSED Detected .* were compiled with different CUDA (major )?versions", done.stdout)
    if found == "14.0":
        assert refused and re.search(r"EkdError torch .* is built for CUDA 14.0, torchaudio for 13\.\d:", done.stdout)
        return
    first = "import torchaudio" if COMPARES_MINOR else "torchaudio.set_audio_backend"
    assert bool(refused) == COMPARES_MINOR
    assert f"ACTIVE {first} 13.9 torch.Size([1, 40])" in done.stdout, done.stdout + done.stderr


@pytest.fixture(scope="module")
def mended() -> None:
    apply_shims("all")


def test_applying_again_changes_nothing(mended: None) -> None:
    import torchaudio

    before, load = active_shims(), torchaudio.load
    apply_shims("all")
    assert active_shims() == before
    assert torchaudio.load is load
    assert all(shim.name and shim.reason and shim.removed_by for shim in before)


def test_nothing_needed_is_left(mended: None) -> None:
    left = [shim.name for shim in SHIMS if shim.needed()]
    assert not left


def test_audio_names(mended: None) -> None:
    import torch
    import torchaudio
    from torchaudio.sox_effects import apply_effects_tensor

    torchaudio.set_audio_backend("sox_io")
    wave, rate = apply_effects_tensor(torch.full((1, 8), 0.5), 16_000, [["gain", "-6"]])
    assert rate == 16_000 and wave[0, 0].item() == pytest.approx(0.5 * 10**-0.3)


def test_ranks_share_what_a_sampler_draws(mended: None) -> None:
    """KS draws its clips by class; catalyst's sampler gives each rank a part of the draw."""
    import torch
    from catalyst.data.sampler import DistributedSamplerWrapper
    from torch.utils.data import WeightedRandomSampler

    weights = [0.0, 1.0, 0.0, 2.0, 1.0, 3.0, 1.0, 1.0]
    parts = []
    for rank in range(2):
        sampler = DistributedSamplerWrapper(WeightedRandomSampler(weights, 8), num_replicas=2, rank=rank)
        torch.manual_seed(0)
        parts.append(list(sampler))
    torch.manual_seed(0)
    drawn = list(WeightedRandomSampler(weights, 8))
    assert len(parts[0]) == len(parts[1]) == 4
    assert sorted(parts[0] + parts[1]) == sorted(drawn) and not {0, 2} & set(drawn)


@pytest.mark.parametrize("rate,channels", [(16_000, 1), (8_000, 2)])
def test_load_equals_the_written_wave(mended: None, tmp_path: Path, rate: int, channels: int) -> None:
    import torchaudio

    wave = np.random.default_rng(0).integers(-20_000, 20_000, (500, channels)).astype(np.int16)
    path = tmp_path / "a.wav"
    soundfile.write(path, wave, rate, subtype="PCM_16")

    loaded, found = torchaudio.load(path)
    assert found == rate and loaded.shape == (channels, 500) and str(loaded.dtype) == "torch.float32"
    np.testing.assert_allclose(loaded.numpy(), wave.T / 32768, atol=1e-7)

    part, _ = torchaudio.load(str(path), frame_offset=100, num_frames=50, channels_first=False)
    np.testing.assert_array_equal(part.numpy(), loaded.numpy().T[100:150])

    if any(shim.name == "torchaudio.load" for shim in active_shims()):
        integers, _ = torchaudio.load(path, normalize=False)
        np.testing.assert_array_equal(integers.numpy(), wave.T)
        with pytest.raises(EkdError, match="no such audio file"):
            torchaudio.load(tmp_path / "none.wav")
    meta = torchaudio.info(str(path))
    assert (meta.sample_rate, meta.num_frames, meta.num_channels, meta.bits_per_sample) == (rate, 500, channels, 16)


def test_hub_client(mended: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    assert huggingface_hub.HfFolder.get_token() == "hf_made_up"
    assert huggingface_hub.HfApi().login(username="a", password="b") == "hf_made_up"
    huggingface_hub.HfFolder.save_token("hf_made_up")  # the same token: nothing to store, no network
    # The organisers' call, with a submission's folder in place of a repository.
    (tmp_path / "expert.py").touch()
    assert huggingface_hub.snapshot_download(str(tmp_path), None, use_auth_token=True) == str(tmp_path.resolve())
    with pytest.raises(EkdError, match="push_to_hf_hub"):
        huggingface_hub.Repository(local_dir="x")


SCHEDULES = ["ConstantLR", "WarmupConstantSchedule", "WarmupLinearSchedule", "WarmupCosineSchedule"]
SCHEDULES += ["WarmupCosineWithHardRestartsSchedule", "WarmupCosineWithWarmupRestartsSchedule"]


@pytest.mark.parametrize("module", ["optimizers", "s3prl.optimizers"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_checkpoint_with_a_schedule_loads(mended: None, tmp_path: Path, module: str, name: str) -> None:
    """A student in it is read without s3prl, too: the schedule is an empty shell there."""
    import torch
    from s3prl import optimizers as s3prl_optimizers

    schedule = getattr(s3prl_optimizers, name)
    state = {"Args": Namespace(upstream="tera"), "group": schedule(warmup=0.1, t_total=7)}
    original = schedule.__module__
    try:
        schedule.__module__ = module
        if module == "optimizers":
            sys.modules.setdefault("optimizers", s3prl_optimizers)
        torch.save(state, tmp_path / "a.ckpt")
    finally:
        schedule.__module__ = original
        if sys.modules.get("optimizers") is s3prl_optimizers:
            del sys.modules["optimizers"]
    loaded = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert loaded["Args"] == state["Args"]
    assert type(loaded["group"]) is schedule and loaded["group"].t_total == 7
    admitted = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        inert = read_torch_file(tmp_path / "a.ckpt")
    finally:
        torch.serialization.add_safe_globals(admitted)
    assert inert["Args"] == state["Args"] and type(inert["group"]) is not schedule


def test_other_classes_are_still_refused(mended: None, tmp_path: Path) -> None:
    import torch

    from s3prl_ekd.bridge import checkpoints

    torch.save({"x": Path("a")}, tmp_path / "a.ckpt")
    with pytest.raises(EkdError, match="refused.*it holds pathlib"):
        checkpoints.read(tmp_path / "a.ckpt")


def test_figures(mended: None) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(1, 1), dpi=20, facecolor=(1, 0, 0))
    figure.canvas.draw()
    pixels = np.fromstring(figure.canvas.tostring_rgb(), dtype=np.uint8, sep="")
    plt.close(figure)
    assert pixels.size == 20 * 20 * 3
    assert pixels[:3].tolist() == [255, 0, 0]
    assert np.fromstring("1 2", sep=" ").tolist() == [1.0, 2.0]


def test_strtobool_where_python_has_no_distutils() -> None:
    from s3prl_ekd.compat import shims

    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "distutils"}
    try:
        shims._apply_distutils()
        from distutils.util import strtobool

        assert [strtobool(word) for word in ("yes", "True", "1", "no", "off")] == [1, 1, 1, 0, 0]
        with pytest.raises(ValueError):
            strtobool("maybe")
    finally:
        sys.modules.pop("distutils.util", None)
        sys.modules.pop("distutils", None)
        sys.modules.update(kept)


@pytest.mark.slow
def test_register_adds_the_student_to_the_hub() -> None:
    import s3prl_ekd
    from s3prl_ekd.compat.hub import check_upstream_name, upstream_names

    s3prl_ekd.register()
    s3prl_ekd.register()
    from s3prl import hub

    assert {"ekd_student", "ekd_student_local", "ekd_student_url", "fbank"} <= set(hub.options())
    assert "ekd_student" in hub.options(only_registered_ckpt=True)

    # the same by the text of s3prl's files, which costs no import
    names = upstream_names()
    there = {name: value for name, value in vars(hub).items() if callable(value) and not name.startswith("_")}
    assert names <= set(there)
    made_there = {
        name for name, value in there.items() if value.__module__.endswith("hubconf") and name in hub.options()
    }
    assert {name for name in made_there if there[name].__name__ == name} <= names | {"timit_posteriorgram"}
    assert len(names) > 150
    check_upstream_name("vq_apc_url", "-u")  # imported under another name there: the text leaves that open
    with pytest.raises(EkdError, match="-u fbnk: s3prl's hub has no such upstream; did you mean fbank"):
        check_upstream_name("fbnk", "-u")


def test_an_upstream_that_a_script_has_put_into_the_hub_is_one(
    hub: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one of s3prl's files has its name; a hub that nobody has imported is not imported for it."""
    from s3prl_ekd.bridge.downstream_launch import DownstreamLaunch
    from s3prl_ekd.bridge.interrupts import Run
    from s3prl_ekd.compat.hub import check_upstream_name
    from s3prl_ekd.teachers.names import check_source

    monkeypatch.setattr(hub, "mine", lambda ckpt=None: None, raising=False)
    check_upstream_name("mine", "-u")
    check_source("s3prl:mine:x.pt")
    assert hasattr(DownstreamLaunch(Run([]))._parser_needs()["hub"], "mine")  # the choices of -u
    monkeypatch.delitem(sys.modules, "s3prl.hub")
    with pytest.raises(EkdError, match="-u mine: s3prl's hub has no such upstream"):
        check_upstream_name("mine", "-u")
    assert "s3prl.hub" not in sys.modules


@pytest.mark.slow
def test_the_hub_imports_transformers_when_it_is_asked_for(tmp_path: Path) -> None:
    """Nine tenths of the hub's time to be imported, for two upstreams. They are what they were, by either name."""
    from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    HubertModel(HubertConfig(**sizes, num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path / "hubert")
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "hubert")
    code = f"""if True:
        import sys, torch, s3prl_ekd
        s3prl_ekd.register()
        assert "transformers" not in sys.modules
        from s3prl import hub
        from s3prl.upstream.hf_wav2vec2.expert import UpstreamExpert
        assert isinstance(UpstreamExpert, type) and "transformers" in sys.modules
        expert = hub.hf_hubert_custom({str(tmp_path / "hubert")!r})
        from s3prl.upstream.hf_hubert.expert import UpstreamExpert
        assert type(expert) is UpstreamExpert
        print([tuple(state.shape) for state in expert([torch.randn(800)])["hidden_states"]])
    """
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=300)
    assert done.stdout == "[(1, 2, 32), (1, 2, 32)]\n", done.stderr

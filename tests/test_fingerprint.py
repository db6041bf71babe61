"""What makes a target cache another's: weights whatever their name and place, data, and what cannot be known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from s3prl_ekd.data.lengths import LengthTable
from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.fingerprint import data_digest, difference, weights_digest
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_converted, write_transformers


def digest(source: str | Path, download: bool = True) -> str | None:
    return weights_digest(sources.describe(str(source)), "my.yaml: ekd.teachers[0].source", download)


def test_the_same_weights_elsewhere_are_the_same_and_others_are_not(tmp_path: Path) -> None:
    file = write_converted(random_encoder(TINY.with_(padding_rule="fairseq"), seed=0), tmp_path / "a.pt")
    folder = write_transformers(random_encoder(TINY, seed=0), tmp_path / "a")
    shutil.copy(file, tmp_path / "b.pt")
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("a note")
    assert digest(file) == digest(tmp_path / "b.pt") != digest(folder) == digest(tmp_path / "b")
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (tmp_path / "b" / "preprocessor_config.json").write_text(json.dumps(config | {"do_normalize": True}))
    assert digest(tmp_path / "b") != digest(folder)  # the same weights hear other audio
    write_converted(random_encoder(TINY.with_(padding_rule="fairseq"), seed=1), tmp_path / "b.pt")
    assert digest(tmp_path / "b.pt") != digest(file)
    assert digest("random:hubert_base") != digest("random:wavlm_base")


def test_random_weights_of_a_folder_are_others_where_its_shape_has_changed(tmp_path: Path) -> None:
    first, same, other = (
        digest(f"random:{write_transformers(random_encoder(shape, seed=seed), tmp_path / 'a')}")
        for seed, shape in enumerate((TINY, TINY, TINY.with_(heads=2 * TINY.heads)))
    )
    assert first == same != other


def test_an_upstream_of_s3prl_is_known_by_its_tensors(tmp_path: Path) -> None:
    pytest.importorskip("s3prl")
    found = []
    for seed in (0, 0, 1):
        file = tmp_path / f"{len(found)}.pt"
        write_converted(random_encoder(TINY.with_(padding_rule="fairseq", layers=1), seed=seed), file)
        found.append(digest(f"s3prl:hubert_local:{file}"))
    assert found[0] == found[1] != found[2]


def test_weights_not_downloaded_are_unknown_and_not_held_against_a_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("s3prl")
    monkeypatch.setattr(
        sources, "hub_file", lambda name, where, download: pytest.fail("downloads") if download else None
    )
    assert digest("hubert_base", download=False) is None
    there = {"the weights of a": "0" * 64, "the layers of a": "4, 8"}
    assert difference(there, {"the weights of a": None, "the layers of a": "4, 8"}) is None
    assert difference(there, {"the weights of a": "1" * 64, "the layers of a": "4, 8"}) == (
        "the weights of a (000000000000 there, 111111111111 now)"
    )
    assert (
        difference(there, {"the weights of a": None, "the layers of a": "4"}) == "the layers of a (4, 8 there, 4 now)"
    )
    assert difference(there, {"the layers of a": "4, 8"}) == "the weights of a (000000000000 there, none now)"
    assert difference({}, there) == "the weights of a (none there, 000000000000 now)"


def test_data_are_known_below_their_root_by_path_and_length(tmp_path: Path) -> None:
    def of(root: Path, names: tuple[str, ...], samples: tuple[int, ...]) -> str:
        return data_digest(LengthTable([str(root / name) for name in names], np.array(samples)), str(root))

    here, there = tmp_path / "here", tmp_path / "there"
    first = of(here, ("a", "b"), (5, 6))
    assert of(there, ("a", "b"), (5, 6)) == first
    assert len({first, of(here, ("b", "a"), (5, 6)), of(here, ("a", "b"), (5, 7)), of(here, ("a",), (5,))}) == 4


def test_the_runs_own_random_draws_do_not_depend_on_what_is_loaded(tmp_path: Path) -> None:
    """Else a run on a full cache would drop other units than the run that filled it."""
    from s3prl_ekd.config import load_model_config
    from s3prl_ekd.teachers.build import check_teachers, load_initialiser, load_teachers

    file = write_converted(random_encoder(TINY.with_(padding_rule="fairseq"), seed=0), tmp_path / "a.pt")
    student = {"width": 96, "ffn_width": 256, "heads": 4, "conv_layers": [list(layer) for layer in TINY.conv_layers],
               "pos_conv_kernel": 32, "pos_conv_groups": 8}  # fmt: skip
    teachers = [{"name": "a", "source": str(file), "layers": [2]}]
    config = load_model_config({"student": student, "ekd": {"teachers": teachers, "initialise_from": "a"}})
    plan = check_teachers(config)
    before = torch.get_rng_state()
    assert load_initialiser(plan, load_teachers(plan)) is not None
    assert load_initialiser(plan, {}) is not None
    assert torch.equal(torch.get_rng_state(), before)

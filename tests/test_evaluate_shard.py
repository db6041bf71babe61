"""``evaluate --shard I/N``: how the runs are dealt, and shards at work at the same time on one ``--out``."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from evaluate_stand_in import calls, evaluate, make_data, plan, set_dev, up

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import command, schedule
from s3prl_ekd.evaluate import run as running
from s3prl_ekd.evaluate.folder_lock import LOCK, locked_folder
from s3prl_ekd.evaluate.grid import searches
from s3prl_ekd.evaluate.marker import Marker, write_marker
from s3prl_ekd.evaluate.plan import ModelPlan
from s3prl_ekd.evaluate.run import clear_other
from s3prl_ekd.evaluate.scores_file import read_models
from s3prl_ekd.evaluate.shard import Shard, parse_shard
from s3prl_ekd.task_names import PAPER_TASKS

WORDS = ("--lr", "0.1,0.01", "--seeds", "1,2")
MODELS = up("a=fbank", "b=mfcc")


def measured(out: Any) -> list[Any]:
    """What a table's records say, without their times and folders."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if key not in ("seconds", "date")}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return value.replace(str(out), "OUT") if isinstance(value, str) else value

    return [plain(record) for _, record in read_models(out)]


# ------------------------------------------------------------------------------------------------------------- the deal


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "1", "/8", "1/0", "-1/4", "1/4/8", "1.5/4", "٣/4"])
def test_no_such_shard(data, tmp_path, capsys, text):
    assert evaluate(data, tmp_path, f"--shard={text}") == 2
    assert f"error: --shard {text}: expected I/N, I from 1 to N, as 1/8" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_every_run_is_in_one_share_and_no_search_is_split(tmp_path):
    draw = random.Random(0)
    data = make_data(tmp_path / "data", folds=("fold1", "fold2", "fold3"))
    for number in range(8):
        rates = {name: [0.1, 0.01, 0.001][: draw.randint(2, 3)] for name in ("pr", "er") if draw.random() < 0.7}
        steps = {name: str(draw.randint(2, 90)) for name in PAPER_TASKS}
        overrides = {name: {"config.runner.total_steps": steps[name]} for name in PAPER_TASKS}
        plans = [
            ModelPlan(tmp_path, plan(data, tmp_path, rates=rates, seeds=[1, 2], overrides=overrides, prefix=f"{name}/"))
            for name in "abc"[: draw.randint(1, 3)]
        ]
        count = draw.randint(1, 9)
        shares = [Shard(one, count).share(plans) for one in range(1, count + 1)]
        dealt = [run.key for share in shares for one in share for run in one.runs]
        assert sorted(dealt) == sorted(run.key for one in plans for run in one.runs)
        place = {run.key: at for at, share in enumerate(shares) for one in share for run in one.runs}
        units = []
        for search in (search for one in plans for search in searches(one.runs)):
            lengths = [run.effective_config()["runner"]["total_steps"] for run in search.runs]
            if len(search.rates) > 1:
                assert len({place[run.key] for run in search.runs}) == 1
            units += [sum(lengths)] if len(search.rates) > 1 else lengths
        load = [0] * count
        for run in (run for one in plans for run in one.runs):
            load[place[run.key]] += run.effective_config()["runner"]["total_steps"]
        assert max(load) - min(load) <= max(units), number


def test_a_longer_accumulation_is_longer(data, tmp_path):
    """SID's two runs are as long as both of the others together."""
    more = {"sid": {"config.runner.gradient_accumulate_steps": "2"}}
    plans = [ModelPlan(tmp_path, plan(data, tmp_path, ["pr", "sid", "asr"], overrides=more))]
    shares = [[run.key for one in Shard(number, 2).share(plans) for run in one.runs] for number in (1, 2)]
    assert shares == [["sid"], ["pr", "asr"]]


def test_a_dry_run_prints_the_share_alone(data, tmp_path, capfd):
    def printed(*words: str) -> list[str]:
        assert evaluate(data, tmp_path, *WORDS, *words, "--dry-run", upstream=MODELS, tasks="pr,er") == 0
        return [line for line in capfd.readouterr().out.splitlines() if not line.startswith("#")]

    whole, shares = printed(), [printed(f"--shard={number}/3") for number in (1, 2, 3)]
    assert sorted(whole) == sorted(line for share in shares for line in share)
    assert all(shares) and parse_shard("2/3") == Shard(2, 3)


# ----------------------------------------------------------------------------------------------------- at the same time


def test_shards_at_the_same_time_and_the_call_after_them(data, tmp_path, stand_in, monkeypatch, capfd):
    set_dev(tmp_path, (["voxceleb1", "0.01", "2", "b", None], 0.9))
    out, run_all = tmp_path / "out", command.run_all

    def call(*words: str) -> int:
        return evaluate(data, tmp_path, *WORDS, *words, upstream=MODELS, tasks="sid,er")

    def while_running(*given: Any) -> Any:
        monkeypatch.setattr(command, "run_all", run_all)
        assert call() == 2
        assert "another s3prl-ekd evaluate or robustness is at work there" in capfd.readouterr().err
        assert call("--shard", "2/2") == 0
        return run_all(*given)

    monkeypatch.setattr(command, "run_all", while_running)
    assert call("--shard", "1/2") == 0
    assert "shard 1/2 is done; the call without --shard writes the scores" in " ".join(capfd.readouterr().out.split())
    assert not list(out.rglob("scores.*"))
    done = [calls(out / name, kind) for name in "ab" for kind in ("calls.txt", "tests.txt")]
    assert [len(one) for one in done] == [2 * 2 + 2 * 2 * 2, 2 + 2 * 2] * 2
    assert all(len(set(one)) == len(one) for one in done)

    assert call() == 0
    assert [calls(out / name, kind) for name in "ab" for kind in ("calls.txt", "tests.txt")] == done
    assert evaluate(data, tmp_path / "whole", *WORDS, upstream=MODELS, tasks="sid,er") == 0
    assert measured(out) == measured(tmp_path / "whole" / "out")
    assert call("--shard", "1/2") == 0  # once more: nothing
    assert [calls(out / name, kind) for name in "ab" for kind in ("calls.txt", "tests.txt")] == done


def test_a_run_that_another_call_is_at_is_left_to_it(data, tmp_path, stand_in, capfd):
    """As where a shard is started twice, or another number of shards beside it."""
    runs = plan(data, tmp_path, ["sid"])
    with locked_folder(runs[0].expdir, "x"):
        assert evaluate(data, tmp_path, "--shard", "1/1", "--keep-going", tasks="sid,asr") == 2
    told = " ".join(capfd.readouterr().err.split())
    assert f"error: sid: {runs[0].expdir}: another s3prl-ekd evaluate or robustness is at work there" in told
    assert calls(tmp_path / "out") == ["asr"]
    assert evaluate(data, tmp_path, tasks="sid,asr") == 0
    assert calls(tmp_path / "out") == ["asr", "sid"]


def test_what_another_call_has_done_since_is_no_reason_to_empty_a_folder(data, tmp_path, stand_in, board, monkeypatch):
    """Two job arrays of unlike command lines that begin together: both have seen empty folders."""
    first, second = plan(data, tmp_path, ["sid", "asr"])

    def do_train(run, *rest):
        second.expdir.mkdir(parents=True)
        write_marker(second.expdir, Marker({**second.settings(), "seed": 5}, {}, state="finished"))
        (second.expdir / "dev-clean-best.ckpt").write_text("hours of work")
        return running.do_train(run, *rest)

    monkeypatch.setattr(schedule, "do_train", do_train)
    with pytest.raises(EkdError, match=r"asr/run.json: an earlier run here had another seed \(5, now 1337\)"):
        schedule.run_all([first, second], board)
    assert (second.expdir / "dev-clean-best.ckpt").read_text() == "hours of work"


def test_a_shard_that_fails_does_not_stop_the_others(data, tmp_path, stand_in):
    broken = tmp_path / "out" / "runs" / "broken"
    broken.parent.mkdir(parents=True)
    broken.touch()
    assert evaluate(data, tmp_path, "--shard", "1/2", tasks="sid,asr") == 2
    broken.unlink()
    assert evaluate(data, tmp_path, "--shard", "2/2", tasks="sid,asr") == 0
    assert calls(tmp_path / "out") == ["asr", "sid"] and not (tmp_path / "out" / "scores.json").exists()
    assert evaluate(data, tmp_path, tasks="sid,asr") == 0
    assert calls(tmp_path / "out") == ["asr", "sid", "sid"]


def test_a_shard_without_a_run_is_done(data, tmp_path, stand_in, caplog):
    assert evaluate(data, tmp_path, "--shard", "2/9999999999999") == 0
    assert "--shard 2/9999999999999: nothing to do" in caplog.text and not (tmp_path / "out").exists()


def test_shared_and_sole_locks(tmp_path):
    with locked_folder(tmp_path, "x", shared=True):
        with locked_folder(tmp_path, "x", shared=True):
            pass
        with pytest.raises(EkdError, match="x: another s3prl-ekd evaluate"), locked_folder(tmp_path, "x"):
            pass
    with locked_folder(tmp_path, "x"):
        with pytest.raises(EkdError, match="x: another"), locked_folder(tmp_path, "x", shared=True):
            pass


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_lock_ends_though_its_file_is_open_elsewhere(tmp_path):
    """As in a child that another thread has forked, until it starts its program."""
    with locked_folder(tmp_path, "x"):
        [found] = [one for one in Path("/proc/self/fd").iterdir() if one.resolve() == tmp_path / ".evaluate.lock"]
        copy = os.dup(int(found.name))
    with locked_folder(tmp_path, "x"):
        os.close(copy)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_shards_with_the_real_runner(tmp_path):
    """Two processes at the same time, then the call without --shard: the scores of one call, and no run made twice."""
    import subprocess

    from bridge_corpora import sid_folder
    from console import BIN

    folder = sid_folder(tmp_path)
    steps = "config.runner.total_steps=2,,config.runner.eval_step=2,,config.runner.save_step=2"
    words = [BIN / "s3prl-ekd", "evaluate", "--upstream", "fbank", "--tasks", "sid", "--preset", "tiny", "--lr"]
    words += ["0.1,0.0001", "--seeds", "1,2", "--data", folder, "--device", "cpu", "--override", steps, "--out"]
    out, whole = tmp_path / "out", tmp_path / "whole"
    shards = [subprocess.Popen([*words, out, "--shard", f"{number}/2"]) for number in (1, 2)]
    assert [shard.wait() for shard in shards] == [0, 0]
    last = subprocess.run([*words, out], check=True, capture_output=True, text=True)
    assert last.stdout.count("kept") == 4
    subprocess.run([*words, whole], check=True)
    assert measured(out) == measured(whole)
    logs = [*out.glob("runs/*/train.log"), *out.glob("runs/*/evaluate.log")]
    assert len(logs) == 4 + 2 and all(log.read_text().count("$ ") == 1 for log in logs)
    assert json.loads((out / "scores.json").read_text())["seeds"] == [1, 2]


def test_a_folder_that_is_emptied_stays_locked(tmp_path):
    """Its lock is a file in it: another call would make, and lock, a new one."""
    data = make_data(tmp_path / "data", folds=("fold1",))
    [run] = plan(data, tmp_path / "out", tasks=["pr"])
    [other] = plan(data, tmp_path / "out", tasks=["pr"], overrides={"pr": {"config.runner.total_steps": "7"}})
    with locked_folder(run.expdir, "x"):
        write_marker(run.expdir, Marker(other.settings(), {}))
        (run.expdir / "states-7.ckpt").write_bytes(b"")
        clear_other(run)
        assert [path.name for path in run.expdir.iterdir()] == [LOCK]
        with pytest.raises(EkdError), locked_folder(run.expdir, "x"):
            pass

"""The process that native runs are forked from: what a run gets there, and when runs are processes of their own."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from bridge_corpora import overrides, voxceleb

from s3prl_ekd.errors import EkdError
from s3prl_ekd.evaluate import fork_server, fork_server_process, schedule, side_by_side
from s3prl_ekd.evaluate.devices import gpu_environment
from s3prl_ekd.evaluate.fork_server import ForkServer
from s3prl_ekd.evaluate.process import Children, run_logged

# A fork server without the imports; its runs print where they are. {gpu} stands for what its trial finds.
QUICK = """
import os, socket, sys
from s3prl_ekd.bridge import launch
from s3prl_ekd.compat import hub
from s3prl_ekd.evaluate import fork_server_process as process

def show():
    names = ("CUDA_VISIBLE_DEVICES", "PYTORCH_NVML_BASED_CUDA_CHECK", "ONLY_HERE")
    print(os.getpid() == os.getsid(0), sys.argv[1:], [os.environ.get(name) for name in names])
    return 3 if "fail" in sys.argv else 0

process._IMPORTS, hub.register, launch.run_downstream = (), lambda: None, show
trials = []
def trial(environment):
    trials.append(environment["CUDA_VISIBLE_DEVICES"])
    assert len(trials) == 1 and os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    return {gpu}
process._try_gpu = trial
process.serve(socket.socket(fileno=int(sys.argv[1])))
"""


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a :class:`ForkServer` of that kind, whose trial says ``gpu``."""
    made = []

    def make(device: str, gpu: str = "") -> ForkServer:
        script = tmp_path / "server.py"
        script.write_text(QUICK.replace("{gpu}", repr(gpu)))
        monkeypatch.setattr(fork_server, "_PROGRAM", [sys.executable, str(script)])
        made.append(ForkServer({}, device))
        return made[-1]

    for name in ("PYTORCH_NVML_BASED_CUDA_CHECK", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    yield make
    for one in made:
        one.close()


def start(server: ForkServer | None, tmp_path: Path, *words: str, **environment: str) -> str:
    """What a run prints: a fork, or a process that prints "own process"."""
    program = [sys.executable, "-c", "print('own process')"]
    return run_logged([*program, *words], tmp_path / "log", None, environment, Children(server), len(program))[0]


def test_one_kind_of_device_is_asked_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ForkServer.possible(["cpu"]) and ForkServer.possible(["cuda"]) and ForkServer.possible(["cuda:0", "cuda:1"])
    assert not ForkServer.possible(["cpu", "cuda:0"])
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not ForkServer.possible(["cpu"])


def test_the_schedule_asks_for_cuda_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    class Fake(ForkServer):
        def __init__(self, environment: dict[str, str], device: str) -> None:
            raise Asked(device)

    monkeypatch.setattr(side_by_side, "ForkServer", Fake)
    with pytest.raises(Asked, match="^cuda$"):
        schedule.run_all([], None, jobs=2, devices=["cuda:0", "cuda:1"])


def test_each_run_has_the_environment_that_a_process_would_get(quick, tmp_path: Path) -> None:
    server = quick("cuda")
    for device, words in (("cuda:1", "['a']"), ("cuda:0", "['b']")):
        said = start(server, tmp_path, words[2], ONLY_HERE=device, **gpu_environment(device))
        assert said == f"True {words} ['{device[-1]}', None, '{device}']"
    with pytest.raises(EkdError, match=r"run_downstream.py failed \(exit 3\)"):
        start(server, tmp_path, "fail", CUDA_VISIBLE_DEVICES="0")


def test_a_long_environment_arrives(quick, tmp_path: Path) -> None:
    long = {f"LONG{number}": 100_000 * "x" for number in range(5)}
    assert start(quick("cpu"), tmp_path, "a", ONLY_HERE="é", **long) == "True ['a'] [None, None, 'é']"


def test_after_a_refusal_runs_are_processes(quick, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = quick("cuda", gpu="RuntimeError: no such luck")
    assert [start(server, tmp_path, CUDA_VISIBLE_DEVICES="0") for _ in range(2)] == ["own process"] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "runs are processes of their own, which start slower: RuntimeError: no such luck"
    ]
    assert start(quick("cpu", gpu="not asked"), tmp_path) != "own process"


def test_without_its_process_runs_are_processes(quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = quick("cuda")
    monkeypatch.setattr(fork_server, "_PROGRAM", [sys.executable, "-c", "import sys; sys.exit(1)"])
    assert [start(server, tmp_path, CUDA_VISIBLE_DEVICES="0") for _ in range(2)] == ["own process"] * 2


def test_nothing_begins_once_it_is_stopped(quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, caught = quick("cpu"), []
    monkeypatch.setattr(fork_server, "_PROGRAM", [sys.executable, "-c", "import time; time.sleep(60)"])  # its imports

    def run() -> None:
        with pytest.raises(EkdError, match="^interrupted$") as error:
            start(server, tmp_path)
        caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while server._process is None:
        time.sleep(0.01)
    server.stop()
    thread.join(30)
    assert len(caught) == 1


def test_it_ends_when_the_other_side_dies_in_the_middle_of_a_request(quick, tmp_path: Path) -> None:
    server = quick("cpu")
    connection = server._start_process()
    output, status = os.pipe()
    socket.send_fds(connection, [b'{"half": "a requ'], [output, status])
    os.close(output), os.close(status)
    connection.close()
    try:
        assert server._process.wait(30) == 0
    finally:
        server.stop()


def test_several_threads_may_wait_for_one_run() -> None:
    """An interruption waits for the run that its own thread waits for; both learn how it ended."""
    for _ in range(50):
        output, output_end = os.pipe()
        status, status_end = os.pipe()
        child, found = fork_server.Child(output, status), []
        threads = [
            threading.Thread(target=lambda child, found: found.append(child.wait(10)), args=(child, found))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        os.write(status_end, b"-15\n")
        for thread in threads:
            thread.join(20)
        assert found == [-15] * 4 and child.wait() == child.poll() == -15
        child.stdout.close()
        os.close(output_end), os.close(status_end)


def test_the_trial_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)  # another test of this process may have
    assert ": " in fork_server_process._try_gpu(environment)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(2))
    assert fork_server_process._try_gpu(environment) == ""
    monkeypatch.setattr(fork_server_process, "_TRIAL_SECONDS", 0.1)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: time.sleep(60))
    assert "no answer" in fork_server_process._try_gpu(environment)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert "an import" in fork_server_process._try_gpu(environment)


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_real_run(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a fork server with all its imports; a process in place of the fork would print something else."""
    monkeypatch.chdir(tmp_path)
    Path("s3prl.py").write_text("raise RuntimeError('not what run_downstream.py imports')")
    server = ForkServer({"OMP_NUM_THREADS": "1"}, device)
    words = ["-m", "train", "-p", str(tmp_path / "run"), "-u", "fbank", "-d", "voxceleb1", "--device", device]
    words += ["-o", overrides("voxceleb1", voxceleb(tmp_path / "vox"))]
    try:
        said = start(server, tmp_path, *words, **gpu_environment(f"{device}:0" if device == "cuda" else device))
    finally:
        server.close()
    assert "own process" not in said
    assert (tmp_path / "run" / "states-2.ckpt").is_file()

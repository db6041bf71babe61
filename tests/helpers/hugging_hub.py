"""A Hugging Face Hub on this machine: the answers that huggingface_hub asks for when it fetches a model's files.

The fixture ``hugging_hub`` of conftest.py puts it in place of huggingface.co.
"""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import torch

from s3prl_ekd.teachers import sources
from s3prl_ekd.teachers.stand_ins import TINY, random_encoder
from s3prl_ekd.teachers.writers import write_transformers

SHAPE = TINY.with_(layers=2)


class Hub:
    """Serves folders as repositories, until :meth:`stop`.

    ``asked`` has every file of every request that was answered with its content; ``closed`` repositories answer with
    the Hub's status and error code; ``refusal`` is what it answers to an upload.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, tuple[str, Path]]] = {}  # name -> revision -> (commit, folder)
        self.closed: dict[str, tuple[int, str]] = {}
        self.refusal = (401, "Invalid username or password.")
        self.asked: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def publish(self, repository: str, folder: Path, branch: str = "main") -> str:
        """Make a folder the newest commit of a branch; returns the commit."""
        digest = hashlib.sha1(repository.encode())
        for file in sorted(folder.iterdir()):
            digest.update(file.name.encode() + file.read_bytes())
        commit = digest.hexdigest()
        revisions = self.repositories.setdefault(repository, {})
        revisions[branch] = revisions[commit] = (commit, folder)
        return commit

    def stop(self) -> None:
        """From now on nothing answers."""
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of ``/OWNER/NAME/resolve/REVISION/FILE``, or of the list of all files."""
        path, _, _ = path.partition("?")
        listing = path.startswith("/api/models/")
        repository, _, rest = (
            path.removeprefix("/api/models").lstrip("/").partition("/tree/" if listing else "/resolve/")
        )
        revision, _, name = rest.partition("/")
        if repository in self.closed:
            status, code = self.closed[repository]
            return status, {"X-Error-Code": code}, b""
        if repository not in self.repositories:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        if revision not in self.repositories[repository]:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        commit, folder = self.repositories[repository][revision]
        headers = {"X-Repo-Commit": commit}
        if listing:
            files = [
                {"type": "file", "path": file.name, "oid": "0" * 40, "size": 1} for file in sorted(folder.iterdir())
            ]
            return 200, headers, json.dumps(files).encode()
        if not (folder / name).is_file():
            return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
        content = (folder / name).read_bytes()
        return 200, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._send(with_content=False)

            def do_GET(self) -> None:
                self._send(with_content=True)

            def do_POST(self) -> None:
                """A new repository, which the token is not good for, or there is none: as the Hub says it."""
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(hub.refusal[0])
                for name, value in {"X-Request-Id": "Root=1", "X-Error-Message": hub.refusal[1]}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def _send(self, with_content: bool) -> None:
                status, headers, content = hub._answer(self.path)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if with_content and status == 200:
                    hub.asked.append(self.path.rpartition("/")[2].partition("?")[0])
                    self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def write_model(folder: Path, seed: int = 0) -> Path:
    """A repository as they are: a model, and beside it what no teacher needs."""
    write_transformers(random_encoder(SHAPE, seed=seed), folder)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tf_model.h5").write_bytes(b"weights of another library")
    return folder


def weights(source: str) -> dict[str, torch.Tensor]:
    return sources.load(sources.describe(source)).state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())

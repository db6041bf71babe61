"""Shims of huggingface_hub: names and calls that s3prl's downstream runner knows. The registry is ``shims.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s3prl_ekd.errors import EkdError


def apply_hf_folder() -> None:
    """Give the hub its old token store back."""
    import huggingface_hub

    class HfFolder:
        """The two calls of the old token store that s3prl makes, over today's functions."""

        @staticmethod
        def get_token() -> str | None:
            return huggingface_hub.get_token()

        @staticmethod
        def save_token(token: str | None) -> None:
            if token and token != huggingface_hub.get_token():
                huggingface_hub.login(token=token)

    huggingface_hub.HfFolder = HfFolder


def apply_repository() -> None:
    """A ``Repository`` to import, which says what to do instead when it is used."""
    import huggingface_hub

    class Repository:
        """The name only: s3prl needs it for --push_to_hf_hub, which died with the old client."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            raise EkdError(
                "--push_to_hf_hub: huggingface_hub 1.0 removed Repository; upload the folder with `hf upload`"
            )

    huggingface_hub.Repository = Repository


def apply_login() -> None:
    """An ``HfApi.login`` that answers with the stored token."""
    import huggingface_hub

    def login(self: Any, username: str | None = None, password: str | None = None) -> str | None:
        """Passwords are no longer accepted by the hub: the stored token or $HF_TOKEN is used, where there is one."""
        return huggingface_hub.get_token()

    huggingface_hub.HfApi.login = login  # type: ignore[attr-defined]


def snapshot_needed() -> bool:
    """Whether ``snapshot_download`` takes no ``use_auth_token``."""
    import inspect

    import huggingface_hub

    return "use_auth_token" not in inspect.signature(huggingface_hub.snapshot_download).parameters


def apply_snapshot() -> None:
    """A ``snapshot_download`` with the arguments of huggingface_hub 0.x."""
    import huggingface_hub

    original = huggingface_hub.snapshot_download

    def snapshot_download(
        repo_id: str, revision: str | None = None, *, use_auth_token: bool | str | None = None, **kwargs: Any
    ) -> str:
        """As in huggingface_hub 0.x; a ``repo_id`` that is a submission's folder is returned as it is (to try it)."""
        if Path(repo_id, "expert.py").is_file():
            return str(Path(repo_id).resolve())
        # True meant "the stored token, and fail without one"; None sends it where there is one, and lets public pass.
        token = None if use_auth_token is True else use_auth_token
        kwargs.setdefault("token", token)
        return original(repo_id, revision=revision, **kwargs)

    huggingface_hub.snapshot_download = snapshot_download  # type: ignore[assignment]

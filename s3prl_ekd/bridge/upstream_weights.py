"""Which weights a head stands on: noted in its checkpoints, compared where it goes on or is tested.

s3prl's checkpoint of a head names its frozen upstream by a path. A student that was trained again in the same folder
lies there too, or another one that the user says it has moved to: a head on it scores, without a word, something that
nobody has trained.
"""

from __future__ import annotations

import hashlib
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from s3prl_ekd.errors import EkdError

if TYPE_CHECKING:
    from torch import nn

KEY = "UpstreamDigest"
"""SHA-256 of our encoder's weights, by the names under which a student's checkpoint holds them; of several in turn,
and of heads whose predictions are states too."""


class UpstreamWeights:
    """The weights of one run's frozen upstream; of our own encoders, students' and teachers'.

    Others' are not compared: where a stack builds one with other names or with random parts that nothing reads, its
    digest would change though its states do not.

    Args:
        save: the runner's ``torch.save``.
    """

    def __init__(self, save: Callable[..., None]) -> None:
        self._save = save
        self._digest: str | None = None  # of an upstream that is compared

    def compare(self, model: nn.Module, args: Namespace, state: Mapping[str, Any]) -> None:
        """Note the weights of ``model``, the upstream; of a run that goes on, compare them with its checkpoint's.

        Args:
            model: as s3prl's hub has built it.
            args: of the run.
            state: the checkpoint that it begins with; empty for none.

        Raises:
            EkdError: they are others.
        """
        from s3prl_ekd.model.encoder import Encoder
        from s3prl_ekd.model.heads import HeadSet
        from s3prl_ekd.teachers.fingerprint import add_weights

        parts = [module for module in model.modules() if isinstance(module, (Encoder, HeadSet))]
        if not parts or args.upstream_trainable:  # a trained one is in the checkpoint itself
            return
        digest = hashlib.sha256()
        for part in parts:
            add_weights(digest, part)
        self._digest = digest.hexdigest()
        before = state.get(KEY)
        if args.past_exp and before is not None and before != self._digest:  # with -i a head may change its upstream
            what = f"-k {args.upstream_ckpt}" if args.upstream_ckpt else f"-g {args.upstream_model_config}"
            raise EkdError(
                f"{what}: these are not the weights that {args.init_ckpt} was trained on; give those, or train a head "
                "on these (-n)"
            )

    def save(self, state: Any, path: str) -> None:
        """``torch.save``, with the digest in the checkpoint."""
        self._save(state if self._digest is None else {**state, KEY: self._digest}, path)

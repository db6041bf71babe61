"""Which weights a head stands on: noted in its checkpoints, compared where it goes on or is tested.

s3prl's checkpoint of a head names its frozen upstream by a path. A student that was trained again in the same folder
lies there too, or another one that the user says it has moved to: a head on it scores, without a word, something that
nobody has trained.

An upstream that is trained too (``-f``) has its weights in the checkpoint. There what else makes a student of them is
noted: the checkpoint that it began with may be gone when it is wanted.
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
    """The weights of one run's upstream; of our own encoders, students' and teachers'.

    Others' are not compared: where a stack builds one with other names or with random parts that nothing reads, its
    digest would change though its states do not.

    Args:
        save: the runner's ``torch.save``.
    """

    def __init__(self, save: Callable[..., None]) -> None:
        self._save = save
        self._noted: dict[str, Any] = {}  # what the checkpoints get besides s3prl's own

    def compare(self, model: nn.Module, args: Namespace, state: Mapping[str, Any]) -> None:
        """Note what ``model``, the upstream, is; of a run that goes on, compare its weights with its checkpoint's.

        Args:
            model: as s3prl's hub has built it.
            args: of the run.
            state: the checkpoint that it begins with; empty for none.

        Raises:
            EkdError: they are others.
        """
        from s3prl_ekd.model.encoder import Encoder
        from s3prl_ekd.model.heads import HeadSet
        from s3prl_ekd.student_part import START_KEY
        from s3prl_ekd.teachers.fingerprint import add_weights

        if args.upstream_trainable:  # its weights are in the checkpoint itself
            own = getattr(getattr(model, "module", model), "student_start", None)  # several processes wrap it
            # a run that goes on keeps what it has: by now -k may name the tuned student, or another one lie there
            kept = state.get(START_KEY) if args.past_exp else None
            self._noted = {} if own is None else {START_KEY: kept or own}
            return
        parts = [module for module in model.modules() if isinstance(module, (Encoder, HeadSet))]
        if not parts:
            return
        digest = hashlib.sha256()
        for part in parts:
            add_weights(digest, part)
        before, now = state.get(KEY), digest.hexdigest()
        self._noted = {KEY: now}
        if args.past_exp and before is not None and before != now:  # with -i a head may change its upstream
            what = f"-k {args.upstream_ckpt}" if args.upstream_ckpt else f"-g {args.upstream_model_config}"
            raise EkdError(
                f"{what}: these are not the weights that {args.init_ckpt} was trained on; give those, or train a head "
                "on these (-n)"
            )

    def save(self, state: Any, path: str) -> None:
        """``torch.save``, with the digest, or a trained student's own, in the checkpoint."""
        self._save({**state, **self._noted} if self._noted else state, path)

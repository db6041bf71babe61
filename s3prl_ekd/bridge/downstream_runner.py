"""s3prl's downstream runner and what its module makes a run of, with what they lack.

``downstream_launch.py`` puts them into the namespace of the runner's module.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s3prl_ekd.bridge import optimizers
from s3prl_ekd.bridge.evaluation_memory import EvaluationMemory, message
from s3prl_ekd.bridge.training_place import TrainingPlace
from s3prl_ekd.bridge.upstream_weights import UpstreamWeights
from s3prl_ekd.errors import EkdError, is_out_of_memory, one_line

if TYPE_CHECKING:
    from s3prl_ekd.bridge.distorted_test import DistortedAudio


def on_device(device: Any) -> Any:
    """``torch.cuda.device``, which the runner enters around ``empty_cache``: a context of nothing for the CPU."""
    import torch

    return torch.cuda.device(device) if str(device).startswith("cuda") else nullcontext()


def runner_class(
    original: type,
    weights: UpstreamWeights,
    memory: EvaluationMemory,
    heard: Callable[[], DistortedAudio | None],
    place: TrainingPlace | None = None,
) -> type:
    """s3prl's runner, whose frozen upstream may keep its states (``runner.cache_states``), or hear distorted clips.

    Args:
        original: ``s3prl.downstream.runner.Runner``.
        weights: of its upstream, which must be those that its head was trained on.
        memory: answers for an evaluation while training that does not fit into the GPU's memory.
        heard: what stands before the upstream once arguments and configuration are read; None: nothing.
        place: from which a training goes on that was stopped; None where several processes train.
    """

    class Runner(original):
        def train(self) -> None:
            if place is not None:
                expert, state = self.downstream.model, self.init_ckpt if self.args.past_exp else {}
                expert.get_dataloader = place.follow(expert.get_dataloader, state)
            super().train()

        def evaluate(self, split: str | None = None, logger: Any = None, global_step: int = 0) -> list[str]:
            if split is not None:
                with place.evaluating() if place is not None else nullcontext():
                    return memory.evaluate(super().evaluate, self.config, split, logger, global_step)
            try:
                return super().evaluate()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                raise EkdError(message(self.args.evaluate_split, self.config)) from error

        def _load_weight(self, model: Any, name: str) -> None:
            try:
                super()._load_weight(model, name)
            except (RuntimeError, ValueError, LookupError) as error:  # torch's, on other names, shapes or groups
                if is_out_of_memory(error):
                    raise
                raise EkdError(
                    f"{self.args.init_ckpt}: its {name} does not fit this run: -d, -u, -g, -f, -l, -s, the sizes of "
                    f"the model and the optimizer must be those that it was trained with ({one_line(error, 300)})"
                ) from error

        def _get_scheduler(self, optimizer: Any) -> Any:
            return optimizers.go_on(super()._get_scheduler(optimizer), optimizer)

        def _get_upstream(self) -> Any:
            try:
                entry = super()._get_upstream()
            except OSError as error:  # which the downloaders of urllib, requests and huggingface_hub raise
                if type(error).__module__ == "builtins":
                    raise
                raise EkdError(
                    f"-u {self.args.upstream}: its checkpoint could not be downloaded ({one_line(error, 200)}); "
                    "without a network: docs/faq.md"
                ) from error
            weights.compare(entry.model, self.args, self.init_ckpt)
            folder = self.config["runner"].get("cache_states")
            if folder:
                from s3prl_ekd.bridge.cached_upstream import CachedUpstream

                config = self.args.upstream_model_config
                text = Path(config).read_text("utf-8") if config and Path(config).is_file() else str(config)
                entry.model = CachedUpstream(entry.model, Path(folder), (self.args.upstream, text))
                entry.model.to(self.args.device)
            distorted = heard()
            if distorted is not None:
                distorted.put_before(entry.model)
            return entry

    return Runner


def featurizer_class(original: type, begins: bool = True) -> type:
    """s3prl's featurizer, which answers ``-l`` beyond the upstream's states with a bare IndexError.

    To ``-s`` with a key that the upstream has not it reads ``hidden_states`` instead, in a line among many.
    It chooses what of the upstream's output is read, so it tells an upstream with a cache what is worth keeping.

    Args:
        original: ``s3prl.upstream.interfaces.Featurizer``.
        begins: of a run without a checkpoint; a head that s3prl has trained so is tested on what it was trained on.
    """

    class Featurizer(original):
        def __init__(self, upstream: Any, *args: Any, **kwargs: Any) -> None:
            self._asked = kwargs.get("feature_selection") if begins else None
            self._begins = begins
            super().__init__(upstream, *args, **kwargs)
            self._begins = False  # from here on a cache may give the one state that was chosen
            if hasattr(upstream, "begin"):
                upstream.begin(self.feature_selection, self.layer_selection, self.downsample_rate, self._select_feature)

        def _select_feature(self, features: dict[str, Any]) -> Any:
            if self._asked not in (None, self.feature_selection):
                names = [str(name) for name in features if not re.match(r"_|hidden_state_\d", str(name))]
                raise EkdError(f"-s {self._asked}: the upstream has none of that name; it has {', '.join(names)}")
            states, layer = features.get(self.feature_selection, ()), self.layer_selection
            count = len(states) if isinstance(states, (list, tuple, dict)) else 1
            asked = count > 1 or self._begins  # of a single one s3prl ignores it
            if layer is not None and asked and not -count <= layer < count:
                those = f"are numbered 0 to {count - 1}" if count > 1 else "is one state; leave -l out"
                raise EkdError(f"-l {layer}: the upstream's {self.feature_selection} {those}")
            return super()._select_feature(features)

    return Featurizer


def count_steps(runner: Any) -> None:
    """Let every rank of a distributed run stop at total_steps.

    s3prl's runner counts steps in its progress bar, and only rank 0 moves it: the others train on until their peer is
    gone, and fail. Here their bar moves with ``optimizer.zero_grad``, which the runner calls once a step.
    """
    bars: list[Any] = []
    make_bar, make_optimizer = runner.tqdm, runner.get_optimizer

    def tqdm(*args: Any, **kwargs: Any) -> Any:
        bar = make_bar(*args, **kwargs)
        if kwargs.get("desc") == "overall":
            bars[:] = [bar]
        return bar

    @wraps(make_optimizer)  # the next run of this process looks behind it
    def get_optimizer(*args: Any, **kwargs: Any) -> Any:
        optimizer = make_optimizer(*args, **kwargs)
        if not runner.is_leader_process():
            zero_grad = optimizer.zero_grad

            def counted(*args: Any, **kwargs: Any) -> None:
                zero_grad(*args, **kwargs)
                bars[0].update(1)

            optimizer.zero_grad = counted
        return optimizer

    tqdm.write = make_bar.write  # type: ignore[attr-defined]
    runner.tqdm, runner.get_optimizer = tqdm, get_optimizer


def data_parallel(original: Any) -> Any:
    """DistributedDataParallel as s3prl's runner needs it.

    ``device_ids=[local_rank]`` is passed for models on the CPU too, where it is an error, and by a rank that sees its
    own GPU alone, which is number 0. And rank 0 evaluates alone with the wrapped model, so its forward must not
    exchange buffers (s3prl's hold the best score, which is rank 0's).
    """

    def build(model: Any, device_ids: Any = None, **kwargs: Any) -> Any:
        import torch

        on_gpu = all(parameter.is_cuda for parameter in model.parameters())
        device_ids = [torch.cuda.current_device()] if on_gpu else None
        return original(model, device_ids=device_ids, broadcast_buffers=False, **kwargs)

    return build

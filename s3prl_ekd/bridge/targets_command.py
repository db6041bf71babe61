"""``s3prl-ekd targets``: the teachers compute a run's targets ahead of it; no student is trained.

Here are the arguments, read as ``run_pretrain.py -u ekd`` reads its own; the work is in ``teachers/targets_ahead.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from s3prl_ekd.bridge import arguments, pretrain_configs
from s3prl_ekd.bridge.given_model import GivenModel
from s3prl_ekd.checked import read_yaml
from s3prl_ekd.compat.shims import apply_shims
from s3prl_ekd.config import OVERRIDES, check_runner_config
from s3prl_ekd.device import default_device
from s3prl_ekd.errors import EkdError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments: those of ``run_pretrain.py`` that targets depend on."""
    parser.add_argument(
        "-g", "--upstream-config", "--upstream_config", required=True, metavar="MODEL", help="the run's -g"
    )
    parser.add_argument("-c", "--config", required=True, metavar="FILE", help="the run's config_runner.yaml")
    parser.add_argument("-o", "--override", metavar="KEY=VALUE,,KEY=VALUE", help="the run's -o")
    parser.add_argument(
        "--device", help="where teachers compute: cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    )


def run(args: argparse.Namespace) -> int:
    """Fill the cache that the configuration names, from where an earlier call or run left it."""
    arguments.check_override(args.override, args, OVERRIDES)
    model = GivenModel.of(args.upstream_config, args.override)
    args.upstream_config = str(pretrain_configs.find("-g", args.upstream_config))
    args.config = str(pretrain_configs.find("-c", args.config))
    values = read_yaml(Path(args.config))
    if args.override is not None and args.override.lower() != "none":
        _override(args, values)
    arguments.hide_gpu(args.device or "")  # else batches would be put into its pinned memory; -o may have named it
    try:
        _fill(args, values, model)
    except EkdError as error:
        raise EkdError(model.named(str(error), args.upstream_config)) from error
    return 0


def _fill(args: argparse.Namespace, values: dict[str, Any], model: GivenModel) -> None:
    """The work; ``values``: the runner's configuration."""
    config = model.load(args.upstream_config)
    if config.ekd.cache_targets is None:
        raise EkdError(f"{args.upstream_config}: ekd.cache_targets: null; name the folder that is to be filled")
    data = check_runner_config(values, args.config).pretrain_expert.datarc
    from s3prl_ekd.teachers.targets_ahead import fill_ahead  # torch: not needed for --help and the mistakes above

    fill_ahead(config, data, args.device or default_device(), args.upstream_config, args.config)


def _override(args: argparse.Namespace, values: dict[str, Any]) -> None:
    """Let s3prl apply ``-o``, as its script does: to the runner's configuration, and to arguments (``args.device``)."""
    apply_shims("core")

    from s3prl.utility.helper import override

    arguments.checked_override(override)(args.override, args, values)

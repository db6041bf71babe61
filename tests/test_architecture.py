"""What may import what: one order of the packages, and no import cycle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent

# From the ground up: a line may import from the lines above it, and within itself.
# A student's checkpoint may be a transformers folder, as teachers are; and a student may start from either.
# Names are those below s3prl_ekd.
LAYERS = """
errors version spelling source_names task_names kernels random_state shipped
data_workers signals user_paths whole_file writable
file_digest ending checked config_files variants audio device distributed torch_file metrics_file
own_scripts file_lock shape console crops
compat config corpora environment
distill
data model
teachers student_checkpoint student_part
ensemble_file macs
bridge
pretrain upstream
evaluate
export report
installed doctor demo cli
"""


def modules() -> dict[str, Path]:
    """Name below s3prl_ekd -> file, for the package and for the folders that are installed into it."""
    found = {}
    for top in ("s3prl_ekd", "pretrain", "upstream"):
        for file in sorted((REPO / top).rglob("*.py")):
            parts = [*(() if top == "s3prl_ekd" else (top,)), *file.relative_to(REPO / top).with_suffix("").parts]
            found[".".join(parts).removesuffix("__init__").rstrip(".")] = file
    return found


def imports(file: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of ours that a file imports, anywhere in it but under ``TYPE_CHECKING``."""
    tree = ast.parse(file.read_text())
    for block in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
        if isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            block.body.clear()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.startswith("s3prl_ekd."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "s3prl_ekd":
            module = node.module.partition(".")[2]
            for name in (f"{module}.{alias.name}".lstrip(".") for alias in node.names):
                yield name if name in known else module


def layer(module: str) -> int:
    """The line of :data:`LAYERS` that a module belongs to."""
    package = module.split(".")[0]
    for number, line in enumerate(LAYERS.split("\n")):
        if package in line.split():
            return number
    raise AssertionError(f"{module}: in no line of LAYERS")


def test_every_import_goes_down() -> None:
    known = modules()
    up = [
        f"{module} imports {other}"
        for module, file in known.items()
        for other in imports(file, known)
        if module and other and layer(other) > layer(module)
    ]
    assert not up, "\n".join(up)


def test_there_is_no_import_cycle() -> None:
    known = modules()
    graph = {module: set(imports(file, known)) - {"", module} for module, file in known.items() if module}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)  # CycleError names the modules


def test_only_these_touch_s3prl() -> None:
    """s3prl is imported in compat, in the launchers, and where its own runner is started: nowhere else."""
    allowed = ("compat.", "bridge.", "export.runner_trial", "evaluate.fork_server")
    found = [
        module
        for module, file in modules().items()
        for node in ast.walk(ast.parse(file.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "s3prl")
        or (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "s3prl" for alias in node.names))
    ]
    assert found, "nothing found: the search is broken"
    assert [module for module in found if not module.startswith(allowed)] == []

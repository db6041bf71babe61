"""Makes s3prl importable on this stack and adds our upstreams to ``s3prl.hub``; starts no runner.

s3prl takes ``-u NAME`` as an attribute of the module ``s3prl.hub``, so setting attributes there is the whole
registration, for the registry's wheel and for a git checkout alike.
"""

from __future__ import annotations

import importlib

UPSTREAMS = {
    "ekd_student": ("ekd_student", "ekd_student_local", "ekd_student_url"),
    "ekd_teacher": ("ekd_teacher",),
}
"""Folder of ``upstream/`` -> the hub names that its ``hubconf.py`` defines."""


def register() -> None:
    """Mend s3prl for the installed stack and set the names of :data:`UPSTREAMS` on its hub.

    Safe to call again. Imports torch and s3prl.
    """
    from s3prl_ekd.bridge.shims import apply_shims

    apply_shims()

    from s3prl import hub

    for folder, names in UPSTREAMS.items():
        hubconf = importlib.import_module(f"s3prl_ekd.upstream.{folder}.hubconf")
        for name in names:
            setattr(hub, name, getattr(hubconf, name))

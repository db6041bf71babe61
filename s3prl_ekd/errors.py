"""The one exception for what a user can cause.

Every command catches :class:`EkdError` at its outermost level, prints its message as one line and exits with status 2.
A message names the file and the key (``config_model.yaml: ekd.teachers[1].layers: 14 > 12``), then what was expected.
"""


class EkdError(ValueError):
    """Something that the user can mend: a wrong key, a missing file, an unreadable checkpoint."""

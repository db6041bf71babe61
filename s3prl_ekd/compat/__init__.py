"""s3prl made importable on the installed stack, and its hub; nothing above needs to know which release lacks what."""

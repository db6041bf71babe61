"""Everything that touches s3prl: registration, shims for the current stack, the two launchers."""

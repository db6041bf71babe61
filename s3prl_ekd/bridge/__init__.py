"""The two launchers: s3prl's own runner scripts with checks before them and patches around them; ``link``."""

"""s3prl pretrain tasks (a mirror of s3prl/pretrain)."""

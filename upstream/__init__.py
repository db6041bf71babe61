"""s3prl upstreams (a mirror of s3prl/upstream)."""

"""Speed and memory, measured: ratios against s3prl's own classes in the same process. See docs/performance.md."""

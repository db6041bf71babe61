"""Downstream settings of SUPERB's tasks: s3prl's recipe values."""

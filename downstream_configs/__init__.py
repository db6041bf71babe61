"""Downstream settings of PR, SID, ER and ASR: s3prl's recipe values."""

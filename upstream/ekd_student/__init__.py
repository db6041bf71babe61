"""The distilled student as an s3prl upstream: run_downstream.py -u ekd_student."""

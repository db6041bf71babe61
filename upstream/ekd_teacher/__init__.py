"""Any teacher as an s3prl upstream: run_downstream.py -u ekd_teacher -k SOURCE."""

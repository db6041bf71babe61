"""Several models side by side as one s3prl upstream: run_downstream.py -u ekd_ensemble -k FILE."""

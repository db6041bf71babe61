"""Ensemble knowledge distillation as an s3prl pretrain task: run_pretrain.py -u ekd."""

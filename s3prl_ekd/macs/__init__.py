"""Parameters and multiply-accumulates as the SUPERB challenge counts them."""

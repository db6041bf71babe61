"""Train and test the four tasks with the native runner, score again independently, tabulate."""

"""Train and test the tasks with the native runner, score again independently, tabulate."""

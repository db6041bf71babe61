"""The paper's claims at small scale: students of every combination of teachers, compared on four tasks of real speech.

Modules, from the bottom up; each imports only what stands above it, and the package never imports this recipe:

- ``settings.py``: what experiment.yaml may say; which rows there are
- ``calls.py``: the project's commands as child processes
- ``students.py``: a row's student, distilled by run_pretrain.py
- ``scores.py``: a row's evaluation by ``s3prl-ekd evaluate``; what of it is kept in results/
- ``statistics.py``: means, standard errors, and which differences are beyond the noise
- ``tables.py``: results/ -> the tables of docs/results.md
- ``schedule.py``: rows side by side
- ``__main__.py``: the command
"""

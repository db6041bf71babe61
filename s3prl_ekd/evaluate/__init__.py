"""Train and test the tasks with the native runner, score again independently, tabulate.

Where to look, in the course of a call (``command.py``):

- what to do: ``models.py``, ``presets.py``, ``rates.py`` read the options, ``model_plans.py`` makes of them each
  model's plan, ``plan.py`` its runs down to the native commands (``dry_run.py`` prints them)
- what is refused beside earlier scores: ``refusals.py``; what rows must share: ``conditions.py``
- doing it: ``schedule.py`` says which run is next (the pick on dev: ``grid.py``), ``run.py`` trains or tests one,
  ``process.py`` starts it (``fork_server.py``); ``side_by_side.py``, ``devices.py``: several at a time;
  ``shard.py``: on several machines; ``folder_lock.py`` keeps calls out of each other's folders
- whether a run is done: its ``run.json`` (``marker.py``), with digests of what it read (``inputs.py``)
- its numbers: ``score.py``; merged over rates, folds and seeds: ``results.py``
- ``scores.json``: ``records.py`` puts it together from this call's results, what earlier ones left
  (``kept_scores.py``) and what made them (``provenance.py``, ``cost.py``); its format and reading: ``scores_file.py``,
  what must stand in it: ``scores_format.py``
- tables: ``table.py``, ``grid_table.py``, in them means over pretrainings: ``pretrainings.py``; the sentences below:
  ``differences.py``
- whether differences are the test set's chance: ``compare_command.py``, ``compare.py``, ``bootstrap.py``,
  ``compare_table.py``
- the same on distorted audio: ``robustness_command.py``, ``distorted.py``, ``distorted_result.py``,
  ``robustness.py``

What evaluate knows of a task is a row of ``tasks.py``.
"""

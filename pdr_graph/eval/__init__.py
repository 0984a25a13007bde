"""Evaluation of the method: problems, arms at matched budgets, records, statistics.

`pdr-graph eval` runs arms over problems (`runner.py`); each sample is a checkpointed thread.
`records.py` describes the run folder that it writes, which is all that `pdr-graph compare` reads.
"""

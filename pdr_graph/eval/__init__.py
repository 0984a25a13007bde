"""The method measured: problems, arms at matched budgets, records, statistics.

`pdr-graph eval` runs arms over problems (`runner.py`), each sample a checkpointed thread;
`records.py` describes what it leaves behind, which is all that `pdr-graph compare` reads.
"""

"""Training a model for the way it is used: trajectories of the graph, and what is learnt of them.

The data's way: `schedule.py` says what each step asks, `rollouts.py` runs the graph that serves
inference and `recording.py` keeps every call with its tokens; `reward.py` judges, `advantage.py`
compares within groups, `step_rows.py` deals rows to ranks, `objective.py` is the loss (paper
section 4), `trainer.py` trains on it. `push/` brings the policy that draws up to the model, and
`drift.py` checks that it is. `settings.py` is what a user asks, `session.py` does it, and
`saving.py` keeps it; `supervised.py` and `warm_start.py` are what may come first. Only what trains
needs torch.
"""

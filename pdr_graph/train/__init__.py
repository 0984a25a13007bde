"""Training a model for the way it is used: trajectories of the graph, and what is learnt of them.

`recording.py` runs the graph that serves inference and keeps every call with its tokens;
`reward.py` judges, `advantage.py` compares within groups, `objective.py` is the loss (paper
section 4). Only the last needs torch.
"""

"""Trains a model for the way it is used: on trajectories of the graph that serves inference.

From a data line to an update:

    preparation.py   checks settings and problems; `session.py` runs what they ask
    plan.py          which problems a step asks, and how the K rows of each are spent
    rollouts.py      runs the graph on them; `recorder.py` keeps every call with its tokens
    rows.py          calls with their rewards, compared within groups, dealt to updates
    steps.py         pushes weights, draws a step's rows, checks them for drift
    objective.py     rows as a batch of tensors, log-probabilities, the loss (paper section 4)
    trainer.py       the updates, on the trainer of transformers

`settings.py` is what a user asks. `engine.py` opens the policy that draws, and `push.py` brings it
up to the model. `warm_start.py` trains on recorded replies first, which `supervised.py` makes.
`run_folder.py` and `models.py` keep a run, `session.py` describes its model. Only modules that
train import torch.
"""

"""The training study: does operator-consistent RL make a model better at PDR than ordinary RL?

`python -m benchmarks.studies.training` makes everything: a tiny model's warm start, the training
runs, their evaluations, the table and the plots. The plan, written before the runs, is
`docs/results/training-plan.md`.
"""

"""The study of selection: does the recommended preset beat a plain vote of the same drafts?

The drafts of each problem are sampled once, by `pdr-graph eval`. Every policy is then judged on
the same drafts, which makes many policies cheap and their differences paired. The rule that says
what counts as success is `docs/results/selection-plan.md`; it was written before the drafts that it
judges were sampled.
"""

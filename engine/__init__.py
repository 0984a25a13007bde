"""Real vLLM for tests and benchmarks: an environment, a model folder, a server.

`python -m engine` makes both, once, in a cache folder that every checkout shares. Nothing of the
wheel imports this folder.
"""

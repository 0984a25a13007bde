"""The servers that `pdr-graph up` starts on this machine, and `pdr-graph down` ends.

Each part, the model and the store, has a *keeper*: a process of its own that starts the server,
waits until it answers, writes down how it is, and ends it when asked. The command that started a
keeper may be killed at any instant, since whatever is known is known to the keeper:

- `PART.lock` is held by the keeper, and dropped by the kernel with it.
- `PART.json` is the keeper's record: the state, the address, the processes with their start times.
- `PART.log` is what keeper and server said.

A server dies with its keeper (Linux tells it by a signal); where it does not, the record names it.
"""

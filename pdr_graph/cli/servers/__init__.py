"""`pdr-graph up` and `pdr-graph down`: the servers of this machine."""

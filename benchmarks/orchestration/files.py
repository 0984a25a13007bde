"""The limit on open files, which a thousand connections pass."""

import resource

MANY = 65_536


def allow_many_files() -> int:
    """Raise this process's limit as far as it may; children inherit it. Return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY if hard == resource.RLIM_INFINITY else min(MANY, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return max(soft, wanted)

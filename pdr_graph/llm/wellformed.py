"""Text that UTF-8 can hold.

JSON may carry half a surrogate pair, and Python keeps it in a string that no request, file or store
can encode. One such draft would fail every call that reads it.
"""


def wellformed(text: str) -> str:
    """Return `text` with every lone surrogate replaced by a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")

"""A run that ended before it had a result."""


class RunEndedError(Exception):
    """The run was stopped, or failed after it had begun."""

    def __init__(self, way_on: str, exit_code: int | None, cause: Exception | None) -> None:
        self.way_on = way_on
        """The line that says how to go on."""
        self.exit_code = exit_code
        """Set where a signal ended the run; None where `cause` did."""
        self.cause = cause
        super().__init__(way_on)

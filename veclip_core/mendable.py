"""The errors that a person can mend."""


class Mendable(Exception):
    """Says in one sentence what is wrong and what mends it. Shown without a trace, and not retried."""

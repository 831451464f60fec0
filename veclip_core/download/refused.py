"""Why a URL gave no picture."""


class Refused(Exception):
    """No picture from this URL; `reason` is one of a small vocabulary."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        """`final`: asking again now would get the same answer."""
        super().__init__(reason)
        self.reason, self.final = reason, final

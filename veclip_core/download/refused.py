"""Why a URL gave no picture."""


class Refused(Exception):
    """No picture from this URL; `reason` is one of a small vocabulary."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

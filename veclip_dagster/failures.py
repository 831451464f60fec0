"""What a person can mend becomes one sentence and is not retried; anything else keeps its trace."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from veclip_core.mendable import Mendable


@contextmanager
def clear_failures() -> Iterator[None]:
    try:
        yield
    except Mendable as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error

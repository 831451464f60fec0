"""What the commands of `veclip` have in common."""

from typing import Annotated

import typer

from veclip_core.scales import SCALES, Scale, scale_named

ScaleOption = Annotated[str, typer.Option("--scale", "-s", help=f"One of {', '.join(SCALES)}.")]


def scale_of(name: str) -> Scale:
    """The scale of that name, or a usage error that lists the scales."""
    try:
        return scale_named(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error

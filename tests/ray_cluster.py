"""A real Ray cluster of two or more nodes on this machine, in processes of its own, so that tests may kill parts of it."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]
MEMORY = 200 * 1024**2
"""Bytes of each node's object store: markers and tasks are all that goes through it."""


@contextmanager
def cluster_of(nodes: int, cpus: int = 2, **environment: str) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster`; `environment` is what its workers see. The calling process is not connected to it."""
    from ray.cluster_utils import Cluster

    if " " in sys.executable:
        pytest.skip(f"Ray starts no worker from a path with a space: {sys.executable}")
    paths = os.pathsep.join(path for path in (str(PROJECT), environment.pop("PYTHONPATH", "")) if path)
    own = {"PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0", **environment}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    # A node started in this process handles its SIGTERM, and goes on doing so when the node is gone.
    on_sigterm = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": MEMORY}
    cluster: Any = None
    try:
        cluster = Cluster(initialize_head=True, head_node_args={**options, "include_dashboard": False})
        for _ in range(nodes - 1):
            cluster.add_node(**options)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        import ray

        ray.shutdown()
        if cluster is not None:
            cluster.shutdown()
        signal.signal(signal.SIGTERM, on_sigterm)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

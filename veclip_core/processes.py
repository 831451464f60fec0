"""Whether a process of this machine is alive: what leases and scratch folders of killed runs are known by."""


def process_started(pid: int) -> float | None:
    """When a process of this machine started, which tells it from a later one of the same number; None when it is dead."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except psutil.NoSuchProcess:
        return None

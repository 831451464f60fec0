"""Runs shards one after the other in this process: for work that is over before a worker has imported torch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from veclip_core.execution.slots import Bench, Task
from veclip_core.stage import ShardDone, ShardJob


@dataclass(frozen=True)
class ThisProcess:
    """One worker, which is this process: what would kill a worker kills the run. It resumes as any other."""

    def workers_at_once(self) -> int:
        return 1

    def run(self, job: ShardJob, tasks: Sequence[Task], more: Callable[[], bool]) -> Iterable[ShardDone]:
        bench = Bench(job)
        if (failure := bench.open(after_s=0)) is not None:
            yield replace(failure, key=tasks[0][0])
            return
        try:
            for key, input_digests in tasks:
                if not more():
                    return
                yield bench.make(key, input_digests)
        finally:
            bench.close()

"""What the process uses, under the standard names, read without making a scrape wait.

prometheus_client's own collector opens files as Python does, and looks at each file descriptor. Each of its
sixty or so system calls lets another thread have the interpreter and waits to get it back: under a busy
poller that took a scrape longer than all else. Here it is two, since one file stays open.
"""

from __future__ import annotations

import os
import resource
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_START = "process_start_time_seconds"


class Process(Collector):
    """The `process_*` metrics; none where there is no /proc."""

    def __init__(self, proc: str = "/proc") -> None:
        found = {family.name: family for family in ProcessCollector(proc=proc, registry=None).collect()}
        self._started = found.get(_START)
        if self._started:
            self._files = Path(proc, "self", "fd")
            self._stat = os.open(f"{proc}/self/stat", os.O_RDONLY)
            weakref.finalize(self, os.close, self._stat)

    def describe(self) -> Iterator[Metric]:
        """Without this, whoever asks for some names only would not be given these."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """What the process uses now."""
        if self._started is None:
            return
        yield self._started
        used = resource.getrusage(resource.RUSAGE_SELF)
        yield CounterMetricFamily(
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds.",
            used.ru_utime + used.ru_stime,
        )
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        yield GaugeMetricFamily(
            "process_max_fds",
            "Maximum number of open file descriptors.",
            float("inf") if limit == resource.RLIM_INFINITY else limit,
        )
        with suppress(OSError):  # an older kernel has them counted, for which no descriptor may be left
            yield GaugeMetricFamily(
                "process_open_fds", "Number of open file descriptors.", self._open_files()
            )
        virtual, resident = self._memory()
        yield GaugeMetricFamily("process_virtual_memory_bytes", "Virtual memory size in bytes.", virtual)
        yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory size in bytes.", resident)

    def _open_files(self) -> int:
        """Linux tells their number as the size of the directory since 6.2 (filesystems/proc.rst)."""
        return self._files.stat().st_size or sum(1 for _ in self._files.iterdir())

    def _memory(self) -> tuple[int, int]:
        """Bytes, virtual and resident: fields 23 and 24 of proc_pid_stat(5), of which 2 may hold anything."""
        fields = os.pread(self._stat, 4096, 0).rpartition(b")")[2].split()
        return int(fields[20]), int(fields[21]) * resource.getpagesize()

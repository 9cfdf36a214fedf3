"""What the process uses is what prometheus_client's own collector tells of it."""

import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric

from exporter.metrics.process import Process

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux: /proc tells")


def told(families: object) -> dict[str, Metric]:
    return {family.name: family for family in families}  # type: ignore[attr-defined]


def theirs_and_ours() -> tuple[dict[str, Metric], dict[str, Metric]]:
    return told(ProcessCollector(registry=None).collect()), told(Process().collect())


@linux
def test_it_tells_what_prometheus_client_tells() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:  # here other threads open and close files
        theirs, ours = alone.submit(theirs_and_ours).result()
    assert ours.keys() == theirs.keys()
    for name, family in ours.items():
        assert (family.documentation, family.type) == (theirs[name].documentation, theirs[name].type)
        (sample,), (wanted,) = family.samples, theirs[name].samples
        assert (sample.name, sample.labels) == (wanted.name, wanted.labels)
        # Looking takes memory, time and, for who reads the directory, a descriptor.
        assert sample.value == pytest.approx(wanted.value, rel=0.05, abs=1.0)


@linux
def test_an_older_kernel_has_its_descriptors_counted(tmp_path: Path) -> None:
    old = tmp_path / "self"
    old.mkdir()
    (old / "stat").write_bytes(Path("/proc/self/stat").read_bytes())
    (old / "limits").write_bytes(Path("/proc/self/limits").read_bytes())
    (tmp_path / "stat").write_bytes(Path("/proc/stat").read_bytes())
    size_unknown = Path("/proc/self/ns")
    assert size_unknown.stat().st_size == 0
    (old / "fd").symlink_to(size_unknown)
    (sample,) = told(Process(str(tmp_path)).collect())["process_open_fds"].samples
    assert sample.value == len(list(size_unknown.iterdir())) > 0


def test_without_proc_it_tells_nothing(tmp_path: Path) -> None:
    assert not told(Process(str(tmp_path)).collect())


@linux
def test_without_a_descriptor_left_it_tells_the_rest() -> None:
    process, before = Process(), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        found = told(process.collect())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert {"process_cpu_seconds", "process_resident_memory_bytes"} <= found.keys()

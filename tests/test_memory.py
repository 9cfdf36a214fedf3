"""The garbage collector and the allocator, the real ones: what they leave alone, and what they give back."""

from __future__ import annotations

import gc
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import PATIENCE, environment
from support.fakes import FakeClock

from exporter.memory import EVERYTHING_EVERY, Survivors

#: The command, which prints a line once a full collection has frozen more objects than were at its start.
#: CPython 3.12 starts with 375 frozen objects.
ASKED = """
import gc, os, sys, threading

before = gc.get_freeze_count()

def ask():
    pause = threading.Event()
    while gc.get_freeze_count() <= before:  # none is made while another thread makes one
        gc.collect()
        pause.wait(0.05)
    print(True, flush=True)
    os._exit(0)

threading.Thread(target=ask, daemon=True).start()
from exporter.__main__ import main
sys.exit(main())
"""


class Node:
    """Part of a circle, which only the collector finds."""

    def __init__(self) -> None:
        self.myself = self


@pytest.fixture
def clock() -> Iterator[FakeClock]:
    """Of the callback, which is in place while the test runs."""
    clock = FakeClock()
    survivors = Survivors(clock.monotonic)
    gc.callbacks.append(survivors)
    yield clock
    gc.callbacks.remove(survivors)
    gc.unfreeze()
    gc.collect()


def test_the_command_keeps_what_survives_out_of_the_next_one(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("targets: [{repository: team/app}]")
    done = subprocess.run(
        [sys.executable, "-c", ASKED, f"--config.file={file}", "--web.listen-address=127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=environment(AWS_REGION="us-east-1", AWS_ENDPOINT_URL="http://127.0.0.1:9"),
    )
    assert done.stdout == "True\n", done.stderr


def is_looked_at(node: Node) -> bool:
    return any(each is node for each in gc.get_objects())


@pytest.mark.usefixtures("clock")
def test_what_survives_a_full_collection_is_left_alone_by_the_next() -> None:
    node = Node()
    assert is_looked_at(node)
    gc.collect()
    assert not is_looked_at(node)


@pytest.mark.usefixtures("clock")
def test_a_lesser_collection_leaves_everything_as_it_is() -> None:
    node = Node()
    gc.collect(1)
    assert is_looked_at(node)


@pytest.mark.usefixtures("clock")
def test_garbage_that_never_survived_one_is_found_by_the_next() -> None:
    gc.collect()
    garbage = weakref.ref(Node())
    gc.collect()
    assert garbage() is None


def test_a_survivor_that_became_garbage_is_found_in_time(clock: FakeClock) -> None:
    node = Node()
    gc.collect()
    garbage = weakref.ref(node)
    del node
    clock.now += EVERYTHING_EVERY - 1.0
    gc.collect()
    assert garbage() is not None
    clock.now += 1.0
    gc.collect()
    assert garbage() is None


#: Allocates in 8 threads that live at the same time, and prints how many arenas there are.
THREADS = """
import ctypes, re, sys, tempfile, threading
from exporter.memory import share_one_arena

if "share" in sys.argv:
    share_one_arena()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(8)

def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
with tempfile.NamedTemporaryFile() as file:
    libc.fopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(len(re.findall(r"<heap nr=", open(file.name).read())))
"""


def arenas(*args: str, **variables: str) -> int:
    command = [sys.executable, "-c", THREADS, *args]
    kept = {name: value for name, value in environment().items() if not name.startswith("MALLOC_")}
    env = kept | variables
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, which has arenas for threads")
def test_all_threads_share_one_arena() -> None:
    assert arenas() > 1
    assert arenas("share") == 1
    assert arenas("share", MALLOC_ARENA_MAX="4") > 1, "the variable wins"

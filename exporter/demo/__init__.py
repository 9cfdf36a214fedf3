"""A make-believe AWS inside the process, for `--demo` and for tests. Reading order:

ecr      registries in memory, replication driven by a clock
aws      that ECR behind a port of 127.0.0.1 next to moto's STS, and the faults it can be told to have
world    teams that push to it now and then; `start()` brings all of it to life

It reads neither the environment nor any file, writes none, and never leaves 127.0.0.1.
"""

from exporter.demo.aws import (
    ACCOUNT,
    REGION,
    Drip,
    DropConnection,
    EmbeddedAWS,
    Fault,
    Garbage,
    Hang,
    Truncate,
)
from exporter.demo.ecr import Call, CallKind, Delay, Refuse, digest_of
from exporter.demo.world import DEMO_CONFIG, Demo, World, start

__all__ = [
    "ACCOUNT",
    "DEMO_CONFIG",
    "REGION",
    "Call",
    "CallKind",
    "Delay",
    "Demo",
    "Drip",
    "DropConnection",
    "EmbeddedAWS",
    "Fault",
    "Garbage",
    "Hang",
    "Refuse",
    "Truncate",
    "World",
    "digest_of",
    "start",
]

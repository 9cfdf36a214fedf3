"""A simulated AWS inside the process, for `--demo` and for tests. Reading order:

ecr      registries in memory; a clock drives replication
aws      a server on 127.0.0.1 with that ECR and moto's STS
world    teams that push images; `start()` starts everything

It reads no environment variable, reads and writes no file, and connects to 127.0.0.1 only.
"""

from exporter.demo.aws import ACCOUNT, REGION, DemoAWS
from exporter.demo.ecr import Call, CallKind, Delay, digest_of
from exporter.demo.registries import Refuse
from exporter.demo.world import DEMO_CONFIG, Demo, World, start

__all__ = [
    "ACCOUNT",
    "DEMO_CONFIG",
    "REGION",
    "Call",
    "CallKind",
    "Delay",
    "Demo",
    "DemoAWS",
    "Refuse",
    "World",
    "digest_of",
    "start",
]

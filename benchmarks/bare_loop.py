"""Status calls with boto3 alone, from as many threads as the exporter has workers.

The client has the default options of botocore and one connection for each thread. `--tuned` uses the options
of the exporter's client, which save processor time. The rest of the difference is the cost of the exporter.
"""

from __future__ import annotations

import argparse
import threading
from queue import Empty, SimpleQueue
from typing import Any

import boto3
from botocore.config import Config
from fast_ecr import REGION, digest, repository_name

from exporter.polling.workers import MAX_IN_FLIGHT


def work(client: Any, pending: SimpleQueue[tuple[str, str]]) -> None:
    while True:
        try:
            repository, name = pending.get_nowait()
        except Empty:
            return
        client.describe_image_replication_status(repositoryName=repository, imageId={"imageDigest": name})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--repositories", type=int, required=True)
    parser.add_argument("--tuned", action="store_true")
    flags = parser.parse_args()
    config = Config(max_pool_connections=MAX_IN_FLIGHT)
    if flags.tuned:
        config = config.merge(Config(retries={"total_max_attempts": 1}, user_agent="bare-loop"))
    client: Any = boto3.client("ecr", region_name=REGION, config=config)
    pending: SimpleQueue[tuple[str, str]] = SimpleQueue()
    for number in range(flags.repositories):
        for build in range(flags.images // flags.repositories):
            pending.put((repository_name(number), digest(number, build)))
    threads = [threading.Thread(target=work, args=(client, pending)) for _ in range(MAX_IN_FLIGHT)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()

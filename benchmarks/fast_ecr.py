"""A simulated ECR and its events queue for `make bench`, in its own process. It uses little processor time.

Every image is COMPLETE at three destinations and held there, and only pushes change the registry. All
accounts and Regions give the same answers, which are encoded once. Signatures are ignored.
exporter/demo has an ECR that behaves like the real one.

A benchmark controls it with GET requests:

/pushed?repository=R      push an image; the answer is its digest
/allow?rate=40            allow 40 calls a second and refuse the others; &operation=O limits one operation
/calls                    the times of served and refused calls; ?operation=O selects one operation; LookUp
                          is DescribeImages with the names of images
/status-calls             the number of served status calls
/foreign?rate=1000        put so many events a second of another account into the queue
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from array import array
from collections import defaultdict, deque
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from exporter.demo.events import image_action

STATUS = "DescribeImageReplicationStatus"
#: What a DescribeImages call that names images is counted as.
LOOK_UP = "LookUp"
ACCOUNT, REGION = "111122223333", "us-east-1"
PARTNER = "444455556666"
DESTINATIONS = (("eu-west-1", ACCOUNT), ("us-west-2", ACCOUNT), ("eu-west-1", PARTNER))
#: Seconds for which an unused allowance is saved.
BURST = 1.0

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_OPERATION = re.compile(rb"\r\nx-amz-target: *[^.\r]*\.(\w+)", re.IGNORECASE)
_THROTTLED = b'{"__type":"ThrottlingException","message":"Rate exceeded"}'


def digest(repository: int, build: int) -> str:
    return f"sha256:{repository:032x}{build:032x}"


def repository_name(number: int) -> str:
    return f"team/app-{number}"


def encoded(answer: object) -> bytes:
    return json.dumps(answer, separators=(",", ":")).encode()


class Registry:
    """The images, and the answers as JSON."""

    def __init__(self, *, images: int, repositories: int) -> None:
        self._builds = {repository_name(n): images // repositories for n in range(repositories)}
        self._numbers = {name: number for number, name in enumerate(self._builds)}
        self._pages: dict[tuple[str, int, int], bytes] = {}
        self._began = time.time() - 30 * 86400
        #: The push times of images that were pushed after the start.
        self._pushed: dict[str, float] = {}
        statuses = [{"region": r, "registryId": a, "status": "COMPLETE"} for r, a in DESTINATIONS]
        self._statuses = b"," + encoded({"replicationStatuses": statuses})[1:]

    def push(self, repository: str) -> str:
        """The digest of a new image."""
        build = self._builds[repository]
        self._builds[repository] += 1
        new = digest(self._numbers[repository], build)
        self._pushed[new] = time.time()
        self._pages = {key: page for key, page in self._pages.items() if key[0] != repository}
        return new

    def answer(self, operation: str, body: bytes) -> bytes:
        if operation == STATUS:
            return body.rstrip()[:-1] + self._statuses  # the answer repeats the request
        params = json.loads(body)
        if operation == "DescribeImages" and "imageIds" in params:
            return self._named(params["repositoryName"], params["imageIds"])
        if operation == "DescribeImages":
            return self._page(params["repositoryName"], int(params.get("nextToken", 0)), params["maxResults"])
        if operation == "DescribeRepositories":
            rows = [{"registryId": ACCOUNT, "repositoryName": name} for name in self._builds]
            return encoded({"repositories": rows})
        rule = {"destinations": [{"region": r, "registryId": a} for r, a in DESTINATIONS]}
        return encoded({"registryId": ACCOUNT, "replicationConfiguration": {"rules": [rule]}})

    def _named(self, repository: str, image_ids: list[dict[str, str]]) -> bytes:
        """The images with these names, all of which exist."""
        digests = {int(name["imageDigest"][-32:], 16) for name in image_ids if "imageDigest" in name}
        tags = {int(name["imageTag"].removeprefix("build-")) for name in image_ids if "imageTag" in name}
        return encoded({"imageDetails": [self._image(repository, build) for build in sorted(digests | tags)]})

    def _page(self, repository: str, first: int, size: int) -> bytes:
        key = repository, first, size
        if key not in self._pages:
            end = min(first + size, self._builds[repository])
            rows = [self._image(repository, build) for build in range(first, end)]
            more = {"nextToken": str(end)} if end < self._builds[repository] else {}
            self._pages[key] = encoded({"imageDetails": rows} | more)
        return self._pages[key]

    def _image(self, repository: str, build: int) -> dict[str, object]:
        name = digest(self._numbers[repository], build)
        media = "application/vnd.oci.image.manifest.v1+json"
        return {
            "registryId": ACCOUNT,
            "repositoryName": repository,
            "imageDigest": name,
            "imageTags": [f"build-{build}"],
            "imageSizeInBytes": 123456789,
            "imagePushedAt": self._pushed.get(name, self._began + build),
            "imageManifestMediaType": media,
            "artifactMediaType": "application/vnd.oci.image.config.v1+json",
            "imageStatus": "ACTIVE",
        }


@dataclass
class _Allowance:
    """`rate` calls a second. An unused allowance is saved for BURST seconds."""

    rate: float
    tokens: float = 0.0
    filled: float = field(default_factory=time.monotonic)

    def allows(self, now: float) -> bool:
        self.tokens = min(self.rate * BURST, self.tokens + (now - self.filled) * self.rate)
        self.filled = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


class Queue:
    """An SQS queue: an event for each push, and events of another account at a rate. Deletions do nothing."""

    def __init__(self) -> None:
        self._bodies: deque[bytes] = deque()
        self._foreign = _Allowance(0.0)

    def send(self, repository: str, image: str, account: str = ACCOUNT) -> None:
        event = image_action("PUSH", repository, image, at=time.time(), account=account, region=REGION)
        self._bodies.append(encoded(event))

    def add_foreign(self, rate: float) -> None:
        self._foreign = _Allowance(rate)

    def receive(self) -> bytes:
        """At most ten messages; b"" if none waits."""
        while len(self._bodies) < 10 and self._foreign.allows(time.monotonic()):
            self.send("team/app-0", digest(0, 0), account="999988887777")
        messages = [
            {"MessageId": "m", "ReceiptHandle": "h", "Body": self._bodies.popleft().decode()}
            for _ in range(min(10, len(self._bodies)))
        ]
        return encoded({"Messages": messages}) if messages else b""


class FastECR:
    """The registry, its allowances, and the times of calls on the monotonic clock, which processes share."""

    def __init__(self, registry: Registry, *, latency: float) -> None:
        self.latency = latency
        self.queue = Queue()
        self._registry = registry
        #: By operation; "" is the allowance of all operations together.
        self._allowances: dict[str, _Allowance] = {}
        self._served: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self._refused: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))

    def call(self, operation: str, body: bytes) -> tuple[int, bytes]:
        now = time.monotonic()
        limits = [self._allowances[who] for who in (operation, "") if who in self._allowances]
        if not all(limit.allows(now) for limit in limits):
            self._refused[operation].append(now)
            return 400, _THROTTLED
        named = operation == "DescribeImages" and b'"imageIds"' in body
        self._served[LOOK_UP if named else operation].append(now)
        return 200, self._registry.answer(operation, body)

    def control(self, target: str) -> bytes:
        parts = urlsplit(target)
        params = dict(parse_qsl(parts.query))
        if parts.path == "/pushed":
            image = self._registry.push(params["repository"])
            self.queue.send(params["repository"], image)
            return encoded(image)
        if parts.path == "/foreign":
            self.queue.add_foreign(float(params["rate"]))
            return b"null"
        if parts.path == "/allow":
            limit = _Allowance(float(params["rate"]))
            self._allowances[params.get("operation", "")] = limit
            return encoded(limit.filled)
        if parts.path == "/status-calls":
            return encoded(len(self._served[STATUS]))
        only = params.get("operation")
        return encoded(
            {
                name: sorted(
                    at for operation, times in calls.items() if only in (None, operation) for at in times
                )
                for name, calls in (("served", self._served), ("refused", self._refused))
            }
        )


class _Connection(asyncio.Protocol):
    """HTTP/1.1 as botocore uses it: one request at a time, with Content-Length."""

    def __init__(self, ecr: FastECR) -> None:
        self._ecr = ecr
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[:end]
        found = _LENGTH.search(head)
        end_of_body = end + 4 + (int(found[1]) if found else 0)
        if len(self._received) < end_of_body:
            return
        body, self._received = self._received[end + 4 : end_of_body], self._received[end_of_body:]
        operation = _OPERATION.search(head)
        if operation is None:
            self._answer(200, self._ecr.control(head.split(b" ", 2)[1].decode()))
            return
        if operation[1] == b"ReceiveMessage":
            self._receive(time.monotonic() + json.loads(body)["WaitTimeSeconds"])
            return
        if operation[1] == b"DeleteMessageBatch":
            self._answer(200, b'{"Successful":[]}')
            return
        status, answer = self._ecr.call(operation[1].decode(), body)
        if self._ecr.latency:
            asyncio.get_running_loop().call_later(self._ecr.latency, self._answer, status, answer)
        else:
            self._answer(status, answer)

    def _receive(self, until: float) -> None:
        """Answer when there are messages, or at the monotonic time."""
        messages = self._ecr.queue.receive()
        if messages or time.monotonic() >= until:
            self._answer(200, messages or b"{}")
        else:
            asyncio.get_running_loop().call_later(0.005, self._receive, until)

    def _answer(self, status: int, body: bytes) -> None:
        self._transport.write(
            b"HTTP/1.1 %d OK\r\nContent-Type: application/x-amz-json-1.1\r\n"
            b"x-amzn-RequestId: 12345678-1234-1234-1234-123456789012\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )


async def serve(ecr: FastECR) -> None:
    """Serve on a free port of 127.0.0.1, and print the port. Never returns."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(ecr), "127.0.0.1", 0, backlog=128)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--repositories", type=int, default=20)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds until each answer")
    flags = parser.parse_args()
    registry = Registry(images=flags.images, repositories=flags.repositories)
    asyncio.run(serve(FastECR(registry, latency=flags.latency)))


if __name__ == "__main__":
    main()

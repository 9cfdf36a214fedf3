"""Scrapes beside the first listing of three registries, here and in another checkout, in one run.

Run it with `make bench-servers ARGS="--baseline DIR"`. DIR is a checkout of this project with its own
`.venv`. Compare the ratios: both share the machine with their clients and with the simulated ECR.
"""

from __future__ import annotations

import argparse
import http.client
import re
import ssl
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import polling

HERE = Path(__file__).parent.parent
REGIONS = ("us-east-1", "eu-west-1", "ap-south-1")
CONFIG = "targets: [{repository: 'team/*'}]\nrequests_per_second: 10000\nregistries:\n" + "".join(
    f"  - {{region: {region}, registry_id: '111122223333'}}\n" for region in REGIONS
)
#: Seconds for which scrapes are counted after the first one, and between two of them.
FOR, PAUSE = 15.0, 0.05


@contextmanager
def running(checkout: Path, ecr: polling.Server, folder: Path, *, tls: bool) -> Iterator[str]:
    """The address of the exporter of a checkout, HTTPS with `tls`."""
    config, log = folder / "config.yaml", folder / "log"
    config.write_text(CONFIG)
    web = [f"--web.config.file={certificate(folder)}"] if tls else []
    command = [str(checkout / ".venv/bin/python"), "-m", "exporter", "--web.listen-address=127.0.0.1:0"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, f"--config.file={config}", *web],
            stderr=stderr,
            env=polling.environment(ecr.url),
            cwd=checkout,
        )
    try:
        found = polling.eventually(lambda: re.search(r"addresses=(\S+)", log.read_text()), every=0.02)
        yield f"{'https' if tls else 'http'}://{found[1]}"
    finally:
        process.kill()
        process.wait()


def certificate(folder: Path) -> Path:
    """A web configuration with a new certificate. Needs openssl."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", f"{folder}/tls.key"]
    command = ["openssl", "req", "-x509", *key, "-out", f"{folder}/tls.crt", "-subj", "/CN=x", "-days", "1"]
    subprocess.run(command, check=True, capture_output=True)
    file = folder / "web.yml"
    file.write_text("tls_server_config: {cert_file: tls.crt, key_file: tls.key}\n")
    return file


def scrape(url: str, encoding: str = "identity") -> tuple[float, int]:
    """Seconds on a new connection, and bytes of the page in the encoding."""
    address = urlsplit(url)
    began = time.perf_counter()
    connection = (
        http.client.HTTPSConnection(address.netloc, context=ssl._create_unverified_context())  # noqa: SLF001
        if address.scheme == "https"
        else http.client.HTTPConnection(address.netloc)
    )
    with closing(connection):
        connection.request("GET", "/metrics", headers={"Accept-Encoding": encoding})
        size = len(connection.getresponse().read())
    return time.perf_counter() - began, size


def scrapes(checkout: Path, *, images: int, encoding: str, tls: bool) -> list[tuple[float, int]]:
    pause, taken = threading.Event(), []
    with (
        tempfile.TemporaryDirectory() as folder,
        polling.ecr(images=images) as ecr,
        running(checkout, ecr, Path(folder), tls=tls) as url,
    ):
        end = time.perf_counter() + FOR
        while time.perf_counter() < end:
            taken.append(scrape(url, encoding))
            pause.wait(PAUSE)
    return taken


def percentile(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--baseline", type=Path, default=HERE, help="another checkout; this one by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=4_000, help="in each registry")
    parser.add_argument("--encoding", choices=["gzip", "identity"], default="gzip", help="of the page")
    arguments = parser.parse_args()
    for tls in (False, True):
        taken: dict[str, list[tuple[float, int]]] = {"baseline": [], "here": []}
        for _ in range(arguments.rounds):
            for name, checkout in (("baseline", arguments.baseline), ("here", HERE)):
                taken[name] += scrapes(
                    checkout.resolve(), images=arguments.images, encoding=arguments.encoding, tls=tls
                )
        rows = {}
        for name, found in taken.items():
            seconds = [second for second, _ in found]
            rows[f"{name}: scrapes; largest page, MB"] = f"{len(found)}; {max(s for _, s in found) / 1e6:.1f}"
            rows[f"{name}: median, p99, worst, ms"] = ", ".join(
                f"{1000 * second:.0f}"
                for second in (statistics.median(seconds), percentile(seconds), max(seconds))
            )
        here, baseline = ([second for second, _ in taken[name]] for name in ("here", "baseline"))
        rows["p99, here to baseline"] = f"{percentile(here) / percentile(baseline):.2f}"
        rows["median, here to baseline"] = f"{statistics.median(here) / statistics.median(baseline):.2f}"
        port = "TLS" if tls else "no TLS"
        polling.table(
            f"Beside a first listing of {len(REGIONS)} registries, {arguments.encoding}, {port}", rows
        )


if __name__ == "__main__":
    main()

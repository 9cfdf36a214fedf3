"""Composition root: builds every part, starts and stops it, and owns the exit codes.

Exit codes: 0 after a requested stop, 1 if the start fails or polling breaks, 2 for bad flags or a bad file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from exporter import __version__, logs
from exporter.aws.connector import AwsConnector, known_regions
from exporter.aws.errors import ECRError
from exporter.cli import parse
from exporter.commands.check import Check
from exporter.commands.console import Console, error_as_json, write
from exporter.commands.findings import Finding, as_json, as_text, is_problem
from exporter.commands.wait import Question, UsageError, Wait
from exporter.config import settings as config
from exporter.config.settings import Settings
from exporter.config.yaml_source import ConfigError, Problem
from exporter.http.filters import Filters
from exporter.http.report import Report
from exporter.http.reporter import Reporter
from exporter.http.routes import Routes
from exporter.http.server import Server
from exporter.http.web_config import WebConfig
from exporter.lifecycle import (
    EXIT_CODES,
    Loader,
    Reloads,
    Request,
    Requests,
    end_on_signals,
    handle_signals,
    log_problems,
    restore_signals,
)
from exporter.memory import share_one_arena, tune_collector
from exporter.metrics.exposition import Exposition, Page
from exporter.metrics.self_metrics import Instruments
from exporter.polling.poller import Poller
from exporter.polling.workers import Pause, ThreadPool
from exporter.redaction import redact
from exporter.replication.state_file import StateFileWriter
from exporter.replication.store import Store
from exporter.replication.targets import Shard

#: Seconds that open connections get to finish when the process stops.
GRACE = 2.0
#: Seconds that the whole stop may take.
STOP_TIMEOUT = 4.0
#: Seconds between two renderings of the page, at least.
RENDER_INTERVAL = 1.0
#: Seconds until rendering is tried again after a bug in it. Limits log lines.
RENDER_RETRY = 60.0
#: Seconds without a turn of the polling loop after which the process counts as unhealthy.
MAX_SILENCE = 60.0

_log = logs.get("main")


class Exporter:
    """All parts together. The HTTP routes ask it."""

    def __init__(
        self,
        *,
        settings: Settings,
        loader: Loader,
        aws: AwsConnector,
        instruments: Instruments,
        shard: Shard,
        requests: Requests,
    ) -> None:
        self._settings = settings
        self._instruments = instruments
        self._requests = requests
        #: Set once the polling loop has ended.
        self._polled = threading.Event()
        self.reloads = Reloads(loader, apply=self._apply, report=self._reloaded)
        self.store = Store()
        self.state_file_writer = StateFileWriter(
            settings=settings, store=self.store, clock=time, watcher=instruments
        )
        self._polling_pause = Pause()
        aws.long_answers.wait_with(self._polling_pause.wait)
        self.poller = Poller(
            settings=settings,
            connector=aws,
            store=self.store,
            clock=time,
            random=Random(),  # noqa: S311 - jitter, not a secret
            journal=logs.Journal(),
            on_complete=instruments.replicated,
            on_destination=instruments.replicates,
            events=instruments,
            shard=shard,
            memory=self.state_file_writer.memory,
            workers=partial(ThreadPool, pause=self._polling_pause),
            pause=self._polling_pause,
        )
        self._exposition = Exposition(
            instruments=instruments, store=self.store, figures=self.poller, clock=time
        )
        self._reporter = Reporter(store=self.store, clock=time, due=self.poller.due, shard=shard)
        self._reloaded(success=True)

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        asked_at = time.monotonic()
        with self._polling_pause.held():
            return self._exposition.page(
                accept=accept, accept_encoding=accept_encoding, names=names, asked_at=asked_at
            )

    def report(self, filters: Filters, *, limit: int) -> Report:
        return self._reporter.report(filters, limit=limit)

    def healthy(self) -> str | None:
        silence = self.poller.silent_for()
        return f"the polling loop has been silent for {silence:.0f} s" if silence > MAX_SILENCE else None

    def ready(self) -> str | None:
        unheard = self.store.unheard(time.monotonic())
        if not unheard:
            return None
        names = ", ".join(f"{source.registry_id or 'default'}/{source.region}" for source in unheard[:5])
        return f"no answer yet from {names}"

    def config(self) -> str:
        return config.to_yaml(self._settings)

    def reload(self) -> Sequence[str]:
        return self.reloads.wait()

    def quit(self) -> None:
        self._requests.add(Request.STOP)

    def _apply(self, settings: Settings) -> bool:
        if not self.poller.reload(settings):
            return False
        self._settings = settings
        self.state_file_writer.configure(settings)
        return True

    def _reloaded(self, success: bool) -> None:
        self._instruments.reloaded(success=success, at=time.time())

    def render(self) -> None:
        """Keep the page rendered, so that a scrape only sends it. Never returns; for a thread of its own.

        Rendering holds the interpreter, so it takes at most 1 % of one processor.
        """
        pause, wait = threading.Event(), RENDER_INTERVAL
        while not pause.wait(wait):
            began = time.thread_time()
            try:
                self._exposition.refresh()
            except Exception as error:  # noqa: BLE001 - scrapes fail visibly too, and the next time may work
                _log.broken("render_broke", error)
                wait = RENDER_RETRY
            else:
                wait = max(RENDER_INTERVAL, 100 * (time.thread_time() - began))

    def run(self, *, auto_reload_interval: float = 0.0) -> Request:
        """Poll, render and reload until a request to end; that request. 0 means no automatic reload.

        Raises RuntimeError if the system refuses a thread.
        """
        _start_thread("poller", self._poll)
        self.state_file_writer.start()
        _start_thread("render", self.render)
        _start_thread("reload", self.reloads.run)
        if auto_reload_interval:
            wait = threading.Event().wait
            _start_thread("configuration", partial(self.reloads.watch, every=auto_reload_interval, wait=wait))
        while (request := self._requests.next()) is Request.RELOAD:
            self.reloads.request()
        return request

    def _poll(self) -> None:
        try:
            self.poller.run()
        except Exception as error:  # noqa: BLE001 - an exporter without its polling loop must not look alive
            _log.broken("polling_broke", error)
            self._requests.add(Request.ABORT)
        finally:
            self._polled.set()

    def stop(self, server: Server) -> None:
        """Stop polling, writing and answering, within STOP_TIMEOUT."""
        end = time.monotonic() + STOP_TIMEOUT
        self.poller.stop()
        self.state_file_writer.stop()
        server.stop(GRACE)
        self._polled.wait(max(0.0, end - time.monotonic()))
        self.state_file_writer.join(max(0.0, end - time.monotonic()))


def _start_thread(name: str, target: Callable[[], object]) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    flags = parse(argv)
    logs.setup(flags.log_level, flags.log_format, sys.stderr)
    try:
        if flags.command:
            return _COMMANDS[flags.command](flags)
        return _check_file(flags) if flags.config_check else _serve(flags)
    except (UsageError, ConfigError) as error:
        if isinstance(error, ConfigError) and not (flags.config_check or flags.command):
            log_problems(error)
        else:
            write(sys.stderr, f"{redact(str(error))}\n")
        return _failed(flags, error, exit_code=2)
    # RuntimeError: no room for another thread.
    except (OSError, ECRError, ImportError, RuntimeError) as error:
        _log.error("start_failed", error=str(error))
        return _failed(flags, error, exit_code=1)


def _failed(flags: argparse.Namespace, error: Exception, *, exit_code: int) -> int:
    """The exit code, which a command with JSON as its output writes too."""
    if flags.command and flags.output == "json":
        write(sys.stdout, error_as_json(str(error), exit_code=exit_code))
    return exit_code


def _thread_broke(broken: threading.ExceptHookArgs) -> None:
    """Log the exception that ended a thread, on one line."""
    if broken.exc_value is not None:
        _log.broken("thread_broke", broken.exc_value, thread=broken.thread and broken.thread.name)


def _serve(flags: argparse.Namespace) -> int:
    share_one_arena()
    requests = Requests()
    requests.start()
    handle_signals(requests)
    instruments = Instruments(shard=flags.shard)
    logs.setup(flags.log_level, flags.log_format, dropped=instruments.log_dropped)
    threading.excepthook = _thread_broke
    tune_collector(time.monotonic)
    connector = partial(AwsConnector, observe=instruments.aws_request)
    if not flags.demo:
        aws = connector()
        return _run(flags, requests, instruments, aws, _loader(flags, aws))
    # Imported here because moto is an extra, and its import takes half a second.
    from exporter import demo  # noqa: PLC0415

    with demo.start() as world:
        _log.info("demo_started", aws_endpoint_url=world.endpoint_url)
        aws = connector(session=world.session, endpoint_url=world.endpoint_url)
        example = Loader("demo", region=aws.region, text=demo.DEMO_CONFIG, regions=known_regions())
        loader = _loader(flags, aws) if flags.config_file else example
        return _run(flags, requests, instruments, aws, loader)


def _loader(flags: argparse.Namespace, aws: AwsConnector) -> Loader:
    return Loader(flags.config_file or "config.yaml", region=aws.region, regions=known_regions())


def _console() -> Console:
    """The progress of a command. Signals end the process at once."""
    console = Console(
        sys.stderr, live=bool(sys.stderr and sys.stderr.isatty()) and os.environ.get("TERM") != "dumb"
    )
    end_on_signals(console.close)
    return console


def _wait(flags: argparse.Namespace) -> int:
    console = _console()
    aws = AwsConnector()
    image = flags.image
    if image.region and flags.region not in (None, image.region):
        raise UsageError(f"--region {flags.region} is not the Region of the image, {image.region}")
    region = image.region or flags.region or aws.region
    if not region:
        raise UsageError("no Region is given, and none found in AWS_REGION or the AWS profile; use --region")
    for place in (region, *flags.destinations):
        if (name := place.rpartition("/")[2]) not in known_regions():
            console.note(f"{name} is not a Region that botocore knows")
    question = Question(
        image,
        region=region,
        destinations=tuple(flags.destinations),
        role_arn=flags.role_arn,
        timeout=flags.timeout,
        verify=flags.verify,
    )
    result = Wait(
        question,
        connect=partial(aws.ecr, connections=1),
        clock=time.monotonic,
        sleep=threading.Event().wait,
        console=console,
    ).run()
    console.close()
    write(sys.stdout, f"{json.dumps(result.json())}\n" if flags.output == "json" else result.text())
    return result.outcome


def _check(flags: argparse.Namespace) -> int:
    """Check the configuration against AWS."""
    console = _console()
    aws = AwsConnector()
    check = Check(
        _loader(flags, aws).load(),
        connect=partial(aws.ecr, connections=1),
        connect_queue=aws.queue,
        region=aws.region,
        clock=time.time,
        pause=threading.Event().wait,
    )
    began, findings = time.monotonic(), list[Finding]()
    for finding in check.findings():
        findings.append(finding)
        console.draw(f"{finding.subject} {finding.level}", seconds=time.monotonic() - began)
    console.close()
    report = f"{json.dumps(as_json(findings))}\n" if flags.output == "json" else as_text(findings)
    write(sys.stdout, report)
    return int(is_problem(findings))


#: By the name of the command.
_COMMANDS = {"wait": _wait, "check": _check}


def _check_file(flags: argparse.Namespace) -> int:
    """Check the files alone. The AWS settings of this machine do not matter."""
    file = flags.config_file or "config.yaml"
    restore_signals()
    warnings: list[Problem] = []
    settings = config.load(file, regions=known_regions(), warn=warnings.append)
    WebConfig(flags.web_config_file)
    targets, registries = len(settings.targets), len(settings.registries)
    counted = f"{targets} target{'s' * (targets > 1)}, {registries} registr{'ies' if registries > 1 else 'y'}"
    write(sys.stderr, "".join(f"{redact(str(warning))} (warning)\n" for warning in warnings))
    write(sys.stdout, f"{file} is valid: {counted}\n")
    return 0


def _run(
    flags: argparse.Namespace, requests: Requests, instruments: Instruments, aws: AwsConnector, loader: Loader
) -> int:
    settings = loader.load()
    web = WebConfig(flags.web_config_file, on_load=instruments.web_loaded)
    exporter = Exporter(
        settings=settings,
        loader=loader,
        aws=aws,
        instruments=instruments,
        shard=flags.shard,
        requests=requests,
    )
    routes = Routes(
        exporter,
        telemetry_path=flags.telemetry_path,
        lifecycle=flags.lifecycle,
        max_requests=flags.max_requests,
    )
    server = Server(flags.listen or [("", 10042)], routes, web)
    server.start()
    _log.info(
        "listening",
        addresses=",".join(server.addresses),
        version=__version__,
        shard=flags.shard.ordinal,
        total_shards=flags.shard.total,
    )
    request = exporter.run(auto_reload_interval=flags.auto_reload_interval)
    _log.info("stopping")
    exporter.stop(server)
    return EXIT_CODES[request]

"""The front door: building everything, signals, exit codes.

Exit codes: 0 stopped as asked, 1 could not start or broke, 2 bad flags or configuration.
"""

from __future__ import annotations

import argparse
import gc
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from random import Random

from exporter import __version__, logs
from exporter.aws.ecr import AWS
from exporter.aws.errors import ECRError
from exporter.cli import parse
from exporter.config import settings as config
from exporter.config.settings import ConfigError, Problem, Settings
from exporter.gc_tuning import Survivors
from exporter.http.routes import Routes
from exporter.http.server import Limits, Server
from exporter.http.web import Web
from exporter.lifecycle import CODES, Order, Orders, leave_signals, take_signals
from exporter.metrics.exposition import Exposition, Page
from exporter.metrics.self_metrics import Instruments
from exporter.polling.poller import Poller
from exporter.reloads import Reloads
from exporter.replication.state_file import StateFileWriter
from exporter.replication.store import Store
from exporter.replication.targets import Shard

#: Seconds that connections get to finish when the process stops.
GRACE = 2.0
#: Seconds that all of stopping may take.
PATIENCE = 4.0
#: Seconds between two looks whether there is something to render.
SHORTEST_PAUSE = 1.0
#: Seconds after which a loop that does not come round counts as dead.
SILENCE = 60.0
#: Seconds until something that broke is tried again by itself, so that it does not fill the log.
AFTER_A_BUG = 60.0

_log = logs.get("main")


class Loader:
    """Where the configuration comes from, first and at every reload. Any thread; one loads at a time."""

    def __init__(self, file: str, *, aws: AWS, text: str | None = None) -> None:
        self._file = file
        self._aws = aws
        self._text = text
        #: The hash of what was loaded last, good or bad; None if it could not be read.
        self._seen: bytes | None = None

    def changed(self) -> bool:
        """Whether the file is another one than was loaded last. By its contents, so that it does not matter
        how it was replaced: Kubernetes swaps a link two folders up.
        """
        if self._text is not None:
            return False
        try:
            return _hash(config.contents(self._file)) != self._seen
        except ConfigError:
            return self._seen is not None

    def load(self) -> Settings:
        """Read and check it. Raises ConfigError."""
        self._seen = None
        text = config.contents(self._file) if self._text is None else self._text.encode()
        self._seen = _hash(text)
        settings = config.parse(text, file=self._file)
        homeless = [i for i, entry in enumerate(settings.registries) if not entry.region]
        if homeless and not self._aws.region:
            message = "no Region is given, and none found in AWS_REGION or the AWS profile; set one of them"
            raise ConfigError(
                [Problem(self._file, None, f"registries[{i}].region", message) for i in homeless]
            )
        return settings


def _hash(text: bytes) -> bytes:
    return sha256(text).digest()


class Exporter:
    """All parts, put together; it answers for them at the front routes."""

    def __init__(
        self,
        *,
        settings: Settings,
        loader: Loader,
        aws: AWS,
        instruments: Instruments,
        shard: Shard,
        orders: Orders,
    ) -> None:
        self._settings = settings
        self._loader = loader
        self._instruments = instruments
        self._orders = orders
        self.reloads = Reloads(self._reload)
        #: Whether the file is to be loaded again though it did not change: nothing came of the last time.
        self._owed = False
        self.store = Store()
        self.state_file_writer = StateFileWriter(
            settings=settings, store=self.store, clock=time, watcher=instruments
        )
        self.poller = Poller(
            settings=settings,
            connector=aws,
            store=self.store,
            clock=time,
            random=Random(),  # noqa: S311 - jitter, not a secret
            journal=logs.Journal(),
            on_complete=instruments.replicated,
            shard=shard,
            memory=self.state_file_writer.memory,
        )
        self._exposition = Exposition(
            instruments=instruments, store=self.store, figures=self.poller, clock=time
        )
        instruments.reloaded(success=True, at=time.time())

    def page(self, *, accept: str, accept_encoding: str, names: Sequence[str]) -> Page:
        return self._exposition.page(accept=accept, accept_encoding=accept_encoding, names=names)

    def healthy(self) -> str | None:
        silence = self.poller.silent_for()
        return f"the polling loop has been silent for {silence:.0f} s" if silence > SILENCE else None

    def ready(self) -> str | None:
        unheard = self.store.unheard(time.monotonic())
        if not unheard:
            return None
        names = ", ".join(f"{source.registry_id or 'default'}/{source.region}" for source in unheard[:5])
        return f"{len(unheard)} registries did not answer yet: {names}"

    def config(self) -> str:
        return config.to_yaml(self._settings)

    def reload(self) -> Sequence[str]:
        return self.reloads.wait()

    def _reload(self) -> Sequence[str]:
        """In the thread of reloads."""
        try:
            return self._load()
        except Exception as error:  # noqa: BLE001 - the next one may work
            self._owed = True
            self._instruments.reloaded(success=False, at=time.time())
            _log.broken("reload_broke", error)
            return [f"an unexpected {type(error).__name__}; the log has more"]

    def _load(self) -> Sequence[str]:
        self._owed = False
        try:
            settings = self._loader.load()
        except ConfigError as error:
            self._instruments.reloaded(success=False, at=time.time())
            _log_problems(error)
            return [str(problem) for problem in error.problems]
        if not self.poller.reload(settings):
            self._owed = True
            self._instruments.reloaded(success=False, at=time.time())
            message = "the polling loop did not take the configuration in time"
            _log.error("config_not_taken", error=message)
            return [message]
        self._settings = settings
        self.state_file_writer.configure(settings)
        self._instruments.reloaded(success=True, at=time.time())
        _log.info("config_reloaded", targets=len(settings.targets))
        return []

    def render(self) -> None:
        """Keep the page ready, so that a scrape costs what sending it costs. For a thread of its own.

        A hundredth of one processor is the most that it may take, however much changes: while it renders,
        nobody else gets the interpreter.
        """
        pause, wait = threading.Event(), SHORTEST_PAUSE
        while not pause.wait(wait):
            began = time.thread_time()
            try:
                self._exposition.refresh()
            except Exception as error:  # noqa: BLE001 - scrapes say so too, and the next time may go well
                _log.broken("render_broke", error)
                wait = AFTER_A_BUG
            else:
                wait = max(SHORTEST_PAUSE, 100 * (time.thread_time() - began))

    def watch_configuration(self, *, every: float) -> None:
        """Reload whenever the file changed, looking every so many seconds. For a thread of its own."""
        pause, wait = threading.Event(), every
        while not pause.wait(wait):
            wait = self._look(every)

    def _look(self, every: float) -> float:
        """Reload if the file changed, or nothing came of the last time; seconds until the next look."""
        try:
            if not self._owed and not self._loader.changed():
                return every
        except Exception as error:  # noqa: BLE001 - the next look may work
            self._instruments.reloaded(success=False, at=time.time())
            _log.broken("config_look_broke", error)
            self._owed = True
            return max(every, AFTER_A_BUG)
        self.reload()
        return max(every, AFTER_A_BUG) if self._owed else every

    def quit(self) -> None:
        self._orders.give(Order.STOP)


def _log_problems(error: ConfigError) -> None:
    for problem in error.problems:
        _log.error(
            "config_invalid",
            file=problem.file,
            line=problem.line,
            path=problem.path,
            problem=problem.message,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    flags = parse(argv)
    logs.setup(flags.log_level, flags.log_format, sys.stderr)
    try:
        return _check(flags) if flags.config_check else _start(flags)
    except ConfigError as error:
        if flags.config_check:
            sys.stderr.write(f"{error}\n")
        else:
            _log_problems(error)
        return 2
    # RuntimeError: no room for another thread.
    except (OSError, ECRError, ImportError, RuntimeError) as error:
        _log.error("start_failed", error=str(error))
        return 1


def _thread_broke(broken: threading.ExceptHookArgs) -> None:
    """One line for what nobody caught."""
    if broken.exc_value is not None:
        _log.broken("thread_broke", broken.exc_value, thread=broken.thread and broken.thread.name)


def _start(flags: argparse.Namespace) -> int:
    orders = Orders()
    orders.start()
    take_signals(orders)
    instruments = Instruments(shard=flags.shard)
    logs.setup(flags.log_level, flags.log_format, dropped=instruments.log_dropped)
    threading.excepthook = _thread_broke
    gc.callbacks.append(Survivors(time.monotonic))
    if flags.demo:
        return _demo(flags, orders, instruments)
    file = flags.config_file or "config.yaml"
    aws = AWS(observe=instruments.aws_request)
    return _run(flags, orders, instruments, Loader(file, aws=aws), aws)


def _check(flags: argparse.Namespace) -> int:
    """Judge the files as such: what AWS settings there are here has no say in that."""
    file = flags.config_file or "config.yaml"
    leave_signals()
    settings = config.load(file)
    Web(flags.web_config_file)
    targets, registries = len(settings.targets), len(settings.registries)
    counted = f"{targets} target{'s' * (targets > 1)}, {registries} registr{'ies' if registries > 1 else 'y'}"
    sys.stdout.write(f"{file} is valid: {counted}\n")
    return 0


def _demo(flags: argparse.Namespace, orders: Orders, instruments: Instruments) -> int:
    # Imported here because moto is an extra, and takes half a second.
    from exporter import demo  # noqa: PLC0415

    with demo.start() as world:
        _log.info("demo_started", aws_endpoint_url=world.endpoint_url)
        aws = AWS(session=world.session, endpoint_url=world.endpoint_url, observe=instruments.aws_request)
        text = None if flags.config_file else demo.DEMO_CONFIG
        loader = Loader(flags.config_file or "demo", aws=aws, text=text)
        return _run(flags, orders, instruments, loader, aws)


def _run(
    flags: argparse.Namespace,
    orders: Orders,
    instruments: Instruments,
    loader: Loader,
    aws: AWS,
) -> int:
    settings = loader.load()
    web = Web(flags.web_config_file, on_load=instruments.web_loaded)
    exporter = Exporter(
        settings=settings,
        loader=loader,
        aws=aws,
        instruments=instruments,
        shard=flags.shard,
        orders=orders,
    )
    routes = Routes(exporter, telemetry_path=flags.telemetry_path, lifecycle=flags.lifecycle)
    limits = Limits(requests=flags.max_requests)
    server = Server(flags.listen or [":10042"], routes, web, limits=limits)
    server.start()
    _log.info(
        "listening",
        addresses=",".join(server.addresses),
        version=__version__,
        shard=flags.shard.ordinal,
        total_shards=flags.shard.total,
    )
    if flags.auto_reload_interval:
        watch = partial(exporter.watch_configuration, every=flags.auto_reload_interval)
        threading.Thread(target=watch, name="configuration", daemon=True).start()
    return _serve(exporter, server, orders)


def _serve(exporter: Exporter, server: Server, orders: Orders) -> int:
    """Poll and answer until somebody asks to stop."""

    def poll() -> None:
        try:
            exporter.poller.run()
        except Exception as error:  # noqa: BLE001 - a watcher that lost its loop must not look alive
            _log.broken("polling_broke", error)
            orders.give(Order.GIVE_UP)

    loop = threading.Thread(target=poll, name="poller", daemon=True)
    loop.start()
    exporter.state_file_writer.start()
    threading.Thread(target=exporter.render, name="render", daemon=True).start()
    threading.Thread(target=exporter.reloads.run, name="reload", daemon=True).start()
    while (order := orders.take()) is Order.RELOAD:
        exporter.reloads.ask()
    _log.info("stopping")
    end = time.monotonic() + PATIENCE
    exporter.poller.stop()
    exporter.state_file_writer.stop()
    server.stop(GRACE)
    loop.join(max(0.0, end - time.monotonic()))
    exporter.state_file_writer.join(max(0.0, end - time.monotonic()))
    return CODES[order]

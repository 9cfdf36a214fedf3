"""The command line: its flags and commands, and one line for a wrong one."""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

from exporter import __version__, logs
from exporter.commands.console import error_as_json, write
from exporter.commands.image import parse_image
from exporter.config import validators as of
from exporter.replication.targets import Shard

T = TypeVar("T")
#: A path that every HTTP client sends as it is: no query, no escape, no segment that is empty, "." or "..".
TELEMETRY_PATH = r"^(?:/\.?[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+/?$"


class Command(argparse.ArgumentParser):
    """A parser that reports an error on one line, and with `--output json` as an object on stdout too."""

    #: What it parses.
    _arguments: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self._arguments = sys.argv[1:] if args is None else tuple(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        file = re.search(
            r"(?:unrecognized arguments: |COMMAND: invalid choice: ')([^\s'-]\S*\.ya?ml)\b", message
        )
        advice = f"use --config.file {file[1]}" if file else "see --help"
        text = f"{self.prog}: {message}; {advice}"
        if "--output=json" in self._arguments or ("--output", "json") in pairwise(self._arguments):
            write(sys.stdout, error_as_json(text, exit_code=2))
        self.exit(2, f"{text}\n")

    def flag(self, dest: str) -> str:
        """The flag that sets `dest`."""
        return next(action.option_strings[0] for action in self._actions if action.dest == dest)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags. Exits with 2 if they are wrong."""
    parser = Command(
        prog="ecr-replication-exporter",
        description="Prometheus exporter for Amazon ECR image replication. It serves without a command.",
        allow_abbrev=False,
    )
    _add_flags(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_wait(commands)
    _add_check(commands)
    serving = vars(parser.parse_args([]))
    flags = parser.parse_args(argv)
    if flags.command:
        shared = ("command", "config_file") if flags.command == "check" else ("command",)
        for name, value in serving.items():
            if name not in shared and getattr(flags, name) != value:
                parser.error(f"{parser.flag(name)} does not go before {flags.command}")
        return flags
    flags.shard = _shard(parser, flags.ordinal, flags.total_shards)
    return flags


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--config.file",
        dest="config_file",
        metavar="FILE",
        type=_valid(of.File),
        help="the configuration (default: config.yaml)",
    )
    add(
        "--config.auto-reload-interval",
        dest="auto_reload_interval",
        metavar="DURATION",
        type=_valid(of.IntervalOrNever),
        default=0.0,
        help="check for a changed configuration at this interval, and reload it (default: 0, never)",
    )
    add("--config.check", dest="config_check", action="store_true", help="check the configuration and exit")
    add(
        "--web.listen-address",
        dest="listen",
        metavar="ADDRESS",
        type=_address,
        action="append",
        help="where to listen, repeatable; port 0 picks a free one (default: :10042)",
    )
    add(
        "--web.telemetry-path",
        dest="telemetry_path",
        metavar="PATH",
        type=_telemetry_path,
        default="/metrics",
        help="the path of the metrics (default: /metrics)",
    )
    add(
        "--web.config.file",
        dest="web_config_file",
        metavar="FILE",
        type=_valid(of.File),
        help="TLS and passwords",
    )
    add(
        "--web.enable-lifecycle",
        dest="lifecycle",
        action="store_true",
        help="allow POST /-/reload and POST /-/quit",
    )
    add(
        "--web.max-requests",
        dest="max_requests",
        metavar="N",
        type=_valid(of.Count),
        default=40,
        help="answers that are made at once; further requests get 503 (default: 40)",
    )
    add(
        "--log.level",
        dest="log_level",
        choices=logs.LEVELS,
        default="info",
        help="log lines of this level and above (default: info)",
    )
    add(
        "--log.format",
        dest="log_format",
        choices=logs.FORMATS,
        default="logfmt",
        help="how a log line is written (default: logfmt)",
    )
    add(
        "--shard",
        dest="ordinal",
        metavar="N|POD",
        type=_ordinal,
        help="which shard this is, from 0: a number, the name of its StatefulSet pod, or auto",
    )
    add(
        "--total-shards",
        metavar="N",
        type=_valid(of.Count),
        default=1,
        help="split the repositories between this number of exporters (default: 1)",
    )
    add("--demo", action="store_true", help="watch a simulated AWS: no account, no credentials, no network")
    add("--version", action="version", version=f"%(prog)s {__version__}")


def _add_wait(commands: Any) -> None:
    about = "Wait until an image has arrived wherever it is replicated to."
    parser = commands.add_parser(
        "wait",
        help="wait until an image is replicated",
        description=about,
        epilog="Exit codes: 0 replicated, 1 FAILED, refused or not found, 2 wrong arguments, 3 timed out, "
        "4 nothing sends it anywhere; 128 and its number after a signal.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "image",
        metavar="IMAGE",
        type=_advised(parse_image),
        help="repo:tag, repo@sha256:..., or the URI in the registry, whose account and Region count",
    )
    add(
        "--destination",
        dest="destinations",
        metavar="[ACCOUNT/]REGION",
        type=_valid(of.Place),
        action="append",
        default=[],
        help="where it must arrive, repeatable (default: where the rules or ECR say)",
    )
    add(
        "--region",
        type=_valid(of.Region),
        help="the Region of the source (default: that of the URI, else of AWS_REGION or the profile)",
    )
    add(
        "--role-arn",
        metavar="ARN",
        type=_valid(of.RoleArn),
        help="the role to assume",
    )
    add(
        "--timeout",
        metavar="DURATION",
        type=_advised(of.parse_duration),
        default=1800.0,
        help="give up after this time; 0 looks once (default: 30m)",
    )
    verify = parser.add_mutually_exclusive_group()
    verify.add_argument(
        "--verify",
        action="store_true",
        default=None,
        help="look at the destinations too (default: at those in the account of the source or of the role)",
    )
    verify.add_argument(
        "--no-verify", dest="verify", action="store_false", default=None, help="look at no destination"
    )
    _add_output(parser)


def _add_check(commands: Any) -> None:
    parser = commands.add_parser(
        "check",
        help="check the configuration against AWS",
        description="Check the configuration against AWS: credentials, permissions, rules, targets and "
        "destinations. It changes nothing except the receive count of one SQS message in each events queue.",
        epilog="Exit codes: 0 all is well, 1 there are problems, 2 wrong arguments or configuration; 128 and "
        "its number after a signal.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config.file",
        dest="config_file",
        metavar="FILE",
        type=_valid(of.File),
        default=argparse.SUPPRESS,
        help="the configuration (default: config.yaml)",
    )
    _add_output(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", choices=("text", "json"), default="text", help="of the result on stdout (default: text)"
    )


def _telemetry_path(path: str) -> str:
    if not path.startswith("/"):
        raise argparse.ArgumentTypeError(f"{path!r} does not start with /")
    if path in ("/", "/config") or path.startswith(("/-/", "/api/", "/runbooks/")):
        raise argparse.ArgumentTypeError(
            f"{path!r} is taken by another page; "
            "any path will do but /, /config and those under /-/, /api/ and /runbooks/"
        )
    if not re.fullmatch(TELEMETRY_PATH, path):
        raise argparse.ArgumentTypeError(
            f"{path!r} is not a plain path; write letters, digits, and . _ ~ - between single slashes"
        )
    return path


def _shard(parser: argparse.ArgumentParser, ordinal: int | None, total: int) -> Shard:
    if ordinal is None and total > 1:
        parser.error(f"argument --total-shards: --shard is missing: 0 to {total - 1}, or auto")
    ordinal = ordinal or 0
    if ordinal >= total:
        parser.error(f"argument --shard: {ordinal} is not below --total-shards {total}; they count from 0")
    return Shard(ordinal, total)


def _ordinal(text: str) -> int:
    """A StatefulSet's pods are called NAME-ORDINAL, and so are their hosts (Kubernetes documentation)."""
    pod = (os.environ.get("POD_NAME") or socket.gethostname()) if text == "auto" else text
    found = re.fullmatch(r"(?:.+-)?([0-9]{1,9})", pod, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(
            f"{pod!r} is neither a number nor the name of a StatefulSet's pod, which ends in one"
        )
    return int(found[1])


def _address(text: str) -> tuple[str, int]:
    """The host and port of `:PORT`, `host:PORT` or `[::1]:PORT`."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535 or bracketed != (":" in host):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address; write :PORT, host:PORT or [IPv6]:PORT")
    return host.strip("[]"), int(port)


def _advised(read: Callable[[str], T]) -> Callable[[str], T]:
    """A type of arguments. A ValueError of `read` is the advice that the operator gets."""

    def advised(text: str) -> T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return advised


def _valid(kind: Any) -> Callable[[str], Any]:
    """Arguments of a type of the configuration."""
    return _advised(partial(of.checked, kind))

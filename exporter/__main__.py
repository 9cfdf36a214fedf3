"""`python -m exporter`, which is the command `ecr-replication-exporter`.

The imports take about a second. Signals stay blocked during that time: a signal that arrives early would end
the process without its exit code, or be lost where the process is the first of a container.
"""

import signal
import sys


def main() -> int:
    """Run the command and return its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    from exporter import app  # noqa: PLC0415 - signals are blocked first

    return app.main()


if __name__ == "__main__":
    sys.exit(main())

"""`python -m exporter` is the command `ecr-replication-exporter`, and this is where both begin.

To import everything takes a second or so. A signal of that time would end the process, or be lost where it
is the first of a container; held back, it counts once the process can do what it asks for.
"""

import signal
import sys


def main() -> int:
    """Run the command; the exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    from exporter import app  # noqa: PLC0415 - see above

    return app.main()


if __name__ == "__main__":
    sys.exit(main())

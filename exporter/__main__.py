"""`python -m exporter` is the command `ecr-replication-exporter`."""

import sys

from exporter.main import main

if __name__ == "__main__":
    sys.exit(main())

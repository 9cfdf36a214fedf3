"""Prometheus exporter for Amazon ECR image replication.

cli          flags
app          composition root: builds every part, starts and stops it, owns the exit codes
lifecycle    signals, reloads of the configuration, the shutdown watchdog
logs         one event a line; repeated failures are folded
redaction    masks secrets in what is logged
memory       short pauses of the garbage collector, and freed memory that goes back
config/      what the operator writes: settings, or every problem with its place
aws/         the client for ECR; with demo/ the only package that imports boto3
replication/ what is true: the facts and the store
polling/     when to ask AWS, and what an answer changes
metrics/     the catalogue of metrics, and its text form
http/        which request gets which answer, and the server
demo/        a make-believe AWS for --demo and the tests

Facts flow from aws through polling into replication.store. metrics and http read them there.
The table [tool.importlinter] in pyproject.toml holds which package may import which.
"""

__version__ = "0.1.0"

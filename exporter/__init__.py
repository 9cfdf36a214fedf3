"""Prometheus exporter for Amazon ECR image replication.

cli          flags
app          composition root: builds every part, starts and stops it, owns the exit codes
lifecycle    signals, reloads of the configuration, the shutdown watchdog
logs         one event a line; repeated failures are folded
redaction    masks secrets in what is logged
gc_tuning    fewer objects for the garbage collector to look at
config/      what the operator writes: settings, or every problem with its place
aws/         the client for ECR; with demo/ the only package that imports boto3
replication/ what is true (no threads but the state file's, no AWS)
  model          the nouns
  targets        targets and a listing: which images to watch
  status         an answer of ECR: the state of an image, and why
  target_health  facts: success and reasons of each target
  facts, store   what is known now, and the lock that guards it
  state_file     what survives a restart
polling/     when to ask AWS, and what an answer changes
  poller, workers              the loop thread, and the threads that make calls
  registry, rules, repository  one source registry, its rules, one repository
  listing, statuses            which images there are, and the status of each
  access                       entries that are one registry, and with which of them to ask
  calls, failures              calls under way; failures, outages and throttling
  pacing                       what is due and allowed, out of queue, rate_limit and backoff
metrics/     the catalogue of metrics, and its text form
http/        which request gets which answer, and the server
demo/        a make-believe AWS for --demo and the tests

Facts flow from aws through polling into replication.store. metrics and http read them there.
The table [tool.importlinter] in pyproject.toml holds which package may import which.
"""

__version__ = "0.1.0"

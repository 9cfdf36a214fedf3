"""Prometheus exporter for Amazon ECR image replication. Reading order:

model      the nouns: sources, destinations, images, what ECR reported; imports nothing of ours
log        one event a line, and repeated failures folded into few
config     the operator's YAML -> frozen settings, or every problem with its place
ecr        the gate: the only room that knows boto3 (demo.py plays the AWS behind it)
targets    what to watch: settings + a listing -> images and names (pure)
schedule   when: due work, budget, back-off (pure, the clock is an argument)
state      the ledger: the last facts per image, repository and registry
poller     the engine: take what is due, ask the gate, write the ledger, book again
metrics    the catalogue: every name, type, help, label; ledger -> exposition
server     the front desk: /metrics, health, reload, pages; web its TLS and passwords
main       builds everything, owns signals and exit codes
"""

__version__ = "0.1.0"

"""Prometheus exporter for Amazon ECR image replication. Reading order:

model       the nouns: sources, destinations, images, what ECR reported; imports nothing of ours
log         one event a line, and repeated failures folded into few
letter      YAML as nodes that know their lines; words, what each text may be
config      the operator's letter -> frozen settings, or every problem with its place
schema      the same shape as JSON Schema, for editors and the Helm chart
errors      what AWS raises -> the few kinds that callers branch on
answers     what AWS answered -> the nouns, or an error instead of a guess (pure)
deadline    an end to answers that never end
ecr         the client: the only room that knows boto3 (demo plays the AWS behind it)
targets     what to watch: settings + a listing -> images and names (pure)
budget      how fast: a token bucket whose rate learns what AWS allows (pure)
schedule    when, and what first: due work, intervals, back-off (pure)
state       the store: the last facts per image, repository and registry
statefile   what is settled, on disk, for the next start
agenda      what is booked, under way and in trouble in one registry
repository  what each answer means for a repository, and what to ask next
watch       the same for a registry: identity, rules, repositories
poller      threads: one loop that decides, workers that ask
metrics     the catalogue: every name, type, help, label, and how facts become samples
process     what the process uses, read without making a scrape wait
instruments the exporter's own counters, which prometheus_client keeps
exposition  the catalogue as text, rendered when facts change and kept until they do
routes        the answer to each request; head reads them, server carries them, web secures them
flags       the command line
orders      signals and other requests to reload or to end, and an end that comes in any case
reloads     one at a time, however many ask
garbage     collected without holding everybody up
main        builds everything, owns exit codes; __main__ holds signals back until it can
"""

__version__ = "0.1.0"

#!/bin/sh
# Does promtext-cli keep the other samples of a textfile when it sets one?
# The text format gives labels no order (Exposition formats, Line format): {queue="a",region="b"} and {region="b",queue="a"}
# are one series. Shell scripts that append lines to a textfile of node_exporter write the labels in the order that they like.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install promtext-cli==0.2.0 prometheus_client==0.26.0
echo "promtext-cli 0.2.0, prometheus_client 0.26.0"
cat > "$folder/queues.prom" <<'PAGE'
# HELP queue_messages Messages that wait
# TYPE queue_messages gauge
queue_messages{queue="events",region="us-east-1"} 3
queue_messages{region="eu-west-1",queue="letters"} 40
PAGE
"$folder/venv/bin/promtext" "$folder/queues.prom" queue_messages 4 --label queue=events --label region=us-east-1
cat "$folder/queues.prom"
grep -q '^queue_messages{queue="events",region="us-east-1"} 4.0$' "$folder/queues.prom"
grep -q '^queue_messages{queue="eu-west-1",region="letters"} 40.0$' "$folder/queues.prom"

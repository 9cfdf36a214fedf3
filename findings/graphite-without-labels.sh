#!/bin/sh
# Can Graphite read what promethiite sends to it for a page of Prometheus?
# A sample need not have labels (Exposition formats, Line format). promethiite joins name and labels with a dot, also where
# no label follows. Carbon stores "ecr.up_replicas." in a file without a name, which graphite-web does not find.
set -eu
folder=$(mktemp -d)
pids=
trap 'kill $pids 2> /dev/null || true; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
GRAPHITE_NO_PREFIX=True "$folder/venv/bin/pip" --disable-pip-version-check -q install promethiite==0.2.0 \
  graphyte==1.7.1 carbon==1.1.10 whisper==1.1.10 graphite-web==1.1.10 Twisted==26.10.0 setuptools==65.5.0
echo "promethiite 0.2.0, carbon 1.1.10, graphite-web 1.1.10"
mkdir -p "$folder/conf" "$folder/storage/log/webapp"
set -- $(python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in held))')
cat > "$folder/conf/carbon.conf" <<CONFIG
[cache]
LINE_RECEIVER_INTERFACE = 127.0.0.1
LINE_RECEIVER_PORT = $1
PICKLE_RECEIVER_PORT = 0
CACHE_QUERY_INTERFACE = 127.0.0.1
CACHE_QUERY_PORT = $2
CONFIG
printf '[all]\npattern = .*\nretentions = 1s:1h\n' > "$folder/conf/storage-schemas.conf"
export GRAPHITE_ROOT="$folder" GRAPHITE_CONF_DIR="$folder/conf" GRAPHITE_STORAGE_DIR="$folder/storage"
"$folder/venv/bin/python" "$folder/venv/bin/carbon-cache.py" --nodaemon --config "$folder/conf/carbon.conf" start > "$folder/log" 2>&1 &
pids=$!
printf 'up_replicas 5\nimages{state="failed"} 7\n' > "$folder/page"
for _ in $(seq 30); do
  sleep 1
  "$folder/venv/bin/promethiite" -p ecr -s 127.0.0.1 -o "$1" -f "$folder/page" 2> /dev/null || continue
  test "$(find "$folder/storage/whisper" -name '*.wsp' 2> /dev/null | wc -l)" -lt 2 || break
done
(cd "$folder/storage/whisper" && echo "carbon stores:" && find . -name '*.wsp')
DJANGO_SETTINGS_MODULE=graphite.settings "$folder/venv/bin/python" -W ignore - "$folder/storage/whisper" 2> /dev/null <<'PYTHON'
import sys
import django
django.setup()
from graphite.finders.standard import StandardFinder
from graphite.finders.utils import FindQuery

def found(pattern):
    nodes = StandardFinder([sys.argv[1]]).find_nodes(FindQuery(pattern, None, None))
    return [node.path for node in nodes if node.is_leaf]

seen = {pattern: found(pattern) for pattern in ("ecr.images.state.failed", "ecr.up_replicas", "ecr.up_replicas.*", "ecr.**")}
for pattern, paths in seen.items():
    print("graphite-web finds for", pattern, paths)
raise SystemExit(list(seen.values()) != [["ecr.images.state.failed"], [], [], ["ecr.images.state.failed"]])
PYTHON

#!/bin/sh
# Does collectd keep the series of a Prometheus page apart that collectd-prometheus reads for it?
# Series of Prometheus differ by their labels (Data model). A value in collectd has its identity from host, plugin, type and
# their instances only (Plain text protocol, Identifiers). The plugin writes the labels to the value's meta data.
set -eu
folder=$(mktemp -d)
pids=
trap 'kill $pids 2> /dev/null || true; wait; rm -rf "$folder"' EXIT
(cd "$folder" && apt-get -qq -o APT::Sandbox::User=root download collectd-core=5.12.0-14 && dpkg -x collectd-core_*.deb collectd) ||
  { echo "This needs the package lists of Debian 12 (apt-get update)."; exit 1; }
ldd "$folder/collectd/usr/lib/collectd/python.so" | grep -q "libpython3.11.so.1.0 => /" ||
  { echo "This needs Debian's package libpython3.11."; exit 1; }
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install collectd-prometheus==0.2.0 prometheus-client==0.7.1 requests==2.32.5
echo "collectd 5.12.0, collectd-prometheus 0.2.0"
mkdir "$folder/web"
cat > "$folder/web/metrics" <<'PAGE'
# TYPE queue_messages gauge
queue_messages{queue="events"} 3
queue_messages{queue="letters"} 40
queue_messages{queue="retries"} 500
PAGE
port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
(cd "$folder/web" && exec python3 -m http.server --bind 127.0.0.1 "$port" > /dev/null 2>&1) &
pids=$!
cat > "$folder/collectd.conf" <<CONFIG
BaseDir "$folder"
PluginDir "$folder/collectd/usr/lib/collectd"
TypesDB "$folder/collectd/usr/share/collectd/types.db"
Hostname "example"
LoadPlugin csv
<Plugin csv>
  DataDir "$folder/csv"
</Plugin>
LoadPlugin python
<Plugin python>
  ModulePath "$folder/venv/lib/python3.11/site-packages"
  Import "collectd_prometheus"
  <Module "collectd_prometheus">
    Interval 1
    <Process>
      Process "app"
      Port "$port"
    </Process>
  </Module>
</Plugin>
CONFIG
"$folder/collectd/usr/sbin/collectd" -f -C "$folder/collectd.conf" > /dev/null 2>&1 &
pids="$pids $!"
for _ in $(seq 20); do
  sleep 1
  test "$(cat "$folder"/csv/*/*/* 2> /dev/null | wc -l)" -lt 12 || break
done
files=$(cd "$folder/csv" && find . -type f | sed "s/-20[0-9-]*$//" | sort -u)
values=$(tail -q -n +2 "$folder"/csv/*/*/* | cut -d, -f2 | sort -n | uniq | xargs)
echo "3 series are stored as: $files"
echo "the values in it: $values"
test "$(echo "$files" | wc -l)" -eq 1
test "$(echo "$values" | wc -w)" -gt 1

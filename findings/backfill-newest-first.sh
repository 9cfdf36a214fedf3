#!/bin/sh
# How many samples of a history that is written newest first does promtool put into a block, and does it say so?
set -eu
promtool --version 2>&1 | grep -q "version 2.42.0+ds " ||
  { echo "This needs promtool of Debian's package prometheus 2.42.0+ds-5+deb12u1."; exit 1; }
echo "promtool 2.42.0+ds"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# OpenMetrics wants the times of a series to increase. A parser may refuse the second file.
for order in oldest newest; do
  {
    echo "# TYPE images gauge"
    for minute in $(if test "$order" = oldest; then seq 0 9; else seq 9 -1 0; fi); do
      echo "images $minute $((1700000000 + minute * 60))"
    done
    echo "# EOF"
  } > "$folder/$order.om"
  code=0
  promtool tsdb create-blocks-from openmetrics "$folder/$order.om" "$folder/$order" > "$folder/out" 2> "$folder/err" || code=$?
  samples=$(awk 'NR == 2 { print $5 }' "$folder/out")
  echo "$order first: 10 samples in, $samples in the block, exit $code, on standard error: $(wc -c < "$folder/err") bytes"
  eval "$order=\$samples/\$code/\$(wc -c < \"\$folder/err\")"
done
test "$oldest $newest" = "10/0/0 1/0/0"

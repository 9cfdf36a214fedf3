#!/bin/sh
# Which images of a repository of ECR does ecr-scan-reporter scan again?
# Those that are older than the period of --duration-override, a number of months, weeks or days. It judges all images by the
# push time of the first one in ECR's list, and of a number with two digits it reads nothing, which makes the period 0.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install ecr-scan-reporter==0.4.8 compose-x-common==1.5.0 boto3==1.44.8
echo "ecr-scan-reporter 0.4.8"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import datetime
from ecr_scan_reporter import images_scanner

NOW = images_scanner.NOW

def due(*ages):
    """The ages in days of the images that are due, in the order in which ECR lists them."""
    pushed = [datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=age) for age in ages]
    images = [{"imageDigest": str(age), "imagePushedAt": time} for age, time in zip(ages, pushed)]
    return [int(image["imageDigest"]) for image in images_scanner.define_images_to_scan(images, "7d")]

orders = {ages: due(*ages) for ages in ((1, 20, 30), (20, 1, 30))}
for ages, found in orders.items():
    print(f"images of {ages} days, due after 7d: {found}")
periods = {period: (NOW - images_scanner.get_duration(period)).days for period in ("7d", "2w", "14d", "30d")}
print("periods in days:", periods)
raise SystemExit(
    orders != {(1, 20, 30): [], (20, 1, 30): [20, 1, 30]} or periods != {"7d": 7, "2w": 14, "14d": 0, "30d": 0}
)
PYTHON

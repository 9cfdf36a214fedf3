#!/bin/sh
# When does a schedule of EventBridge with L in the field day-of-week run, according to aws-croniter?
# EventBridge User Guide, Cron expressions reference: L in the field day-of-week is the last day of the week; the days are
# SUN to SAT, so that it is SAT.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install aws-croniter==2.1.1
echo "aws-croniter 2.1.1"
"$folder/venv/bin/python" - <<'PYTHON'
from datetime import datetime, timezone
from aws_croniter import AwsCroniter

YEAR = datetime(2026, 1, 1, tzinfo=timezone.utc), datetime(2026, 12, 31, 23, 59, tzinfo=timezone.utc)
seen = {}
for day in ("SAT", "7L", "L"):
    cron = AwsCroniter(f"0 10 ? * {day} *")
    seen[day] = len(cron.get_all_schedule_bw_dates(*YEAR)), cron.get_next(YEAR[0])
    print(f"cron(0 10 ? * {day} *): {seen[day][0]} runs in 2026, the next one {[str(time) for time in seen[day][1]]}")
first, last = (datetime(2026, 1, day, 10, tzinfo=timezone.utc) for day in (3, 31))
raise SystemExit(seen != {"SAT": (52, [first]), "7L": (12, [last]), "L": (0, [None])})
PYTHON

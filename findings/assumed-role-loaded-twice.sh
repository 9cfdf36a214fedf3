#!/bin/sh
# Can a program ask botocore's credential resolver twice for a profile that assumes a role with another profile?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install botocore==1.44.5
cat > "$folder/config" <<'CONFIG'
[profile standby]
role_arn = arn:aws:iam::111122223333:role/reader
source_profile = base
[profile base]
aws_access_key_id = AKIDEXAMPLE
aws_secret_access_key = example
CONFIG
env AWS_CONFIG_FILE="$folder/config" AWS_SHARED_CREDENTIALS_FILE="$folder/none" AWS_PROFILE=standby \
  "$folder/venv/bin/python" - <<'PYTHON'
from botocore.exceptions import InfiniteLoopConfigError
from botocore.session import Session

# Loading makes no call: the credentials of a role are fetched when they are first used.
resolver = Session().get_component("credential_provider")
seen = []
for _ in range(2):
    try:
        seen.append(type(resolver.load_credentials()).__name__)
    except InfiniteLoopConfigError as error:
        seen.append(f"InfiniteLoopConfigError: {error}")
for found in seen:
    print(found)
raise SystemExit(not (seen[0] == "DeferredRefreshableCredentials" and seen[1].startswith("InfiniteLoopConfigError")))
PYTHON

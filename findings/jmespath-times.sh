#!/bin/sh
# Which images does a JMESPath filter on a time select in the pages of boto3, and which in the JSON of the AWS CLI?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install boto3==1.44.8 jmespath==1.1.0
"$folder/venv/bin/python" - <<'PYTHON'
import datetime
import boto3, jmespath
from botocore.stub import Stubber

IMAGES = [{"imageTags": [f"v{year}"], "imagePushedAt": datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc)} for year in (2024, 2026)]
# The AWS CLI prints times as text, and its documentation compares them like this.
TEXT = {"imageDetails": [{**image, "imagePushedAt": image["imagePushedAt"].isoformat()} for image in IMAGES]}
QUERIES = {
    "newer": "imageDetails[?imagePushedAt > '2025-01-01'].imageTags[]",
    "not newer": "imageDetails[?imagePushedAt <= '2025-01-01'].imageTags[]",
    "not (newer)": "imageDetails[?!(imagePushedAt > '2025-01-01')].imageTags[]",
}

def pages(query):
    ecr = boto3.client("ecr", region_name="us-east-1", aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="example")
    with Stubber(ecr) as stub:
        stub.add_response("describe_images", {"imageDetails": IMAGES})
        return list(ecr.get_paginator("describe_images").paginate(repositoryName="team/app").search(query))

print("boto3 1.44.8, jmespath 1.1.0")
seen = {name: (jmespath.search(query, TEXT), pages(query)) for name, query in QUERIES.items()}
for name, (text, boto) in seen.items():
    print(f"{name:12} in the JSON {text}, by paginator.search {boto}")
raise SystemExit(
    seen != {"newer": (["v2026"], []), "not newer": (["v2024"], []), "not (newer)": (["v2024"], ["v2024", "v2026"])}
)
PYTHON

#!/bin/sh
# Does aws-prometheus-exporter count all images of a repository of ECR?
# Its configuration names a method of boto3, whose pages it reads up to the last one. It looks for the field NextToken. ECR's is
# nextToken (ECR API reference, DescribeImages), so that the first page, of 100 images, is all that it counts.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install aws-prometheus-exporter==0.2.0 boto3==1.44.8 \
  prometheus_client==0.26.0 pyyaml==6.0.3
echo "aws-prometheus-exporter 0.2.0, boto3 1.44.8"
"$folder/venv/bin/python" - <<'PYTHON'
import http.server, json, threading
import boto3
from aws_prometheus_exporter import AwsMetric, AwsMetricsCollector

IMAGES = [{"imageDigest": f"sha256:{number:064}"} for number in range(250)]

class Registry(http.server.BaseHTTPRequestHandler):
    """ECR on loopback, which answers in pages of 100."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        start = int(request.get("nextToken", 0))
        answer = {"imageDetails": IMAGES[start:start + 100]}
        if start + 100 < len(IMAGES):
            answer["nextToken"] = str(start + 100)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

class Session(boto3.Session):
    def client(self, service):
        return super().client(service, endpoint_url=f"http://127.0.0.1:{server.server_port}")

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
threading.Thread(target=server.serve_forever, daemon=True).start()
session = Session("AKIDEXAMPLE", "example", region_name="us-east-1")
arguments = {"repositoryName": "team/app"}
search = "imageDetails[].{digest: imageDigest, value: `1`}"
seen = {}
for method, use_paginator in (("describe_images", True), ("describe_images", False)):
    metric = AwsMetric("ecr_image", "Images", "ecr", method, arguments, use_paginator, ["digest"], search)
    collector = AwsMetricsCollector([metric], session)
    collector.update()
    seen[use_paginator] = sum(len(family.samples) for family in collector.collect())
    print("as a", "paginator" if use_paginator else "method", seen[use_paginator], "of", len(IMAGES), "images")
raise SystemExit(seen != {True: 250, False: 100})
PYTHON

#!/bin/sh
# Does python-hcl2 return the text of an indented heredoc, as Terraform does, so that a policy in it can be read as JSON?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install python-hcl2==8.1.4
cat > "$folder/main.tf" <<'TERRAFORM'
plain = <<POLICY
{"Effect": "Allow", "Action": "ecr:DescribeImages"}
POLICY
indented = <<-POLICY
    {"Effect": "Allow", "Action": "ecr:DescribeImages"}
    POLICY
TERRAFORM
"$folder/venv/bin/python" - "$folder/main.tf" <<'PYTHON'
import json, sys
import hcl2

# The two options ask for values instead of source text. Both forms of a heredoc mean the same text (HCL, "Template Expressions").
options = hcl2.SerializationOptions(strip_string_quotes=True, preserve_heredocs=False)
with open(sys.argv[1]) as file:
    found = hcl2.load(file, serialization_options=options)
readable = {}
for name in ("plain", "indented"):
    try:
        readable[name] = bool(json.loads(found[name]))
    except json.JSONDecodeError:
        readable[name] = False
    print(f"python-hcl2 8.1.4, {name}: {found[name]} - JSON: {readable[name]}")
raise SystemExit(readable != {"plain": True, "indented": False} or '\\"Effect\\"' not in found["indented"])
PYTHON

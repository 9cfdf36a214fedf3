#!/bin/sh
# Does import-linter see a forbidden import once the folder between both packages becomes a package with __init__.py?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install import-linter==2.17
mkdir -p "$folder/app/aws" "$folder/app/metrics" "$folder/app/shared"
touch "$folder/app/__init__.py" "$folder/app/aws/__init__.py" "$folder/app/metrics/__init__.py"
echo "from app.shared import clients" > "$folder/app/metrics/page.py"
echo "import app.aws" > "$folder/app/shared/clients.py"
cat > "$folder/.importlinter" <<'CONFIG'
[importlinter]
root_package = app

[importlinter:contract:aws]
name = metrics may not reach aws
type = forbidden
source_modules = app.metrics
forbidden_modules = app.aws
CONFIG
cd "$folder"
lint() {
  "$folder/venv/bin/lint-imports" "$@" > out || true
  echo "$(grep Analyzed out) $(grep -o 'KEPT$\|BROKEN$' out)"
}
echo "import-linter 2.17"
"$folder/venv/bin/python" -c 'import sys, app.metrics.page; print("importing app.metrics.page imports app.aws:", "app.aws" in sys.modules)'
# Python imports a folder without __init__.py too, but import-linter does not look into it.
without=$(lint)
touch app/shared/__init__.py
# What app.metrics.page imports is kept by that file's time, though it depends on which packages there are.
cached=$(lint)
fresh=$(lint --no-cache)
printf 'without __init__.py: %s\nwith it: %s\nwith it and --no-cache: %s\n' "$without" "$cached" "$fresh"
case "$without/$cached/$fresh" in *KEPT/*KEPT/*BROKEN) ;; *) exit 1 ;; esac

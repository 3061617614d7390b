#!/usr/bin/env bash
# `installed.sh PYTHON WHEEL`: installs a wheel of this project, with the locked packages, into an empty environment outside of
# the tree, and uses it there: nothing of the checkout may be needed, and nothing of it may be found.
set -euo pipefail
python=$(realpath --no-symlinks "$1") wheel=$(realpath "$2") lock=$(realpath "$(dirname "$0")/../.lock/runtime.txt")
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
unset PYTHONPATH PYTHONDONTWRITEBYTECODE
fail() { echo "$*" >&2; exit 1; }

cd "$work"
"$python" -m venv --without-pip venv
pip=("$python" -m pip --python venv/bin/python --quiet --disable-pip-version-check)
"${pip[@]}" install --no-compile --require-hashes --requirement "$lock"
"${pip[@]}" install --no-compile --no-index --no-deps "$wheel"
"${pip[@]}" check # the lock has all that the wheel says it needs

PATH=$work/venv/bin:$PATH
version=$(basename "$wheel" | cut -d- -f2)
[ "$(sidecar --version)" = "sidecar, version $version" ] || fail "sidecar --version: $(sidecar --version), not $version"
[ "$(certs --version)" = "certs, version $version" ] || fail "certs --version: $(certs --version), not $version"
for package in sidecar certs; do
  place=$(python -c "import $package; print($package.__path__[0])")
  [[ $place == "$work"/venv/* ]] || fail "$package was imported from $place"
  [ -f "$place/py.typed" ] || fail "the wheel has no $package/py.typed"
done
[ ! -e "$(dirname "$place")/tests" ] || fail "the wheel has tests in it"

python - <<'EOF' # the dashboard's page is in the wheel, and served as it is
from importlib.resources import files
from sidecar.dashboard.server import FILES
for name, _ in FILES.values():
    assert (files("sidecar.dashboard") / "page" / name).read_bytes(), name
EOF
if sidecar dashboard . >said 2>&1; then fail "sidecar dashboard needs no package"; fi
grep -q 'mtls-sidecar\[dashboard\]' said || fail "sidecar dashboard: $(cat said)"

sidecar schema mesh | python -c 'import json, sys; assert json.load(sys.stdin)["title"] == "mesh.yaml"'
certs init ca --trust-domain shop.internal >said
certs issue ca web --out web >>said
cat >mesh.yaml <<'EOF'
trust_domain: shop.internal
services: {web: {}, cache: {ports: {redis: 6379}}}
policy: [{from: web, to: "cache:redis"}]
EOF
cat >web.yaml <<'EOF'
service: web
mesh: mesh.yaml
identity: {files: {certificate: web/certificate.pem, key: web/key.pem, bundle: web/bundle.pem}}
outbound: [{to: "cache:redis", listen: "127.0.0.1:26379", peers: ["127.0.0.1:16379"]}]
EOF
sidecar check mesh.yaml web.yaml >>said
sed -i 's/from: web/from: wbe/' mesh.yaml
if sidecar check mesh.yaml >said 2>&1; then fail "sidecar check accepted an unknown service"; fi
grep -q "did you mean 'web'" said || fail "sidecar check: $(cat said)"
echo "$(basename "$wheel") works in an empty environment"

#!/usr/bin/env bash
# Makes, from Debian's packages and Python's, the images that `make e2e` needs where none can be pulled. What is there stays.
# Prints the variables that name them, for the Compose files. PYTHON is the interpreter whose pip fetches wheels.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-../../.venv/bin/python}
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
lock=../../.lock/runtime.txt
# What the demo's shop and the checkout's own image need besides.
more=("psycopg[binary]>=3.2,<4" "setuptools>=77" wheel pip)
word=$(cat images.sh images/*/* "$lock" <(echo "$suite" "${more[@]}") | sha256sum | cut -c1-12)
prefix=sidecar-e2e
have() { docker image inspect "$1" >/dev/null 2>&1; }

if ! have "$prefix/base:$word"; then
  work=$(mktemp -d) && trap 'rm -rf --one-file-system "$work"' EXIT
  # From where this machine's own packages come; and so of the same Python as its own package.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" 'Component: main' | head -n 1)
  mmdebstrap --quiet --variant=apt --include=python3,python3-venv,ca-certificates \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$work/base.tar" "$mirror" 2>"$work/log" & system=$!
  apt-cache show python3 >/dev/null 2>&1 || apt-get update -qq
  version=$(apt-cache show --no-all-versions python3 | sed -n 's/^Version: \(3\.[0-9]*\).*/\1/p')
  platforms=(); for minor in $(seq 36 -1 17); do platforms+=(--platform "manylinux_2_${minor}_$(uname -m)"); done
  platforms+=(--platform "manylinux2014_$(uname -m)")
  for what in "--require-hashes --requirement $lock" "${more[@]}"; do
    # shellcheck disable=SC2086  # two words
    "$python" -m pip download --quiet --disable-pip-version-check --only-binary=:all: --python-version "$version" \
      "${platforms[@]}" --dest "$work/more/wheels" $what
  done
  mkdir "$work/more/etc" && printf '[global]\nfind-links = /wheels\nno-index = true\n' >"$work/more/etc/pip.conf"
  wait "$system" || { cat "$work/log" >&2; exit 1; }
  tar --append --file "$work/base.tar" --owner 0 --group 0 --directory "$work/more" wheels etc/pip.conf
  docker import - "$prefix/base:$word" <"$work/base.tar" >/dev/null
fi
making=()
for name in postgres redis; do
  have "$prefix/$name:$word" && continue
  DOCKER_BUILDKIT=0 docker build --quiet --build-arg "BASE=$prefix/base:$word" --tag "$prefix/$name:$word" "images/$name" >&2 &
  making+=($!)
done
for each in "${making[@]}"; do wait "$each"; done
echo "MESH_BASE=$prefix/base:$word"
echo "PYTHON_IMAGE=$prefix/base:$word"
echo "POSTGRES_IMAGE=$prefix/postgres:$word"
echo "REDIS_IMAGE=$prefix/redis:$word"

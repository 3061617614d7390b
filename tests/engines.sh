#!/usr/bin/env bash
# `engines.sh`: `make e2e` on an engine newer than this machine's own: Docker 26, from a root of Debian trixie. As root, on Debian. It
# runs in a network of its own, beside whatever runs here, and all that it starts ends with it. There no name server outside answers,
# as on a laptop without a network. What a run needs is made in .engines/ once, and stays there until `make clean`.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD root=$PWD/.engines/trixie images=$PWD/.engines/images

make_images() { # by this machine's own engine, as they need the network
  tests/e2e/engine.sh run bash -euc '
    for name in MESH_BASE PYTHON_IMAGE POSTGRES_IMAGE REDIS_IMAGE; do echo "$name=${!name}"; done >"$1.new"
    cmp -s "$1.new" "$1" || docker save --output "$1.tar" $(cut -d= -f2 "$1.new" | sort -u)
    mv "$1.new" "$1"' bash "$images"
}

make_root() {
  [ ! -e "$root.made" ] || return 0
  rm -rf --one-file-system "$root"
  # From where this machine's own packages come.
  local mirror; mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | head -n 1)
  mmdebstrap --quiet --variant=minbase --include=docker.io,iptables,mount,procps,ca-certificates trixie "$root" "$mirror"
  touch "$root.made"
}

# Runs a command in the root, with the checkout and the tests' files where they are outside. By pivot_root(2): within a chroot, what
# `docker exec` starts would find itself in the machine's own root.
within='
  root=$1 here=$2; shift 2
  mount --bind "$root" "$root"
  mount -t proc proc "$root/proc"
  for part in /sys /dev /tmp; do mount --rbind $part "$root$part"; done
  mount -t tmpfs tmpfs "$root/run"
  mkdir -p "$root$here"
  mount --bind "$here" "$root$here"
  cd "$root"
  pivot_root . mnt
  umount --lazy /mnt
  exec "$@"'

if [ "${1:-}" != --alone ]; then
  mkdir -p .engines
  make_images
  make_root
  exec unshare --net "$0" --alone
fi
ip link set lo up
run=$(mktemp -d) && trap 'kill -KILL $(jobs -p) 2>/dev/null; wait || :; rm -rf --one-file-system "$run"' EXIT
export DOCKER_HOST=unix://$run/socket
unshare --mount --pid --fork --kill-child sh -euc "$within" sh "$root" "$here" \
  dockerd --data-root "$here/.engines/docker" --exec-root /run/engine --pidfile /run/pid --host "$DOCKER_HOST" >"$run/log" 2>&1 </dev/null &
for _ in $(seq 100); do docker info >/dev/null 2>&1 && break; sleep 0.3; done
docker version --format 'Docker {{.Server.Version}}' || { tail -n 20 "$run/log" >&2; exit 1; }
set -a && . "$images" && set +a
docker image inspect "$MESH_BASE" "$POSTGRES_IMAGE" "$REDIS_IMAGE" >/dev/null 2>&1 || docker load --quiet --input "$images.tar"
make --no-print-directory e2e

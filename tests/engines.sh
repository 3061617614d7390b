#!/usr/bin/env bash
# `engines.sh ENGINE…`: `make e2e` on engines that are newer than this machine's own, from a root of Debian trixie: `docker` is its
# Docker 26; `podman` its podman 5.4, by the socket that Docker's programs speak to. As root, on Debian. Each runs in a network of
# its own, beside whatever runs here, and all that it starts ends with it. What a run needs is made in .engines/ once, and stays
# there until `make clean`.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD root=$PWD/.engines/trixie images=$PWD/.engines/images
packages=docker.io,podman,netavark,aardvark-dns,nftables,iptables,iproute2,procps,util-linux,ca-certificates

make_root() {
  [ ! -e "$root.made" ] || return 0
  rm -rf --one-file-system "$root"
  # From where this machine's own packages come.
  local mirror files processes
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | head -n 1)
  mmdebstrap --quiet --variant=minbase --include="$packages" trixie "$root" "$mirror"
  files=$(ulimit -Hn) processes=$(ulimit -Hu) # podman's own limits may be more than this machine lets root set
  printf '[containers]\ndefault_ulimits = ["nofile=%s:%s", "nproc=%s:%s"]\n' \
    "$files" "$files" "${processes/unlimited/-1}" "${processes/unlimited/-1}" >"$root/etc/containers/containers.conf"
  touch "$root.made"
}

make_images() { # by this machine's own engine, as they need the network
  tests/e2e/engine.sh run bash -euc '
    names=(MESH_BASE PYTHON_IMAGE POSTGRES_IMAGE REDIS_IMAGE)
    for name in "${names[@]}"; do echo "$name=${!name}"; done | sort -u >"$1.new"
    cmp -s "$1.new" "$1" || docker save --output "$1.tar" $(cut -d= -f2 "$1.new" | sort -u)
    mv "$1.new" "$1"' bash "$images"
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

# Nobody but a timer of systemd asks podman for the health of containers, and here is none. crun knows no mixture of both kinds
# of cgroups.
podman='
  umount /sys/fs/cgroup/unified 2>/dev/null || :
  while sleep 1; do
    for one in $(podman ps --quiet); do flock --nonblock "/run/$one" podman healthcheck run "$one" >/dev/null 2>&1 & done
  done &
  exec podman system service --time=0 "$1"'

serve() { # COMMAND…: an engine, which answers when this returns
  unshare --mount --pid --fork --kill-child sh -euc "$within" sh "$root" "$here" "$@" >"$run/log" 2>&1 </dev/null &
  for _ in $(seq 100); do docker info >/dev/null 2>&1 && return; sleep 0.3; done
  tail -n 20 "$run/log" >&2; echo "engines.sh: the engine did not start" >&2; exit 1
}

if [ "${1:-}" = --alone ]; then # in a network of its own, which ends with it
  ip link set lo up
  run=$(mktemp -d) && trap 'kill -KILL $(jobs -p) 2>/dev/null; wait || :; rm -rf --one-file-system "$run"' EXIT
  export DOCKER_HOST=unix://$run/socket
  case $2 in
    docker) serve dockerd --data-root "$here/.engines/docker" --exec-root /run/engine --pidfile /run/pid --host "$DOCKER_HOST" ;;
    podman) serve sh -uc "$podman" sh "$DOCKER_HOST" ;;
  esac
  echo "engines.sh: $2 $(docker version --format '{{.Server.Version}}')"
  set -a && . "$images" && set +a
  docker image inspect "$MESH_BASE" "$POSTGRES_IMAGE" "$REDIS_IMAGE" >/dev/null 2>&1 || docker load --quiet --input "$images.tar"
  make --no-print-directory e2e
else
  [ $# -gt 0 ] && [ -z "$(printf '%s\n' "$@" | grep -vx 'docker\|podman')" ] || { echo "usage: engines.sh docker | podman …" >&2; exit 2; }
  mkdir -p .engines
  make_images
  make_root
  failed=0
  for engine in "$@"; do unshare --net "$0" --alone "$engine" || failed=1; done # the next one is tried all the same
  exit $failed
fi

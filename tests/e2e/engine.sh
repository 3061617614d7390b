#!/usr/bin/env bash
# `engine.sh run COMMAND…`: with a Docker engine: installs one (as root, on Debian) and starts it where none answers, and stops it
# afterwards if it was started here. `engine.sh start`: starts it again, for the test of that.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${E2E_ENGINE_DIRECTORY:-/run/sidecar-e2e}

start() { # everything of it that is not Docker's usual place is in $work
  mkdir -p "$work"
  dockerd --pidfile "$work/pid" >>"$work/log" 2>&1 </dev/null &
  for _ in $(seq 100); do docker info >/dev/null 2>&1 && return; sleep 0.3; done
  tail -n 20 "$work/log" >&2
  echo "the Docker engine did not start" >&2
  exit 1
}

stop() { # and waits for it: whoever comes next may start another
  local pid; pid=$(cat "$work/pid" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.2; done
}

needed() { # the packages whose programs are missing
  command -v docker >/dev/null && command -v dockerd >/dev/null || echo docker.io
  command -v mmdebstrap >/dev/null || echo mmdebstrap
}

case ${1:-} in
  start) start ;;
  run)
    shift
    if ! docker info >/dev/null 2>&1 || ! command -v mmdebstrap >/dev/null; then
      packages=$(needed)
      # shellcheck disable=SC2086  # a list
      [ -z "$packages" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages iptables; } >&2
      if ! docker info >/dev/null 2>&1; then
        start
        export E2E_ENGINE_PIDFILE=$work/pid E2E_ENGINE_START=$here/engine.sh
        trap stop EXIT
      fi
    fi
    # Variables that are set already name images of the user's choice: then none is made.
    if [ -z "${MESH_BASE:-}" ]; then
      names=$("$here/images.sh")
      set -a; eval "$names"; set +a
    fi
    "$@"
    ;;
  *) echo "usage: engine.sh run COMMAND… | start" >&2; exit 2 ;;
esac

#!/usr/bin/env bash
# `engine.sh run COMMAND…`: with a Docker engine: installs one (as root, on Debian) and starts it where none answers; the last
# run that uses it stops it, if one of them started it. `engine.sh restart`: for the test of that; 3 if another run uses it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${E2E_ENGINE_DIRECTORY:-/run/sidecar-e2e}

start() { # everything of it that is not Docker's usual place is in $work
  dockerd --pidfile "$work/pid" >>"$work/log" 2>&1 </dev/null 8>&- 9>&- &
  for _ in $(seq 100); do docker info >/dev/null 2>&1 && return; sleep 0.3; done
  tail -n 20 "$work/log" >&2
  echo "the Docker engine did not start" >&2
  exit 1
}

stop() { # only what was started here, and waits for it: whoever comes next may start another
  local pid; pid=$(cat "$work/pid" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.2; done
}

# Starts and stops are one at a time, and each run holds a lock on a file of its own, which ends with it however it ends.
take_turn() { mkdir -p "$work/users"; exec 8>"$work/turn"; flock 8; }
use() { export E2E_ENGINE_USER=$work/users/$$; exec 9>"$E2E_ENGINE_USER"; flock 9; }
used_by_others() {
  local file
  for file in "$work"/users/*; do
    [ "$file" != "$E2E_ENGINE_USER" ] && [ -e "$file" ] || continue
    flock --nonblock "$file" true || return 0
    rm -f "$file"
  done
  return 1
}
leave() { take_turn; rm -f "$E2E_ENGINE_USER"; used_by_others || stop; }

needed() { # the packages whose programs are missing
  command -v docker >/dev/null && command -v dockerd >/dev/null || echo docker.io
  command -v mmdebstrap >/dev/null || echo mmdebstrap
}

case ${1:-} in
  restart)
    take_turn
    ! used_by_others || exit 3
    stop
    start
    ;;
  run)
    shift
    take_turn
    use
    trap leave EXIT
    if ! docker info >/dev/null 2>&1 || ! command -v mmdebstrap >/dev/null; then
      packages=$(needed)
      # shellcheck disable=SC2086  # a list
      [ -z "$packages" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages iptables; } >&2
      docker info >/dev/null 2>&1 || start
    fi
    if [ -e "$work/pid" ]; then export E2E_ENGINE_RESTART=$here/engine.sh; fi
    # Variables that are set already name images of the user's choice: then none is made.
    if [ -z "${MESH_BASE:-}" ]; then
      names=$("$here/images.sh" 8>&- 9>&-)
      set -a; eval "$names"; set +a
    fi
    flock --unlock 8
    "$@" 8>&- 9>&-
    ;;
  *) echo "usage: engine.sh run COMMAND… | restart" >&2; exit 2 ;;
esac

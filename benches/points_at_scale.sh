#!/usr/bin/env bash
# Does the number of points, the size of a disk or the number of layers show when a point is opened
# and read? Makes one store with 10,000 points on a sparse disk of 1 TiB, one with 2 points on 1 GiB,
# one with 32 layers and one with a single layer, and measures them in the same run.
#
# usage: benches/points_at_scale.sh [POINTS]
set -euo pipefail
cd "$(dirname "$0")/.."

points=${1:-10000}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --quiet -p leeward-replica --example points_at_scale
result=benches/results/points_at_scale-$(date -u +%Y%m%dT%H%M%SZ).json
target/debug/examples/points_at_scale "$work" "$points" | jq . | tee "$result"
jq -e '.openRatio <= 1.3 and .coldRatio <= 1.3 and .many.coldMs < 30 and .layersRatio <= 1.5' "$result" >/dev/null || {
    echo "a bar is missed: opening at most 1.3, in a running process and from nothing, 32 layers at most 1.5" >&2
    exit 1
}

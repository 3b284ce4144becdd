#!/usr/bin/env bash
# Measures whether a failover takes longer when the disk is larger: accepted to the guest kernel's
# first line, with a data disk of 64 MiB and with a sparse one of 64 GiB, in the same run.
# Prints the ratio of the medians; exit 1 when it is above the bar. Needs what ./demo needs.
#
# usage: failover_scale.sh [ROUNDS]   (default 3; small and large take turns)
set -euo pipefail
cd "$(dirname "$0")/.."
ROUNDS=${1:-3}
BAR=1.2
PROGRAM=${LEEWARD_DEMO:-target/debug/leeward-demo}
[[ $ROUNDS =~ ^[1-9][0-9]*$ ]] || { echo "usage: failover_scale.sh [ROUNDS]" >&2; exit 2; }
if [ ! -x "$PROGRAM" ]; then
  echo "failover_scale.sh: $PROGRAM is not built; run ./demo once" >&2
  exit 2
fi

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
command -v jq > /dev/null || { echo "failover_scale.sh: not installed: jq" >&2; exit 2; }
for ((round = 1; round <= ROUNDS; round++)); do
  for size in 64M 64G; do
    report=$WORK/$size-$round.json
    if ! "$PROGRAM" --outward-only --data-size "$size" --report "$report" > "$WORK/log" 2>&1; then
      echo "failover_scale.sh: the demo failed with a data disk of $size:" >&2
      tail -n 40 "$WORK/log" >&2
      exit 1
    fi
    echo "round $round, $size: $(jq .failover_accepted_to_kernel_seconds "$report") s"
  done
done

mkdir -p benches/results
STAMP=$(date -u +%Y%m%dT%H%M%SZ)
RESULT=benches/results/failover_scale-$STAMP.json
take() {
  jq -s "[.[].$2]" "$WORK/$1"-*.json
}
jq -n --argjson bar "$BAR" --arg at "$STAMP" --arg cores "$(nproc)" \
  --arg accelerator "$(jq -r .accelerator "$WORK/64M-1.json")" \
  --argjson small "$(take 64M failover_accepted_to_kernel_seconds)" \
  --argjson large "$(take 64G failover_accepted_to_kernel_seconds)" \
  --argjson small_qemu "$(take 64M failover_accepted_to_qemu_running_seconds)" \
  --argjson large_qemu "$(take 64G failover_accepted_to_qemu_running_seconds)" '
  def median: sort | .[(length / 2 | floor)];
  {
    measured_at: $at, cores: ($cores | tonumber), accelerator: $accelerator, bar: $bar,
    accepted_to_kernel_seconds: {"64M": $small, "64G": $large},
    accepted_to_qemu_running_seconds: {"64M": $small_qemu, "64G": $large_qemu},
    ratio: (($large | median) / ($small | median)),
  } | .ok = (.ratio <= .bar)' > "$RESULT"
cat "$RESULT"
jq -e .ok "$RESULT" > /dev/null

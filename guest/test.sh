#!/bin/bash
# Proves the guest on emulation alone: build, boot by kernel, pictures, the port, kill -9, judgement
# without a boot, boot from the disk, power button. Prints what each cost. Leaves nothing behind
# unless --keep DIR names a folder for it. Every wait is for a condition, with a deadline.
set -euo pipefail

DEADLINE_S=90
SOURCE=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
KEEP=
[ "${1:-}" != --keep ] || KEEP=${2:?--keep needs a folder}
WORK=$(mktemp -d)
QEMU=
finish() {
  local code=$?
  [ -z "$QEMU" ] || kill -KILL "$QEMU" 2>/dev/null || true
  if [ -n "$KEEP" ]; then mkdir -p "$KEEP" && cp --sparse=always -r "$WORK/." "$KEEP"; fi
  rm -rf "$WORK"
  [ $code -eq 0 ] && echo "guest: all good" || echo "guest: FAILED ($code)"
}
trap finish EXIT

fail() {
  echo "guest: $1" >&2
  [ ! -e "$WORK/serial" ] || tail -n 20 "$WORK/serial" >&2
  exit 1
}
now_ms() { date +%s%3N; }
cpu_seconds() {
  local fields
  read -r -a fields < <(sed 's/.*) //' "/proc/$QEMU/stat")
  awk -v t=$((fields[11] + fields[12])) -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.2f", t / hz }'
}
alive() { [ -e "/proc/$QEMU/stat" ] && [ "$(sed 's/.*) //' "/proc/$QEMU/stat" | cut -c1)" != Z ]; }

# Waits until the serial line holds $1.
wait_serial() {
  local end=$(($(date +%s) + DEADLINE_S))
  until grep -aq "$1" "$WORK/serial" 2>/dev/null; do
    alive || fail "QEMU ended before '$1'"
    [ "$(date +%s)" -lt $end ] || fail "no '$1' on the serial line in $DEADLINE_S s"
    sleep 0.05
  done
}

# Starts QEMU with the two disks; $@ adds to the line. QMP and the port are pairs of FIFOs, which
# a shell can speak to without any other tool.
start() {
  local pipe
  for pipe in qmp port; do
    rm -f "$WORK/$pipe.in" "$WORK/$pipe.out"
    mkfifo "$WORK/$pipe.in" "$WORK/$pipe.out"
  done
  rm -f "$WORK/serial"
  STARTED=$(now_ms)
  qemu-system-x86_64 -accel tcg -M q35 -m 192 -display none -device VGA -no-reboot \
    -chardev file,id=serial,path="$WORK/serial" -serial chardev:serial \
    -chardev pipe,id=qmp,path="$WORK/qmp" -mon chardev=qmp,mode=control \
    -drive file="$WORK/out/boot.raw",format=raw,if=none,id=boot,discard=unmap \
    -drive file="$WORK/out/data.raw",format=raw,if=none,id=data,discard=unmap \
    -device virtio-blk-pci,drive=boot,bootindex=1 -device virtio-blk-pci,drive=data \
    -device virtio-serial-pci -chardev pipe,id=port,path="$WORK/port" \
    -device virtserialport,chardev=port,name=leeward.workload \
    -netdev user,id=net,restrict=on -device virtio-net-pci,netdev=net "$@" &
  QEMU=$!
  exec {QMP_IN}> "$WORK/qmp.in" {QMP_OUT}< "$WORK/qmp.out"
  exec {PORT_IN}<> "$WORK/port.in" {PORT_OUT}<> "$WORK/port.out"
  local greeting
  read -r -t "$DEADLINE_S" -u "$QMP_OUT" greeting || fail "no greeting on QMP"
  qmp '{"execute":"qmp_capabilities"}'
}
stop_talking() { exec {QMP_IN}>&- {QMP_OUT}<&- {PORT_IN}>&- {PORT_OUT}<&-; }

# Sends one QMP command and waits for its answer; events in between are passed over.
qmp() {
  echo "$1" >&"$QMP_IN"
  local line
  while read -r -t "$DEADLINE_S" -u "$QMP_OUT" line; do
    case $line in
      '{"return"'*) return ;;
      '{"error"'*) fail "QMP refused $1: $line" ;;
    esac
  done
  fail "no answer on QMP to $1"
}
port() {
  echo "$1" >&"$PORT_IN"
  read -r -t "$DEADLINE_S" -u "$PORT_OUT" ANSWER || fail "no answer on the port to '$1'"
}
number() { sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p" <<< "$2"; }
picture() {
  qmp "{\"execute\":\"screendump\",\"arguments\":{\"filename\":\"$1\",\"format\":\"png\"}}"
}

first_boot() {
  start -kernel "$WORK/out/vmlinuz" -initrd "$WORK/out/initrd" -append "$(cat "$WORK/out/cmdline")"
  wait_serial 'Linux version'
  echo "  first kernel words after $(($(now_ms) - STARTED)) ms wall, $(cpu_seconds) s CPU"
  wait_serial LEDGER-FIRST
  echo "  first record after $(($(now_ms) - STARTED)) ms wall, $(cpu_seconds) s CPU"
  grep -aq 'LEDGER {"ok":true' "$WORK/serial" || fail "the first boot found fault with new disks"
  wait_serial 'LEDGER-NET eth0'

  # Two points fifty records apart must not look the same.
  port 'state id=1'
  local seq
  seq=$(number seq_b "$ANSWER")
  picture "$WORK/first.png"
  wait_record $((seq + 50))
  picture "$WORK/second.png"
  [ -s "$WORK/first.png" ] || fail "no picture"
  ! cmp -s "$WORK/first.png" "$WORK/second.png" || fail "two points, one picture"

  # A paused ledger stands still, a resumed one goes on.
  port 'pause'
  port 'delay=1000 reset state'   # after this answer, no step is under way any more but one
  port 'state'
  seq=$(number seq_b "$ANSWER")
  port 'state'
  [ "$(number seq_b "$ANSWER")" -le $((seq + 1)) ] || fail "records while paused"
  port 'resume'
  wait_record $((seq + 50))
  echo "  port: ${ANSWER%%,\"boot\"*}}"
  LAST_SEEN=$(number seq_b "$ANSWER")

  local begun cpu
  begun=$(now_ms) cpu=$(cpu_seconds)
  wait_record $((LAST_SEEN + 300))
  awk -v n=$(($(number seq_b "$ANSWER") - LAST_SEEN)) -v ms=$(($(now_ms) - begun)) \
    -v c="$(cpu_seconds)" -v b="$cpu" \
    'BEGIN { printf "  %.0f records/s, %.0f %% of a core\n", n / ms * 1000, (c - b) / ms * 1e5 }'
  LAST_SEEN=$(number seq_b "$ANSWER")
  kill -KILL "$QEMU"
  wait "$QEMU" 2>/dev/null || true
  QEMU=
  stop_talking
}
wait_record() {
  local end=$(($(date +%s) + DEADLINE_S))
  until port state && [ "$(number seq_b "$ANSWER")" -ge "$1" ]; do
    [ "$(date +%s)" -lt $end ] || fail "record $1 not reached in $DEADLINE_S s"
    sleep 0.05
  done
}

judge() {
  local before after
  before=$(cat "$WORK/out/boot.raw" "$WORK/out/data.raw" | cksum)
  VERDICT=$("$SOURCE/verify-image.sh" "$WORK/out/boot.raw" "$WORK/out/data.raw" \
    --ledger "$WORK/out/ledger") || fail "the copy is not one moment: $VERDICT"
  after=$(cat "$WORK/out/boot.raw" "$WORK/out/data.raw" | cksum)
  [ "$before" = "$after" ] || fail "the judge changed what it judged"
  [ "$(number last_b "$VERDICT")" -ge "$LAST_SEEN" ] || fail "an acknowledged record is gone"
  echo "  $VERDICT"
}

# The judge must also say no: an older data disk beside a newer boot disk.
refuse_two_moments() {
  local code=0
  "$SOURCE/verify-image.sh" "$WORK/out/boot.raw" "$WORK/older-data.raw" \
    --ledger "$WORK/out/ledger" > "$WORK/refusal" || code=$?
  [ $code -eq 1 ] || fail "disks of two moments were not refused (exit $code)"
  grep -q '"ok":false' "$WORK/refusal" || fail "exit code and verdict disagree"
}

disk_boot() {
  start
  wait_serial 'Linux version'
  echo "  first kernel words after $(($(now_ms) - STARTED)) ms wall, $(cpu_seconds) s CPU"
  wait_serial LEDGER-FIRST
  echo "  first record after $(($(now_ms) - STARTED)) ms wall, $(cpu_seconds) s CPU"
  grep -a 'LEDGER {' "$WORK/serial" | grep -q '"ok":true' || fail "the disks did not pass at boot"
  [ "$(number seq "$(grep -a LEDGER-FIRST "$WORK/serial")")" -gt "$LAST_SEEN" ] ||
    fail "the ledger did not go on where it was"
  picture "$WORK/third.png"
  wait_serial 'LEDGER-NET eth0'   # printed after the power button is listened to
  qmp '{"execute":"system_powerdown"}'
  local end=$(($(date +%s) + DEADLINE_S))
  while alive; do
    [ "$(date +%s)" -lt $end ] || fail "still on $DEADLINE_S s after the power button"
    sleep 0.05
  done
  wait "$QEMU" || fail "QEMU ended with an error"
  QEMU=
  stop_talking
  grep -aq LEDGER-OFF "$WORK/serial" || fail "off, but not by the power button"
}

echo "tests of the ledger"
rustc --edition 2024 -O --test -o "$WORK/ledger-tests" "$SOURCE/ledger/ledger.rs"
"$WORK/ledger-tests" --quiet
echo "build"
BEGUN=$(now_ms)
"$SOURCE/build.sh" "$WORK/out" > "$WORK/build.log"
echo "  $(($(now_ms) - BEGUN)) ms"
cp --sparse=always "$WORK/out/data.raw" "$WORK/older-data.raw"
echo "boot by -kernel, then kill -9"
first_boot
echo "judged without a boot"
judge
[[ $VERDICT == *'"needs_recovery_data":true'* ]] || fail "kill -9 left a clean file system?"
refuse_two_moments
echo "boot from the disk, then power button"
disk_boot
judge
[[ $VERDICT == *'_boot":false,"needs_recovery_data":false'* ]] || fail "the end was not clean"

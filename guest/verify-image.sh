#!/bin/bash
# Judges copies of the guest's two disks without booting them, without root, on copies of its own.
# Prints one line of JSON; exit 0 only when both file systems and the ledger are right.
# It is no proof that the machine boots.
set -euo pipefail

usage() {
  echo "usage: verify-image.sh BOOT DATA [--ledger BIN]   (raw, or qcow2 named *.qcow2)" >&2
  exit 2
}
DISKS=() LEDGER=
while [ $# -gt 0 ]; do
  case $1 in
    --ledger) LEDGER=${2:-}; shift 2 || usage ;;
    -*) usage ;;
    *) DISKS+=("$1"); shift ;;
  esac
done
[ ${#DISKS[@]} -eq 2 ] || usage
PATH=$PATH:/usr/sbin:/sbin
SOURCE=$(cd "$(dirname "$0")" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

if [ -z "$LEDGER" ]; then
  rustc --edition 2024 -O --out-dir "$WORK" "$SOURCE/ledger/ledger.rs"
  LEDGER=$WORK/ledger
fi

for tool in e2fsck debugfs dumpe2fs; do
  command -v $tool >/dev/null || { echo "verify-image.sh: not installed: e2fsprogs" >&2; exit 2; }
done
if [[ "${DISKS[*]}" == *.qcow2* ]] && ! command -v qemu-img >/dev/null; then
  echo "verify-image.sh: not installed: qemu-utils" >&2
  exit 2
fi

# Only the name tells the format: a guest can write a qcow2 header into its raw disk.
take() {
  case $1 in
    *.qcow2) qemu-img convert -f qcow2 -O raw "$1" "$2" ;;
    *) cp --sparse=auto --reflink=auto "$1" "$2" && chmod u+w "$2" ;;
  esac
}

# What e2fsck says after a crash of a sound file system. The kernel keeps the totals of the super
# block up to date only at unmount, so that they are wrong is no damage; any other line is.
HARMLESS='^$|^e2fsck [0-9]|: recovering journal$|^Pass [1-5]: |FILE SYSTEM WAS MODIFIED'
HARMLESS+='|^Free (blocks|inodes) count wrong \([0-9]+, counted=[0-9]+\)\.$|^Fix\? yes$'
HARMLESS+='|^Setting free (blocks|inodes) count to|^Clearing orphaned inode|: [0-9]+/[0-9]+ files '

# Replays the journal and checks. Sets REPLAY to whether there was a journal to replay, FSCK to
# the exit code, and FILE_SYSTEMS_OK to false on damage, which is told on standard error.
judge_file_system() {
  REPLAY=false FSCK=0
  if dumpe2fs -h "$1" 2>/dev/null | grep -q needs_recovery; then REPLAY=true; fi
  e2fsck -f -y -E no_optimize_extents "$1" > "$WORK/fsck.log" 2>&1 || FSCK=$?
  if [ "$FSCK" -gt 1 ] || grep -Evq "$HARMLESS" "$WORK/fsck.log"; then
    FILE_SYSTEMS_OK=false
    sed 's/^/e2fsck: /' "$WORK/fsck.log" >&2
  fi
}

extract() { debugfs -R "dump $2 $3" "$1" > /dev/null 2>&1; }

take "${DISKS[0]}" "$WORK/boot.raw"
take "${DISKS[1]}" "$WORK/data.raw"
# The one partition starts at 1 MiB.
dd if="$WORK/boot.raw" of="$WORK/root.raw" bs=1M skip=1 conv=sparse status=none
FILE_SYSTEMS_OK=true
judge_file_system "$WORK/root.raw"; REPLAY_BOOT=$REPLAY FSCK_BOOT=$FSCK
judge_file_system "$WORK/data.raw"; REPLAY_DATA=$REPLAY FSCK_DATA=$FSCK
extract "$WORK/root.raw" /var/lib/leeward/log-a "$WORK/log-a"
extract "$WORK/data.raw" /log-b "$WORK/log-b"
extract "$WORK/data.raw" /table "$WORK/table"

LINE=$("$LEDGER" verify "$WORK/log-a" "$WORK/log-b" "$WORK/table") && OK=true || OK=false
[ $FILE_SYSTEMS_OK = true ] || OK=false
REST=${LINE#LEDGER \{*,}
[ "$REST" != "$LINE" ] || {
  echo '{"ok":false,"error":"the ledger gave no verdict"}'
  exit 1
}
printf '{"ok":%s,"file_systems_ok":%s,"needs_recovery_boot":%s,"needs_recovery_data":%s,' \
  "$OK" "$FILE_SYSTEMS_OK" "$REPLAY_BOOT" "$REPLAY_DATA"
printf '"fsck_boot":%d,"fsck_data":%d,%s\n' "$FSCK_BOOT" "$FSCK_DATA" "$REST"
[ "$OK" = true ]

#!/bin/bash
# Builds a small Linux machine with two disks and a ledger, from Debian packages.
# Needs no root, no loop device, no network. It is not a distribution: nobody logs in.
# The outputs are raw; convert them with qemu-img where qcow2 is wanted.
set -euo pipefail

usage() {
  echo "usage: build.sh OUTDIR [--data-size SIZE]   (SIZE as 64M or 64G, default 64M)" >&2
  exit 2
}
OUTDIR= DATA_SIZE=64M
while [ $# -gt 0 ]; do
  case $1 in
    --data-size) DATA_SIZE=${2:-}; shift 2 || usage ;;
    -*) usage ;;
    *) [ -z "$OUTDIR" ] || usage; OUTDIR=$1; shift ;;
  esac
done
[ -n "$OUTDIR" ] && [[ $DATA_SIZE =~ ^[0-9]+[MGT]$ ]] || usage

SOURCE=$(cd "$(dirname "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
GRUB=/usr/lib/grub/i386-pc
BOOT_MIB=64        # 31 MiB in use; the rest is room for log A, which is a ring of 4 MiB
JOURNAL_MIB=4      # the least that mke2fs takes for 4 KiB blocks
SOURCE_DATE_EPOCH=1700000000   # no clock gets into the initrd: same sources, same bytes

# What is missing, by package name, all at once.
missing=()
need() { [ -e "$1" ] || missing+=("$2"); }
need_tool() { command -v "$1" >/dev/null || missing+=("$2"); }
KERNEL=$(find /boot -maxdepth 1 -name 'vmlinuz-*-cloud-amd64' 2>/dev/null | sort -V | tail -n 1)
VERSION=${KERNEL#/boot/vmlinuz-}
need "${KERNEL:-/nonexistent}" linux-image-cloud-amd64
need "$GRUB/boot.img" grub-pc-bin
need_tool busybox busybox-static
need_tool grub-mkimage grub-common
need_tool mke2fs e2fsprogs
need_tool sfdisk fdisk
need_tool cpio cpio
need_tool modprobe kmod
need_tool rustc "rustc (from rustup, or the Debian package)"
if [ ${#missing[@]} -gt 0 ]; then
  printf 'build.sh: not installed: %s\n' "${missing[@]}" >&2
  exit 1
fi

mkdir -p "$OUTDIR"
OUTDIR=$(cd "$OUTDIR" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
ROOT=$WORK/root INITRD=$WORK/initrd

# First kernel words early (earlyprintk) at level 6 ("Linux version" is a notice); messages on the
# serial line and on the screen. The rest saves time under emulation or avoids a wait.
CMDLINE="earlyprintk=ttyS0,115200 console=tty0 console=ttyS0,115200 loglevel=6 panic=1"
CMDLINE+=" root=LABEL=leeward-root rw mitigations=off no_timer_check tsc=reliable"
CMDLINE+=" random.trust_cpu=on cryptomgr.notests rcupdate.rcu_expedited=1"

# Copies modules and what they need into folder $1, named in loading order. The order comes from
# modprobe because it is not the same in every kernel build.
copy_modules() {
  local folder=$1 number=10 module file
  shift
  mkdir -p "$folder"
  for module in "$@"; do
    modprobe -S "$VERSION" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
  done | awk '!seen[$0]++' | while read -r file; do
    case $file in
      *.xz) xz -dc "$file" > "$folder/$number-$(basename "$file" .xz)" ;;
      *.zst) zstd -qdc "$file" > "$folder/$number-$(basename "$file" .zst)" ;;
      *) cp "$file" "$folder/$number-$(basename "$file")" ;;
    esac
    number=$((number + 1))
  done
}

build_ledger() {
  rustc --edition 2024 -O -C target-feature=+crt-static -C strip=symbols -C panic=abort \
    --out-dir "$1" "$SOURCE/ledger/ledger.rs"
}

# The small first root: finds the real one on whatever bus it is, and goes there.
build_initrd() {
  mkdir -p "$INITRD"/{bin,dev,proc,sys,root}
  cp "$(command -v busybox)" "$INITRD/bin/busybox"
  copy_modules "$INITRD/first" virtio_pci virtio_blk
  # Other buses, as far as this kernel has them: a replica may be started on another platform.
  local module others=()
  for module in sd_mod virtio_scsi ata_piix ahci nvme; do
    ! modprobe -S "$VERSION" --show-depends "$module" >/dev/null 2>&1 || others+=("$module")
  done
  copy_modules "$INITRD/second" "${others[@]}"
  cp "$SOURCE/files/init-first" "$INITRD/init"
  chmod 755 "$INITRD/init"
  find "$INITRD" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  (cd "$INITRD" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet) |
    gzip -n -9 > "$OUTDIR/initrd"
}

build_root() {
  mkdir -p "$ROOT"/{bin,sbin,dev,proc,sys,run,tmp,data,boot,etc/acpi/PWRF,var/lib/leeward}
  build_ledger "$ROOT/sbin"
  cp "$(command -v busybox)" "$ROOT/bin/busybox"
  local name
  for name in sh mount umount ip udhcpc cat sleep poweroff acpid insmod grep sync killall ls \
    hostname ping dmesg ps; do
    ln -s busybox "$ROOT/bin/$name"
  done
  copy_modules "$ROOT/lib/leeward/modules" virtio_pci virtio_console virtio_net button evdev
  cp "$SOURCE/files/init" "$ROOT/sbin/init"
  cp "$SOURCE/files/power-button" "$ROOT/etc/acpi/PWRF/00000080"
  cp "$SOURCE/files/dhcp" "$ROOT/etc/dhcp"
  chmod 755 "$ROOT/sbin/init" "$ROOT/etc/acpi/PWRF/00000080" "$ROOT/etc/dhcp"
  echo 'root:x:0:0::/:/bin/sh' > "$ROOT/etc/passwd"
  cp "$KERNEL" "$ROOT/boot/vmlinuz"
  cp "$OUTDIR/initrd" "$ROOT/boot/initrd"
  find "$ROOT" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

# mke2fs with fixed ids (inode generations stay random); journal and barriers stay the default.
make_ext4() {
  local label=$1 id=$2
  shift 2
  E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH mke2fs -q -F -t ext4 -b 4096 -J size=$JOURNAL_MIB \
    -L "$label" -U "$id" "$@"
}

# Master boot record, GRUB core in the gap after it, one partition from 1 MiB on.
build_boot_disk() {
  local disk=$WORK/boot.raw
  cat > "$WORK/grub.cfg" <<END
search.fs_label leeward-root root
linux /boot/vmlinuz $CMDLINE
initrd /boot/initrd
boot
END
  grub-mkimage -O i386-pc -p /boot/grub -c "$WORK/grub.cfg" -o "$WORK/core.img" \
    biosdisk part_msdos ext2 search_label linux
  truncate -s ${BOOT_MIB}M "$disk"
  printf 'label-id: 0x1ee3a4d1\n2048,,L,*\n' | sfdisk -q "$disk"
  make_ext4 leeward-root 1ee3a4d0-0000-4000-8000-000000000001 -d "$ROOT" \
    -E offset=1048576,root_owner=0:0,hash_seed=1ee3a4d0-0000-4000-8000-00000000000a \
    "$disk" $((BOOT_MIB - 1))M
  dd if="$GRUB/boot.img" of="$disk" bs=440 count=1 conv=notrunc status=none
  dd if="$WORK/core.img" of="$disk" bs=512 seek=1 conv=notrunc status=none
  cp --sparse=always "$disk" "$OUTDIR/boot.raw"
}

# Few inodes: a large disk then stays small on the host and quick to check.
build_data_disk() {
  rm -f "$OUTDIR/data.raw"
  truncate -s "$DATA_SIZE" "$OUTDIR/data.raw"
  make_ext4 leeward-data 1ee3a4d0-0000-4000-8000-000000000002 -N 4096 \
    -E hash_seed=1ee3a4d0-0000-4000-8000-00000000000b "$OUTDIR/data.raw"
}

build_initrd
build_root
build_boot_disk
build_data_disk
cp "$KERNEL" "$OUTDIR/vmlinuz"
echo "$CMDLINE" > "$OUTDIR/cmdline"
cp "$ROOT/sbin/ledger" "$OUTDIR/ledger"
ls -lhs "$OUTDIR"

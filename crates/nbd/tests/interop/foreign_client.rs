//! Our server with clients of others: qemu-img, qemu-io, nbdinfo, nbdcopy.

use std::sync::Arc;

use leeward_nbd::memory::MemoryExport;
use leeward_nbd::server::BlockSizes;

use crate::world::{Scratch, have, run, run_ok, sparse_content};

const SIZE: usize = 5 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_img_compares_and_converts_our_export() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let content = sparse_content(SIZE);
    let _server = scratch.serve(Arc::new(MemoryExport::read_only(&content)));
    let (raw, qcow2) = (scratch.path("raw"), scratch.path("qcow2"));
    let (raw, qcow2) = (raw.to_str().unwrap(), qcow2.to_str().unwrap());
    let uri = scratch.uri();

    run_ok("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, raw]).await;
    run_ok("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, qcow2]).await;
    let compare = ["compare", "-f", "raw", "-F", "qcow2", &uri, qcow2];
    let same = run_ok("qemu-img", &compare).await;

    assert!(same.contains("identical"), "{same}");
    assert!(std::fs::read(raw).unwrap() == content);
    let mut changed = content;
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(raw, changed).unwrap();
    let compared = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &uri, raw]).await;
    assert_eq!(compared.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_img_sees_data_and_holes_where_they_are() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut content = vec![0; 1 << 20];
    content[65_536..131_072].fill(1);
    let _server = scratch.serve(Arc::new(MemoryExport::read_only(&content)));

    let map = run_ok("qemu-img", &["map", "-f", "raw", "--output=json", &scratch.uri()]).await;

    let starts: Vec<_> = map.lines().filter(|line| line.contains("\"data\": true")).collect();
    assert_eq!(starts.len(), 1, "{map}");
    assert!(starts[0].contains("\"start\": 65536, \"length\": 65536"), "{map}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_io_writes_zeroes_discards_and_flushes_our_export() {
    if !have(&["qemu-io"]) {
        return;
    }
    let scratch = Scratch::new();
    let blocks = BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 20 };
    let disk = Arc::new(MemoryExport::new(SIZE as u64).with_block_sizes(blocks));
    let _server = scratch.serve(disk.clone());
    let uri = scratch.uri();
    let mut arguments = vec!["-f", "raw", "-d", "unmap", &uri];
    let commands = [
        "write -P 0x11 0 3M",
        "write -f -P 0x22 4k 1k",
        "write -z 1M 64k",
        "write -z -u 2M 64k",
        "discard 2200k 64k",
        "write -P 0x33 5119k 1k",
        "flush",
        "read -P 0x22 4k 1k",
        "read -P 0x33 5119k 1k",
        "read -P 0x11 0 4k",
    ];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));

    let said = run_ok("qemu-io", &arguments).await;

    assert!(!said.contains("failed"), "{said}");
    let mut oracle = vec![0; SIZE];
    oracle[..3 << 20].fill(0x11);
    oracle[4096..5120].fill(0x22);
    oracle[1 << 20..(1 << 20) + 65_536].fill(0);
    oracle[2 << 20..(2 << 20) + 65_536].fill(0);
    oracle[2200 * 1024..2264 * 1024].fill(0);
    oracle[5119 * 1024..].fill(0x33);
    assert!(disk.content() == oracle);
    assert!(disk.flushes() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_io_cannot_open_a_read_only_export_for_writing() {
    if !have(&["qemu-io"]) {
        return;
    }
    let scratch = Scratch::new();
    let _server = scratch.serve(Arc::new(MemoryExport::read_only(&[1; 4096])));

    let uri = scratch.uri();
    let opened = run("qemu-io", &["-f", "raw", &uri, "-c", "write -P 9 0 512"]).await;
    let read = run_ok("qemu-io", &["-r", "-f", "raw", &uri, "-c", "read -P 1 0 4096"]).await;

    assert!(!opened.status.success());
    assert!(!read.contains("failed"), "{read}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_shows_our_export_and_its_map() {
    if !have(&["nbdinfo"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut content = vec![0; 1 << 20];
    content[65_536..131_072].fill(1);
    let _server = scratch.serve(Arc::new(MemoryExport::read_only(&content)));
    let uri = scratch.uri();

    let shown = run_ok("nbdinfo", &[&uri]).await;
    let listed = run_ok("nbdinfo", &["--list", &uri]).await;
    let map = run_ok("nbdinfo", &["--map", &uri]).await;

    for part in ["structured packets", "base:allocation", "1048576", "can_multi_conn: true"] {
        assert!(shown.contains(part), "{shown}");
    }
    assert!(listed.contains("a disk for tests"), "{listed}");
    let rows: Vec<Vec<&str>> =
        map.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let expected = [["0", "65536", "3"], ["65536", "65536", "0"], ["131072", "917504", "3"]];
    assert_eq!(rows, expected, "{map}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdcopy_copies_our_export_out_and_in_over_several_connections() {
    if !have(&["nbdcopy"]) {
        return;
    }
    let (from, to) = (Scratch::new(), Scratch::new());
    let content = sparse_content(SIZE);
    let target = Arc::new(MemoryExport::new(SIZE as u64));
    let _source = from.serve(Arc::new(MemoryExport::read_only(&content)));
    let _target = to.serve(target.clone());
    let file = from.path("copy");

    run_ok("nbdcopy", &["--connections=4", &from.uri(), file.to_str().unwrap()]).await;
    run_ok("nbdcopy", &["--flush", &from.uri(), &to.uri()]).await;

    assert!(std::fs::read(file).unwrap() == content);
    assert!(target.content() == content);
    assert!(target.flushes() > 0);
}

//! Our client with a server of others: qemu-nbd, with allocation and with a dirty bitmap.

use std::path::Path;

use leeward_nbd::client::{Client, ClientError, Closed, Durability, list_unix};
use leeward_nbd::protocol::{BASE_ALLOCATION, STATE_DIRTY, STATE_ZERO};
use tokio::time::timeout;

use crate::world::{DEADLINE, Guard, Scratch, have, listening, run_ok};

const SIZE: u64 = 3 << 30; // More than one block status request covers.
const FAR: u64 = (2 << 30) + (5 << 20);

/// A sparse qcow2 with 64 KiB of 0x5a at 1 MiB and at [`FAR`].
async fn sparse_qcow2(path: &str) {
    run_ok("qemu-img", &["create", "-q", "-f", "qcow2", path, "3G"]).await;
    let far = format!("write -P 0x5a {FAR} 64k");
    run_ok("qemu-io", &["-f", "qcow2", path, "-c", "write -P 0x5a 1M 64k", "-c", &far]).await;
}

async fn qemu_nbd(scratch: &Scratch, image: &str, more: &[&str]) -> Guard {
    let socket = scratch.socket();
    let mut arguments = vec!["-t", "-e", "4", "-x", "disk", "-f", "qcow2", "-k"];
    arguments.push(socket.to_str().unwrap());
    arguments.extend(more);
    arguments.push(image);
    let guard = Guard::start("qemu-nbd", &arguments);
    listening(Path::new(&socket)).await;
    guard
}

async fn ranges(client: &Client, context: &str, wanted: impl Fn(u32) -> bool) -> Vec<(u64, u64)> {
    let map = timeout(DEADLINE, client.map_all(context)).await.unwrap().unwrap();
    let mut end = 0;
    for extent in &map {
        assert_eq!(extent.offset, end);
        end += extent.len;
    }
    assert_eq!(end, client.size());
    let wanted = map.iter().filter(|extent| wanted(extent.flags));
    wanted.map(|extent| (extent.offset, extent.len)).collect()
}

#[tokio::test]
async fn the_map_and_data_of_a_sparse_image_are_read_from_qemu_nbd() {
    if !have(&["qemu-img", "qemu-io", "qemu-nbd"]) {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.path("image.qcow2");
    let image = image.to_str().unwrap();
    sparse_qcow2(image).await;
    let _server = qemu_nbd(&scratch, image, &[]).await;

    let client = scratch.client(&[BASE_ALLOCATION]).await;
    let data = ranges(&client, BASE_ALLOCATION, |flags| flags & STATE_ZERO == 0).await;

    assert_eq!(client.size(), SIZE);
    assert_eq!(data, [(1 << 20, 65_536), (FAR, 65_536)]);
    // Across data and hole, which QEMU answers with several chunks.
    let read = client.read((1 << 20) - 65_536, 3 * 65_536).await.unwrap();
    assert!(read[..65_536].iter().all(|byte| *byte == 0));
    assert!(read[65_536..131_072].iter().all(|byte| *byte == 0x5a));
    assert!(read[131_072..].iter().all(|byte| *byte == 0));
    let listed = list_unix(&scratch.socket(), DEADLINE).await.unwrap();
    assert_eq!(listed[0].name, "disk");
    client.disconnect().await;
}

#[tokio::test]
async fn writes_to_qemu_nbd_arrive_and_last() {
    if !have(&["qemu-img", "qemu-io", "qemu-nbd"]) {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.path("image.qcow2");
    let image = image.to_str().unwrap();
    sparse_qcow2(image).await;
    let mut server = qemu_nbd(&scratch, image, &[]).await;
    let client = scratch.client(&[]).await;

    client.write(8192, vec![0x77; 4096].into(), Durability::BeforeReply).await.unwrap();
    client.write_zeroes(1 << 20, 4096, Durability::AtFlush).await.unwrap();
    client.trim(FAR, 65_536).await.unwrap();
    client.flush().await.unwrap();
    client.disconnect().await;
    server.kill();

    let checks = ["-c", "read -P 0x77 8k 4k", "-c", "read -P 0 1M 4k"];
    let said = run_ok("qemu-io", &[&["-f", "qcow2", image], &checks[..]].concat()).await;
    assert!(!said.contains("failed"), "{said}");
}

#[tokio::test]
async fn a_dirty_bitmap_of_qemu_nbd_tells_what_was_written() {
    if !have(&["qemu-img", "qemu-io", "qemu-nbd"]) {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.path("image.qcow2");
    let image = image.to_str().unwrap();
    sparse_qcow2(image).await;
    run_ok("qemu-img", &["bitmap", "--add", "-g", "65536", image, "since"]).await;
    let writes = ["-c", "write 2M 4k", "-c", "write 200M 128k"];
    run_ok("qemu-io", &[&["-f", "qcow2", image], &writes[..]].concat()).await;
    run_ok("qemu-img", &["bitmap", "--disable", image, "since"]).await;
    let _server = qemu_nbd(&scratch, image, &["--bitmap=since", "-r"]).await;
    let context = "qemu:dirty-bitmap:since";

    let client = scratch.client(&[BASE_ALLOCATION, context]).await;
    let dirty = ranges(&client, context, |flags| flags & STATE_DIRTY != 0).await;
    let data = ranges(&client, BASE_ALLOCATION, |flags| flags & STATE_ZERO == 0).await;

    assert_eq!(dirty, [(2 << 20, 65_536), (200 << 20, 131_072)]);
    let written = [(1 << 20, 65_536), (2 << 20, 65_536), (200 << 20, 131_072), (FAR, 65_536)];
    // A file system may give back what a cluster does not use; the bitmap keeps to its granularity.
    let clusters = data.iter().map(|(offset, len)| (*offset, len.next_multiple_of(65_536)));
    assert_eq!(clusters.collect::<Vec<_>>(), written);
}

#[tokio::test]
async fn killing_qemu_nbd_under_reads_gives_errors_and_no_hang() {
    if !have(&["qemu-img", "qemu-io", "qemu-nbd"]) {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.path("image.qcow2");
    let image = image.to_str().unwrap();
    sparse_qcow2(image).await;
    let mut server = qemu_nbd(&scratch, image, &[]).await;
    let client = scratch.client(&[]).await;
    let reads: Vec<_> = (0..40u64)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                for round in 0..1000u64 {
                    client.read((number * 1000 + round) * 65_536 % SIZE, 65_536).await?;
                }
                Ok::<(), ClientError>(())
            })
        })
        .collect();

    client.read(0, 512).await.unwrap();
    server.kill();

    for read in reads {
        let error = timeout(DEADLINE, read).await.expect("a hang").unwrap().unwrap_err();
        let ClientError::Closed { source, .. } = &error else { panic!("{error}") };
        assert!(matches!(source, Closed::ByServer | Closed::Stream { .. }), "{source}");
    }
}

//! QEMU's block commands, typed, and the names of everything that we add to a QEMU.
//!
//! Knows how to ask; `capture` and `instance` know what for.

use super::vm::{CHANGE, QUICK};
use crate::qmp::{Qmp, QmpError};
use leeward_model::DiskNumber;
use serde_json::{Value, json};
use std::path::Path;

/// A disk's permanent top node: `raw` over [`format_node`], so that something can be put between.
pub(crate) fn top_node(disk: DiskNumber) -> String {
    format!("lw-top-{disk}")
}

/// The node of a disk's image format; the bitmaps are on it.
pub(crate) fn format_node(disk: DiskNumber) -> String {
    format!("lw-disk-{disk}")
}

/// The copy-before-write node of an open cut.
pub(crate) fn filter_node(disk: DiskNumber) -> String {
    format!("lw-cbw-{disk}")
}

/// The scratch node of an open cut.
pub(crate) fn scratch_node(disk: DiskNumber) -> String {
    format!("lw-scr-{disk}")
}

/// The node that shows a disk as it was at the cut.
pub(crate) fn access_node(disk: DiskNumber) -> String {
    format!("lw-acc-{disk}")
}

/// The export through which a disk is read.
pub(crate) fn export_name(disk: DiskNumber) -> String {
    format!("lw-ex-{disk}")
}

/// A block node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes that its image takes on the host.
    pub allocated: u64,
    /// Whether another image lies below it.
    pub has_backing: bool,
    pub bitmaps: Vec<Bitmap>,
}

/// A dirty bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bitmap {
    pub name: String,
    /// Bytes that it names.
    pub bytes: u64,
    /// QEMU was not ended cleanly: it only can be removed.
    pub inconsistent: bool,
}

/// The nodes of a QEMU that have a name.
pub(crate) async fn nodes(qmp: &Qmp) -> Result<Vec<Node>, QmpError> {
    let listed = qmp.call("query-named-block-nodes", json!({"flat": true}), QUICK).await?;
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let bitmap = |value: &Value| Bitmap {
        name: text(&value["name"]),
        bytes: number(&value["count"]),
        inconsistent: value["inconsistent"].as_bool().unwrap_or(false),
    };
    let node = |value: &Value| Node {
        name: text(&value["node-name"]),
        size: number(&value["image"]["virtual-size"]),
        allocated: number(&value["image"]["actual-size"]),
        // The flat list counts no depth, but it names what is below.
        has_backing: ["/backing_file", "/image/backing-filename"]
            .iter()
            .any(|at| value.pointer(at).is_some()),
        bitmaps: value["dirty-bitmaps"].as_array().into_iter().flatten().map(bitmap).collect(),
    };
    Ok(listed.as_array().into_iter().flatten().map(node).collect())
}

/// Runs `actions` as one transaction: all or none, at one instant.
pub(crate) async fn transaction(qmp: &Qmp, actions: Vec<Value>) -> Result<(), QmpError> {
    if actions.is_empty() {
        return Ok(());
    }
    qmp.call("transaction", json!({"actions": actions}), CHANGE).await.map(|_| ())
}

/// An action on one bitmap of a disk.
pub(crate) fn bitmap_action(kind: &str, disk: DiskNumber, name: &str) -> Value {
    let kind = format!("block-dirty-bitmap-{kind}");
    json!({"type": kind, "data": {"node": format_node(disk), "name": name}})
}

/// The action that merges the bitmaps `from` into `target`.
pub(crate) fn merge_action(disk: DiskNumber, target: &str, from: &[String]) -> Value {
    json!({"type": "block-dirty-bitmap-merge",
           "data": {"node": format_node(disk), "target": target, "bitmaps": from}})
}

/// Puts the top nodes of several disks onto other children, all at one instant.
pub(crate) async fn reopen_tops(
    qmp: &Qmp,
    tops: impl IntoIterator<Item = (DiskNumber, String)>,
) -> Result<(), QmpError> {
    let option = |(disk, child)| {
        let name = top_node(disk);
        json!({"driver": "raw", "node-name": name, "file": child, "discard": "unmap"})
    };
    let options: Vec<Value> = tops.into_iter().map(option).collect();
    if options.is_empty() {
        return Ok(());
    }
    qmp.call("blockdev-reopen", json!({"options": options}), CHANGE).await.map(|_| ())
}

/// Adds a node.
pub(crate) async fn add_node(qmp: &Qmp, node: Value) -> Result<(), QmpError> {
    qmp.call("blockdev-add", node, CHANGE).await.map(|_| ())
}

/// Removes a node that nothing uses any more.
pub(crate) async fn delete_node(qmp: &Qmp, name: &str) -> Result<(), QmpError> {
    qmp.call("blockdev-del", json!({"node-name": name}), CHANGE).await.map(|_| ())
}

/// Serves a node read-only under [`export_name`], with a bitmap if one is given.
pub(crate) async fn add_export(
    qmp: &Qmp,
    disk: DiskNumber,
    node: &str,
    bitmap: Option<&str>,
) -> Result<(), QmpError> {
    let name = export_name(disk);
    let bitmaps: Vec<Value> = bitmap
        .into_iter()
        .map(|bitmap| json!({"node": format_node(disk), "name": bitmap}))
        .collect();
    let export = json!({"type": "nbd", "id": name, "name": name, "node-name": node,
                        "writable": false, "bitmaps": bitmaps});
    qmp.call("block-export-add", export, CHANGE).await.map(|_| ())
}

/// Removes every export of ours, with its clients, and waits until it is gone.
pub(crate) async fn delete_exports(qmp: &Qmp) -> Result<(), QmpError> {
    let listed = qmp.call("query-block-exports", json!({}), QUICK).await?;
    let ids = listed.as_array().into_iter().flatten().filter_map(|export| export["id"].as_str());
    for id in ids.filter(|id| id.starts_with("lw-ex-")) {
        let before = qmp.events_now();
        let arguments = json!({"id": id, "mode": "hard"});
        match qmp.call("block-export-del", arguments, CHANGE).await {
            // Somebody asked before us; the event still comes.
            Err(error) if error.refused_with("already shutting down") => {}
            answer => {
                answer?;
            }
        }
        let what = format!("the end of export {id}");
        let is_it = |event: &crate::qmp::QmpEvent| {
            event.name == "BLOCK_EXPORT_DELETED" && event.data["id"] == id
        };
        qmp.wait_event(&what, before, is_it, CHANGE).await?;
    }
    Ok(())
}

/// Makes QEMU's one NBD server listen at `socket`, also when it listened elsewhere before.
pub(crate) async fn start_nbd_server(qmp: &Qmp, socket: &Path) -> Result<(), QmpError> {
    let address = json!({"type": "unix", "data": {"path": socket}});
    let start = json!({"addr": address, "max-connections": 100});
    match qmp.call("nbd-server-start", start.clone(), CHANGE).await {
        Err(error) if error.refused_with("already running") => {
            if tokio::net::UnixStream::connect(socket).await.is_ok() {
                return Ok(());
            }
            qmp.call("nbd-server-stop", json!({}), CHANGE).await?;
            qmp.call("nbd-server-start", start, CHANGE).await.map(|_| ())
        }
        answer => answer.map(|_| ()),
    }
}

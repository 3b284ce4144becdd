//! Recovery points and timelines, as the control plane and operators see them.

use crate::{DiskNumber, Epoch, Lsn, PointId, Site, TimelineId, UnixMillis};
use serde::{Deserialize, Serialize};

/// A place in an item's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The timeline.
    pub timeline: TimelineId,
    /// The position on it.
    pub lsn: Lsn,
}

/// A timeline and where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Branch {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it leaves its parent; none for an item's first.
    pub parent: Option<Position>,
    /// The epoch in which it was opened.
    pub epoch: Epoch,
}

/// How a recovery point was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PointKind {
    /// As after a power cut, over all disks of the machine.
    CrashConsistent,
    /// After the guest was shut down: nothing is in flight.
    Final,
    /// File systems frozen and flushed.
    ApplicationConsistent,
}

/// Why a point exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum PointOrigin {
    /// Cut by the policy's interval or for a failover.
    Replicated,
    /// What a failed-over machine wrote before a change of recovery point.
    BeforeChange,
    /// What a fenced or abandoned machine wrote after the last common point.
    Divergent,
}

/// A disk in a point's disk table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskEntry {
    /// Number within the item.
    pub number: DiskNumber,
    /// Stable name.
    pub id: String,
    /// Serial number that the guest sees.
    pub serial: String,
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_bytes: u32,
}

/// Whether and how a point has proved that it boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Verification {
    /// Nobody has tried.
    #[default]
    Untested,
    /// It booted and its probe passed.
    Verified(Evidence),
    /// It was tried and failed.
    Failed(Evidence),
}

/// What a test of a point showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// When the machine was started, by the testing host's clock.
    pub booted_at: UnixMillis,
    /// Milliseconds from the start to the end of the probe.
    pub took_ms: u64,
    /// What was tried, in words.
    pub probe: String,
    /// What was seen: the console's line, or why it failed. At most 4 KiB.
    pub seen: String,
    /// Name of the picture of the display, when there is one; asked for by this name.
    pub picture: Option<String>,
    /// BLAKE3 of the picture's bytes, hexadecimal.
    pub picture_hash: Option<String>,
    /// Hash over all extent hashes of the point, hexadecimal.
    pub content_hash: Option<String>,
}

/// A recovery point, as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointInfo {
    /// Its id.
    pub id: PointId,
    /// Name for people, unique within the item; empty for replicated points.
    pub name: String,
    /// Where it lies in the item's history.
    pub position: Position,
    /// How it was cut.
    pub kind: PointKind,
    /// Why it exists.
    pub origin: PointOrigin,
    /// When it was cut, by the source's clock.
    pub cut_at: UnixMillis,
    /// When the store had it, by the store's clock.
    pub received_at: UnixMillis,
    /// The epoch of its timeline: tells points of two stores apart in time, whatever the clocks
    /// of their hosts say.
    #[serde(default)]
    pub epoch: Epoch,
    /// When its store lets it go, by that store's clock; none while nothing says so: it is pinned,
    /// it is the newest of its store, or points do not age until a commit.
    #[serde(default)]
    pub expires_at: Option<UnixMillis>,
    /// The site whose store holds it.
    pub held_at: Site,
    /// Disks at the cut.
    pub disks: Vec<DiskEntry>,
    /// Who pins it: reasons in words, empty when nobody does.
    pub pinned_by: Vec<String>,
    /// Whether it proved itself.
    pub verification: Verification,
}

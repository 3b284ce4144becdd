//! What both ends tell one another, and the config server, about the comparisons that nobody asked
//! for: of the source with its replica, and of the store with itself. JSON. How they are made is
//! the host's business.

use leeward_model::{DiskNumber, ExtentHash, ExtentNumber, Problem, UnixMillis};
use serde::{Deserialize, Serialize};

/// The most damaged extents that a store names at once, and the most that an end remembers. More
/// are a disk that is to be replaced and a replica that is to be compared as a whole.
pub const DAMAGED_MAX: usize = 1024;
/// The most extents whose hashes are asked to be taken anew at once: 16 MiB of disk, which the
/// store reads and unpacks before it answers.
pub const REREAD_MAX: u32 = 256;
/// In an answer about stored bytes: what is stored cannot be read, so it equals nothing.
pub const EXTENT_UNREADABLE: ExtentHash = ExtentHash([0xff; 32]);

/// What the ends of a data session say of the store's stored bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case")]
pub enum AuditWord {
    /// From the sender: which extents of what the branch holds cannot be read?
    Ask,
    /// The answer.
    Damaged {
        /// At most [`DAMAGED_MAX`], ascending; more may come once these are repaired.
        extents: Vec<(DiskNumber, ExtentNumber)>,
    },
    /// From the sender: read what is stored of these extents and take their hashes anew. Answered
    /// by [`crate::data::Hashes`], with [`EXTENT_UNREADABLE`] for what cannot be read.
    Reread {
        /// The disk.
        disk: DiskNumber,
        /// The first extent.
        first_extent: ExtentNumber,
        /// How many, 1 to [`REREAD_MAX`].
        count: u32,
    },
}

/// How far an audit is: rounds over everything, for ever, at a low rate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuditSeen {
    /// Bytes compared since the last whole round.
    pub done_bytes: u64,
    /// Bytes that a whole round compares.
    pub total_bytes: u64,
    /// When the last whole round ended, by the host's clock.
    pub round_ended_at: Option<UnixMillis>,
    /// Extents or records that were not what they have to be, since the audit began.
    pub differences: u64,
    /// The newest that was found; until a whole round finds nothing.
    pub problem: Option<Problem>,
}

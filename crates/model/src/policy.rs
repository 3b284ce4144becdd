//! Replication policies.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The shortest interval between recovery points.
pub const POINT_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// The longest interval between recovery points.
pub const POINT_INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// What an item's owner wants of its replication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Time between recovery points, in milliseconds: 1 s to 1 h.
    pub point_interval_ms: u64,
    /// How long points are kept, in seconds.
    pub retention_seconds: u64,
    /// An RPO above this, in seconds, is a health error.
    pub rpo_threshold_seconds: u64,
    /// How long points are kept after a commit, in seconds.
    pub keep_after_commit_seconds: u64,
    /// How long a guest may take to shut down before a failover goes on without it, in seconds.
    pub shutdown_timeout_seconds: u64,
    /// Whether a planned failover goes on to protect the machine in the other direction (F-084).
    /// It does so by itself after a planned failover, and makes a reprotect before the commit
    /// legal. Off unless it is asked for.
    #[serde(default)]
    pub auto_reverse_planned: bool,
}

impl Default for Policy {
    /// 5 min points kept for 24 h, RPO threshold 15 min, 7 days after commit, 2 min to shut down,
    /// no automatic reverse.
    fn default() -> Self {
        Policy {
            point_interval_ms: 300_000,
            retention_seconds: 86_400,
            rpo_threshold_seconds: 900,
            keep_after_commit_seconds: 7 * 86_400,
            shutdown_timeout_seconds: 120,
            auto_reverse_planned: false,
        }
    }
}

//! How fast the audits that nobody asked for may read: of a machine beside its replica, and of a
//! store's own bytes. Reads no clock and no disk.

/// Bytes a second unless it is said otherwise: a TiB in a day and a half.
const DEFAULT_BYTES_PER_SECOND: u64 = 8 << 20;

/// For the command line of a host.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct AuditOptions {
    /// How fast replicas are audited all the time, in bytes a second: each machine is compared
    /// with its replica, and each replica with its own hashes. 0 for never.
    #[arg(long, env = "LEEWARD_AUDIT_BYTES_PER_SECOND",
          default_value_t = DEFAULT_BYTES_PER_SECOND)]
    audit_bytes_per_second: u64,
}

impl AuditOptions {
    /// The pace that was asked for.
    pub fn pace(&self) -> AuditPace {
        AuditPace { bytes_per_second: self.audit_bytes_per_second }
    }
}

/// A pace for each item and each kind of audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditPace {
    /// Bytes a second; 0 for never.
    pub bytes_per_second: u64,
}

impl Default for AuditPace {
    fn default() -> AuditPace {
        AuditPace { bytes_per_second: DEFAULT_BYTES_PER_SECOND }
    }
}

/// What an audit may read now: it saves up for a while, never more than a bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allowance {
    bytes: u64,
}

impl Allowance {
    /// Adds what `pace` allows for a time, up to `most` bytes in all; returns what there is.
    pub fn grow(&mut self, pace: AuditPace, passed: std::time::Duration, most: u64) -> u64 {
        let ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        let more = pace.bytes_per_second.saturating_mul(ms) / 1000;
        self.bytes = self.bytes.saturating_add(more).min(most);
        self.bytes
    }

    /// Takes what was read; what was read beyond the allowance is forgiven.
    pub fn spend(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_allowance_grows_with_time_up_to_its_bound_and_is_spent() {
        let pace = AuditPace { bytes_per_second: 1000 };
        let mut allowance = Allowance::default();

        assert_eq!(allowance.grow(pace, Duration::from_millis(1500), 4000), 1500);
        allowance.spend(500);
        assert_eq!(allowance.grow(pace, Duration::from_secs(1), 4000), 2000);
        assert_eq!(allowance.grow(pace, Duration::from_secs(60), 4000), 4000);
        allowance.spend(u64::MAX);
        assert_eq!(allowance.grow(pace, Duration::ZERO, 4000), 0);
        let never = AuditPace { bytes_per_second: 0 };
        assert_eq!(allowance.grow(never, Duration::from_secs(3600), 4000), 0);
    }
}

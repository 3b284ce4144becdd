//! How audits and points that are served by hand are shown below an item. Asks for nothing.

use super::ids::{time, time_or_null};
use leeward_wire::{audit::AuditSeen, message::ServedPoint};
use serde_json::{Value, json};

/// An audit: how much of a round is done, when the last whole one ended, what was found.
pub(super) fn audit(seen: Option<&AuditSeen>) -> Value {
    let Some(seen) = seen else { return Value::Null };
    let share = |done: u64| match seen.total_bytes {
        0 => 0.0,
        total => (done as f64 * 1000.0 / total as f64).round() / 10.0,
    };
    json!({
        "auditedBytes": seen.done_bytes,
        "totalBytes": seen.total_bytes,
        "auditedPercentage": share(seen.done_bytes.min(seen.total_bytes)),
        "lastRoundEndedAt": time_or_null(seen.round_ended_at),
        "differences": seen.differences,
    })
}

/// Points that are served by hand.
pub(super) fn served(served: &[ServedPoint]) -> Vec<Value> {
    let one = |served: &ServedPoint| {
        json!({
            "recoveryPoint": served.point,
            "by": served.who,
            "since": time(served.since),
            "writable": served.writable,
        })
    };
    served.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_says_its_share_with_one_digit_and_none_is_null() {
        let seen = AuditSeen { done_bytes: 1, total_bytes: 3, ..AuditSeen::default() };
        assert_eq!(audit(Some(&seen))["auditedPercentage"], json!(33.3));
        assert_eq!(audit(Some(&AuditSeen::default()))["auditedPercentage"], json!(0.0));
        assert_eq!(audit(None), Value::Null);
    }
}

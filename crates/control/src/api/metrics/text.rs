//! The text in which Prometheus reads metrics (version 0.0.4), and every metric there is. Where the
//! figures come from is not known here.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What Prometheus may do with a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Goes up and down.
    Gauge,
    /// Only grows, but for a restart.
    Counter,
}

/// Is a metric: its name ends in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
}

macro_rules! families {
    ($($name:ident = $kind:ident $text:literal $help:literal)*) => {
        impl Family {$(
            #[doc = $help]
            pub const $name: Family = Family { name: $text, kind: Kind::$kind, help: $help };
        )*}
        /// Every metric.
        pub(super) const FAMILIES: &[Family] = &[$(Family::$name),*];
    };
}

families! {
    INFO = Gauge "leeward_info" "The config server's version; always 1."
    IN_CHARGE = Gauge "leeward_in_charge" "1 while no other config server has taken over."
    CONFIGURATION_KEPT = Gauge "leeward_configuration_kept"
        "1 while the newest configuration is kept in the store too."
    AUDIT_LOG_ENTRIES = Gauge "leeward_audit_log_entries" "Number of the newest audit entry."
    ITEM_STATE = Gauge "leeward_item_state" "Protection state of an item, in the label; always 1."
    ITEM_HEALTH = Gauge "leeward_item_health" "0 normal, 1 warning, 2 critical."
    ITEM_PROBLEM = Gauge "leeward_item_problem" "1 for each health error of an item, by code."
    ITEM_RPO = Gauge "leeward_item_rpo_seconds"
        "Time since the cut of the newest committed point of an item that is replicated."
    ITEM_RPO_THRESHOLD = Gauge "leeward_item_rpo_threshold_seconds" "What its policy wants."
    ITEM_POINT_AGE = Gauge "leeward_item_newest_point_age_seconds"
        "Time since the cut of the newest committed point, replicated or not."
    ITEM_POINTS = Gauge "leeward_item_points" "Recovery points in the target's store."
    ITEM_STORED = Gauge "leeward_item_stored_bytes" "Bytes in the target's store."
    ITEM_SENT = Counter "leeward_item_sent_bytes_total"
        "Bytes of changed blocks sent since protection began, before compression."
    ITEM_CHANGED = Gauge "leeward_item_changed_bytes"
        "Bytes that the change map reported for the newest point."
    ITEM_CHURN = Gauge "leeward_item_churn_bytes_per_second"
        "Reported bytes a second over the newest points, 10 at most."
    ITEM_PAUSE = Gauge "leeward_item_pause_seconds"
        "How long the newest cut held the guest's writes."
    ITEM_SPOOL_POINTS = Gauge "leeward_item_spool_points" "Points that wait for the store."
    ITEM_SPOOL_BYTES = Gauge "leeward_item_spool_bytes" "Bytes of points that wait for the store."
    ITEM_SPOOL_ROOM = Gauge "leeward_item_spool_room_bytes"
        "Bytes that the spools of the source's host may take together."
    ITEM_AUDITED = Gauge "leeward_item_audited_ratio"
        "Share of the present round of an audit that is done: of the machine, of its stored bytes."
    ITEM_DIFFERENCES = Gauge "leeward_item_audit_differences"
        "What an audit found that was not as it has to be, since it began."
    ITEM_TESTED = Gauge "leeward_item_last_test_timestamp_seconds"
        "When its last test failover succeeded, seconds since 1970; absent if never."
    ITEM_READINESS = Gauge "leeward_item_readiness"
        "Whether a failover would work: 0 yes, 1 look at it, 2 no."
    HOST_CONNECTED = Gauge "leeward_host_connected" "1 while a host is connected and not silent."
    HOST_HEARD = Gauge "leeward_host_last_heard_timestamp_seconds"
        "When a host was heard last since this process began."
    HOST_STORE_FREE = Gauge "leeward_host_store_free_bytes" "Free bytes below a host's store."
    HOST_MACHINES = Gauge "leeward_host_machines" "Machines found on a host."
    HOST_MEMORY = Gauge "leeward_host_memory_bytes" "Memory of a host."
    HOST_MEMORY_AVAILABLE = Gauge "leeward_host_memory_available_bytes"
        "Memory that a host can give to machines now."
    HOST_DISK_FREE = Gauge "leeward_host_disk_free_bytes"
        "Free bytes where the disks of machines made from points lie."
    HOST_NOT_FITTING = Gauge "leeward_host_items_not_fitting"
        "Machines that would not start on a host if all were failed over at once."
    JOBS_RUNNING = Gauge "leeward_jobs_running" "Jobs that are not over, by scenario and state."
    JOBS_ENDED = Counter "leeward_jobs_ended_total" "Jobs that ended, by scenario and outcome."
    JOB_PROBLEMS = Counter "leeward_job_problems_total"
        "Failures and warnings of jobs that ended, by code."
    API_ANSWERS = Counter "leeward_api_answers_total" "Answers of the API by HTTP status."
    API_REFUSALS = Counter "leeward_api_refusals_total" "Refusals of the API by code."
}

/// Is the text being written.
#[derive(Default)]
pub(super) struct Page {
    samples: BTreeMap<&'static str, String>,
}

impl Page {
    /// Adds a figure. Labels of one metric are always the same, in the same order.
    pub fn add(&mut self, family: Family, labels: &[(&str, &str)], value: f64) {
        let lines = self.samples.entry(family.name).or_default();
        lines.push_str(family.name);
        for (index, (name, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let open = if index == 0 { '{' } else { ',' };
            let _ = write!(lines, "{open}{name}=\"{text}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(lines, "{close} {value}");
    }

    /// The whole text: every metric is named, also one without a figure.
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        for family in FAMILIES {
            let kind = match family.kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
            };
            let (name, help) = (family.name, family.help);
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            text.push_str(&self.samples.remove(name).unwrap_or_default());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_every_metric_is_named_with_or_without_figures() {
        let mut page = Page::default();
        page.add(Family::ITEM_RPO, &[("item", "a\"b\\c\nd"), ("vault", "v")], 1.5);
        page.add(Family::IN_CHARGE, &[], 1.0);

        let text = page.finish();

        let line = "leeward_item_rpo_seconds{item=\"a\\\"b\\\\c\\nd\",vault=\"v\"} 1.5\n";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("\nleeward_in_charge 1\n"));
        for family in FAMILIES {
            assert!(text.contains(&format!("# TYPE {} ", family.name)));
            let total = family.name.ends_with("_total");
            assert_eq!(family.kind == Kind::Counter, total, "{}", family.name);
        }
    }
}

//! What the demo measured: `demo-report.json` and the table on the terminal.

use serde::Serialize;

/// One step of the story.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Whether its checks passed.
    pub ok: bool,
}

/// The report; scripts rely on its fields. Figures that a run did not reach are null.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The steps in order.
    pub steps: Vec<Step>,
    /// Records that the guest had written at the kill, judged from its own disks.
    pub records_written: Option<u64>,
    /// Records of them that are not in the machine that was failed over.
    pub records_lost_after_kill: Option<u64>,
    /// The RPO that the API reported at the kill, in seconds.
    pub reported_rpo_seconds_at_kill: Option<f64>,
    /// Time between the newest record written and the newest one recovered, in seconds.
    pub true_loss_seconds_at_kill: Option<f64>,
    /// From the failover's acceptance to QEMU running, in seconds.
    pub failover_accepted_to_qemu_running_seconds: Option<f64>,
    /// To the first output of the guest's kernel.
    pub failover_accepted_to_kernel_seconds: Option<f64>,
    /// To the first new record on both disks.
    pub failover_accepted_to_first_record_seconds: Option<f64>,
    /// The same for the test failover.
    pub test_failover_accepted_to_first_record_seconds: Option<f64>,
    /// Bytes allocated in the guest's images when protection was enabled.
    pub initial_bytes_allocated: Option<u64>,
    /// Bytes of blocks sent for the first copy, before compression.
    pub initial_bytes_sent: Option<u64>,
    /// Bytes in the replica store at the end.
    pub stored_bytes: Option<u64>,
    /// Median pause of the guest's I/O for a recovery point, in milliseconds.
    pub guest_pause_ms_median: Option<f64>,
    /// The longest one.
    pub guest_pause_ms_worst: Option<f64>,
    /// Records that the planned failover home lost.
    pub records_lost_after_planned_failover: Option<u64>,
    /// From the beginning of its shutdown to the first output of the kernel at home.
    pub planned_downtime_seconds: Option<f64>,
    /// Bytes of 4 KiB blocks that differ between the stale disks and the first point that the
    /// reprotect made, by the demo's own compare.
    pub reprotect_bytes_differing: Option<u64>,
    /// Bytes of blocks that the reprotect sent, before compression.
    pub reprotect_bytes_sent: Option<u64>,
    /// Whether the whole circle, out and home again, worked a second time.
    pub circle_ok: Option<bool>,
    /// What ran the guests: `kvm` or `tcg`.
    pub accelerator: Option<String>,
    /// Whether every check of the demo passed.
    pub ok: bool,
}

impl Report {
    /// The table that the demo ends with.
    pub fn table(&self) -> String {
        let seconds = |value: Option<f64>| match value {
            Some(value) => format!("{value:.2} s"),
            None => "-".to_owned(),
        };
        let number = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
        let bytes = |value: Option<u64>| {
            value.map_or("-".to_owned(), |value| format!("{:.1} MiB", value as f64 / 1_048_576.0))
        };
        let ms =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1} ms"));
        let rows = [
            ("records written before the kill", number(self.records_written)),
            ("records lost", number(self.records_lost_after_kill)),
            ("time lost", seconds(self.true_loss_seconds_at_kill)),
            ("RPO reported at the kill", seconds(self.reported_rpo_seconds_at_kill)),
            ("failover to QEMU running", seconds(self.failover_accepted_to_qemu_running_seconds)),
            ("failover to kernel", seconds(self.failover_accepted_to_kernel_seconds)),
            ("failover to first record", seconds(self.failover_accepted_to_first_record_seconds)),
            (
                "test failover to first record",
                seconds(self.test_failover_accepted_to_first_record_seconds),
            ),
            ("allocated on the source", bytes(self.initial_bytes_allocated)),
            ("sent for the first copy", bytes(self.initial_bytes_sent)),
            ("stored at the end", bytes(self.stored_bytes)),
            ("guest pause a point, median", ms(self.guest_pause_ms_median)),
            ("guest pause a point, worst", ms(self.guest_pause_ms_worst)),
            ("differing from the stale disks", bytes(self.reprotect_bytes_differing)),
            ("sent for the reprotect", bytes(self.reprotect_bytes_sent)),
            ("records lost by the way home", number(self.records_lost_after_planned_failover)),
            ("planned downtime", seconds(self.planned_downtime_seconds)),
            ("accelerator", self.accelerator.clone().unwrap_or_else(|| "-".into())),
        ];
        let mut text = String::new();
        for step in &self.steps {
            let mark = if step.ok { "ok    " } else { "FAILED" };
            text.push_str(&format!("  {mark}  {:<52} {:>8.2} s\n", step.name, step.seconds));
        }
        text.push('\n');
        for (name, value) in rows {
            text.push_str(&format!("  {name:<44} {value:>16}\n"));
        }
        text
    }
}

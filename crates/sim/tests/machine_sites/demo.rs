//! The demo inside the test runner: the same story that `./demo` tells, held to its report.

use crate::{leeward_program, root};
use leeward_sim::demo::{
    sites::processes_below,
    story::{Options, Story},
};
use std::path::PathBuf;

const FIELDS: [&str; 20] = [
    "records_written",
    "records_lost_after_kill",
    "reported_rpo_seconds_at_kill",
    "true_loss_seconds_at_kill",
    "failover_accepted_to_qemu_running_seconds",
    "failover_accepted_to_kernel_seconds",
    "failover_accepted_to_first_record_seconds",
    "test_failover_accepted_to_first_record_seconds",
    "initial_bytes_allocated",
    "initial_bytes_sent",
    "stored_bytes",
    "guest_pause_ms_median",
    "guest_pause_ms_worst",
    "records_lost_after_planned_failover",
    "planned_downtime_seconds",
    "reprotect_bytes_differing",
    "reprotect_bytes_sent",
    "circle_ok",
    "accelerator",
    "ok",
];

/// Folders of sockets that the product makes outside its own folder.
fn run_folders() -> usize {
    let entries = std::fs::read_dir("/tmp").unwrap();
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("leeward-"))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_tells_its_story_reports_every_figure_and_leaves_nothing_behind() {
    let folder = PathBuf::from(format!("/tmp/lw-demo-t{}", std::process::id()));
    let run_folders_before = run_folders();
    let mut story = Story::new(Options {
        keep: false,
        root: root(),
        program: leeward_program(),
        folder: folder.clone(),
        data_size: "64M".into(),
        kill_after_ms: 1_000,
        outward_only: false,
    });

    let ok = story.run().await;
    let report = serde_json::to_value(&story.report).unwrap();
    drop(story);

    assert!(ok, "{report:#}");
    assert_eq!(report["ok"], true);
    for field in FIELDS {
        assert!(!report[field].is_null(), "{field} is missing: {report:#}");
    }
    let steps = report["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 12);
    assert_eq!(report["circle_ok"], true);
    assert_eq!(report["records_lost_after_planned_failover"], 0);
    assert!(steps.iter().all(|step| step["ok"] == true && step["seconds"].is_number()));
    assert_eq!(processes_below(&folder, ""), Vec::<u32>::new());
    assert!(!folder.exists());
    assert_eq!(run_folders(), run_folders_before);
}

//! Members of the control messages that came later: their form, and JSON that is without them.

use leeward_model::{
    Branch, Epoch, HostId, InstanceId, JobId, Lsn, PointId, Position, Problem, Site, TimelineId,
    UnixMillis,
};
use leeward_wire::message::{
    CapturePhase, HostNote, InstanceDuty, NoteKind, OtherStore, Purpose, Seeded, SourceDuty,
    SourceObserved, SourceRun, Stage, TargetDuty, ToHost, ToServer,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::fmt::Debug;
use uuid::Uuid;

const TIMELINE: TimelineId = TimelineId::from_u128(0x31);

fn place() -> Position {
    Position { timeline: TIMELINE, lsn: Lsn(990) }
}

fn branch() -> Branch {
    Branch { timeline: TIMELINE, parent: Some(place()), epoch: Epoch(3) }
}

/// The message's JSON, after a look that it comes back as it was.
fn written<T: Serialize + DeserializeOwned + PartialEq + Debug>(message: &T) -> Value {
    let value = serde_json::to_value(message).expect("our messages serialize");
    let back: T = serde_json::from_value(value.clone()).expect("what we wrote reads");
    assert_eq!(back, *message);
    value
}

/// Reads `message` as a program writes it that does not know `member` yet.
fn read_without<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    message: &T,
    member: &str,
) -> T {
    let mut value = written(message);
    let removed = value.as_object_mut().expect("an object").remove(member);
    assert!(removed.is_some(), "{member} is no member");
    serde_json::from_value(value).expect("a later member may be absent")
}

fn source_duty(run: SourceRun) -> SourceDuty {
    SourceDuty {
        machine: "web01".into(),
        site: Site::Recovery,
        branch: branch(),
        target_host: HostId::from_u128(0x61),
        target_address: None,
        point_interval_ms: 5_000,
        run,
        resync: 0,
        resync_full: 0,
        resync_threshold_percent: 50,
        resync_allowed: true,
        bandwidth: leeward_model::Bandwidth::default(),
    }
}

/// A list cannot be a message by itself: messages are told apart by a member.
#[test]
fn notes_of_a_host_and_their_receipt_are_messages() {
    let note = HostNote {
        id: Uuid::from_u128(7),
        at: UnixMillis(1_000),
        kind: NoteKind::StartedByHand,
        item: None,
        object: "web01".into(),
        text: "it was started".into(),
    };
    let notes = written(&ToServer::Notes { notes: vec![note] });
    assert_eq!((&notes["type"], &notes["notes"][0]["object"]), (&json!("notes"), &json!("web01")));
    let taken = written(&ToHost::NotesTaken { ids: vec![Uuid::from_u128(7)] });
    assert_eq!(taken["type"], "notes-taken");
}

#[test]
fn a_source_without_an_address_to_dial_says_null() {
    let mut duty = source_duty(SourceRun::Fenced);
    assert_eq!(written(&duty)["target_address"], Value::Null);

    duty.target_address = Some("192.0.2.1:7443".into());
    assert_eq!(written(&duty)["target_address"], json!("192.0.2.1:7443"));
}

#[test]
fn every_run_of_a_source_is_told_by_its_name() {
    let job = JobId::from_u128(0x71);
    let named = [
        (
            "shut-down",
            SourceRun::ShutDown {
                job,
                timeout_ms: 1_000,
                power_off: true,
                copy: false,
                needs_point: false,
            },
        ),
        ("fenced", SourceRun::Fenced),
        ("seed", SourceRun::Seed { job, base: Some(place()) }),
        ("seed", SourceRun::Seed { job, base: None }),
        ("live", SourceRun::Live { permit: None, start: None }),
        ("release", SourceRun::Release),
        ("leave", SourceRun::Leave),
    ];
    for (name, run) in named {
        assert_eq!(written(&source_duty(run))["run"]["run"], json!(name));
    }
    let stop = SourceRun::ShutDown {
        job,
        timeout_ms: 1_000,
        power_off: true,
        copy: false,
        needs_point: false,
    };
    assert_eq!(written(&stop)["power_off"], json!(true));
    let seed = SourceRun::Seed { job, base: Some(place()) };
    assert_eq!(written(&seed)["base"]["lsn"], json!(990));
}

#[test]
fn a_shutdown_from_before_there_was_a_power_switch_asks_the_guest() {
    let job = JobId::from_u128(0x71);
    let run = SourceRun::ShutDown {
        job,
        timeout_ms: 1_000,
        power_off: true,
        copy: false,
        needs_point: false,
    };

    let read = read_without(&run, "power_off");

    assert_eq!(
        read,
        SourceRun::ShutDown {
            job,
            timeout_ms: 1_000,
            power_off: false,
            copy: false,
            needs_point: false
        }
    );
}

#[test]
fn a_target_from_before_sources_were_dialled_is_dialled() {
    let duty = TargetDuty {
        site: Site::Primary,
        source_host: HostId::from_u128(0x62),
        source_address: Some("192.0.2.2:7443".into()),
        branch: branch(),
        fence: Epoch(3),
        receive: true,
        retention_seconds: 86_400,
        delete: false,
        other_store: Some(OtherStore { host: HostId::from_u128(0x62), address: None, waits: true }),
        retired: Vec::new(),
    };

    let read = read_without(&duty, "source_address");
    let alone = read_without(&duty, "other_store");

    assert_eq!(alone, TargetDuty { other_store: None, ..duty.clone() });
    assert_eq!(read, TargetDuty { source_address: None, ..duty });
}

#[test]
fn an_instance_from_before_instances_settled_does_not_settle() {
    let duty = InstanceDuty {
        instance: InstanceId::from_u128(0x81),
        purpose: Purpose::Failover,
        point: PointId::from_u128(0x51),
        position: place(),
        timeline: TimelineId::from_u128(0x32),
        stage: Stage::HandedOver,
        permit: None,
        probe: false,
        keep_as: None,
        settle_as: Some("web01".into()),
        changes: leeward_model::MachineChanges {
            test_network: Some("user".into()),
            ..Default::default()
        },
    };
    assert_eq!(written(&duty)["stage"], json!("handed-over"));

    let read = read_without(&duty, "settle_as");

    assert_eq!(read, InstanceDuty { settle_as: None, ..duty });
}

#[test]
fn a_source_tells_what_came_of_its_seed_and_one_from_before_there_were_seeds_tells_nothing() {
    let job = JobId::from_u128(0x71);
    let observed = |seeded| SourceObserved {
        machine: leeward_model::MachineState::Off,
        epoch: Epoch(3),
        timeline: TIMELINE,
        phase: CapturePhase::Fenced,
        resync_done: 0,
        resync_reason: None,
        shutdown: None,
        started: None,
        divergent: None,
        seeded,
        cycles: Vec::new(),
        sent_bytes: 0,
        audit: None,
        problem: None,
        spool: None,
    };
    let stored = Seeded::Stored { point: PointId::from_u128(0x51), position: place() };
    let problem = Problem {
        code: "LW-0311".into(),
        what: "what".into(),
        cause: "cause".into(),
        now: "now".into(),
        todo: "todo".into(),
    };

    let value = written(&observed(Some((job, Ok(stored)))));
    assert_eq!(value["seeded"][1]["Ok"]["seed"], json!("stored"));
    let value = written(&observed(Some((job, Ok(Seeded::Nothing)))));
    assert_eq!(value["seeded"][1]["Ok"], json!({ "seed": "nothing" }));
    let failed = observed(Some((job, Err(problem))));
    assert_eq!(written(&failed)["seeded"][1]["Err"]["code"], json!("LW-0311"));

    assert_eq!(read_without(&failed, "seeded"), observed(None));
}

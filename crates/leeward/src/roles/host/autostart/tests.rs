//! Tests of which machines a host may start.

use super::*;
use crate::trust::permits::PermitKey;
use leeward_model::{
    Branch, Epoch, HostId, InstanceId, PermitTerms, PointId, Position, Site, StartPermit,
    TimelineId, VaultId,
};
use leeward_wire::message::{InstanceDuty, ItemDuty, Purpose, Stage};
use tempfile::TempDir;

const NAME: &str = "web01";
const EPOCH: Epoch = Epoch(3);

struct Place {
    folder: TempDir,
    key: PermitKey,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let key = PermitKey::open_or_create(folder.path()).unwrap();
    Place { folder, key }
}

impl Place {
    fn check(&self) -> permits::PermitCheck {
        let (key, boot) = (Some(self.key.public_hex()), "boot".to_owned());
        permits::PermitCheck { key, host: HostId::from_u128(4), boot }
    }

    fn permit(&self, epoch: Epoch) -> StartPermit {
        self.key.sign(PermitTerms {
            item: ItemId::from_u128(1),
            timeline: TimelineId::from_u128(2),
            epoch,
            machine: NAME.into(),
            host: HostId::from_u128(4),
            host_boot: "boot".into(),
        })
    }

    fn allowed(&self, assignment: &Assignment) -> bool {
        start_allowed(self.folder.path(), assignment, &self.check(), NAME).is_ok()
    }
}

fn as_source(run: SourceRun) -> Assignment {
    let timeline = TimelineId::from_u128(2);
    let source = SourceDuty {
        machine: NAME.into(),
        site: Site::Primary,
        branch: Branch { timeline, parent: None, epoch: EPOCH },
        target_host: HostId::from_u128(5),
        target_address: None,
        point_interval_ms: 1000,
        run,
        resync: 0,
        resync_full: 0,
        resync_threshold_percent: 50,
        resync_allowed: true,
        bandwidth: leeward_model::Bandwidth::default(),
    };
    of(ItemDuty { source: Some(source), ..blank() })
}

fn blank() -> ItemDuty {
    ItemDuty {
        item: ItemId::from_u128(1),
        vault: VaultId::from_u128(1),
        name: NAME.into(),
        // A host that is both ends sees the item's epoch, which may be beyond its machine's.
        epoch: Epoch(EPOCH.0 + 1),
        source: None,
        target: None,
        instances: Vec::new(),
    }
}

fn of(duty: ItemDuty) -> Assignment {
    Assignment { generation: 1, duties: vec![duty] }
}

#[test]
fn a_protected_machine_needs_a_permit_of_its_own_branchs_epoch() {
    let place = place();
    let live = as_source(SourceRun::Live { permit: None, start: None });

    assert!(!place.allowed(&live), "no permit yet");
    permits::permit_store(place.folder.path(), &place.permit(EPOCH)).unwrap();
    assert!(place.allowed(&live), "the item's epoch is not the machine's");
    permits::permit_store(place.folder.path(), &place.permit(Epoch(EPOCH.0 - 1))).unwrap();
    assert!(!place.allowed(&live), "its epoch has ended");
}

/// Decision 9: nothing else tells a host that was away from one that only restarted its role.
#[test]
fn a_permit_of_an_earlier_boot_or_for_another_host_starts_nothing() {
    let place = place();
    let live = as_source(SourceRun::Live { permit: None, start: None });
    permits::permit_store(place.folder.path(), &place.permit(EPOCH)).unwrap();
    let allowed = |check: &permits::PermitCheck| {
        start_allowed(place.folder.path(), &live, check, NAME).is_ok()
    };
    let here = place.check();

    assert!(allowed(&here));
    assert!(!allowed(&permits::PermitCheck { boot: "later boot".into(), ..here.clone() }));
    assert!(!allowed(&permits::PermitCheck { host: HostId::from_u128(5), ..here }));
}

#[test]
fn a_machine_that_was_failed_over_stays_off_although_nothing_names_it_any_more() {
    let place = place();
    let nothing = Assignment::default();
    assert!(place.allowed(&nothing), "it was never protected");

    permits::fence_note(place.folder.path(), NAME).unwrap();

    assert!(!place.allowed(&nothing));
    assert!(stays_off(place.folder.path(), &nothing, NAME), "nobody waits for a permit");
    assert!(place.allowed(&as_source(SourceRun::Release)), "its protection ended here");
    permits::fence_lift(place.folder.path(), NAME).unwrap();
    assert!(place.allowed(&nothing));
}

#[test]
fn a_machine_that_a_job_takes_off_is_not_started_even_with_a_permit() {
    let place = place();
    permits::permit_store(place.folder.path(), &place.permit(EPOCH)).unwrap();
    let job = leeward_model::JobId::from_u128(7);
    let shut_down = SourceRun::ShutDown {
        job,
        timeout_ms: 1,
        power_off: false,
        copy: false,
        needs_point: false,
    };
    let seed = SourceRun::Seed { job, base: None };

    for run in [shut_down, seed, SourceRun::Fenced, SourceRun::Leave] {
        let assignment = as_source(run);
        assert!(!place.allowed(&assignment));
        assert!(is_taken_off(&assignment, NAME));
    }
}

#[test]
fn a_machine_that_is_being_made_from_a_point_is_not_started_by_its_name() {
    let place = place();
    let timeline = TimelineId::from_u128(2);
    let instance = InstanceDuty {
        instance: InstanceId::from_u128(9),
        purpose: Purpose::Failover,
        point: PointId::from_u128(1),
        position: Position { timeline, lsn: leeward_model::Lsn(1) },
        timeline,
        stage: Stage::Running,
        permit: None,
        probe: false,
        keep_as: None,
        settle_as: Some(NAME.into()),
        changes: leeward_model::MachineChanges::default(),
    };

    let assignment = of(ItemDuty { instances: vec![instance], ..blank() });

    assert!(!place.allowed(&assignment));
    assert!(!is_taken_off(&assignment, NAME), "it is waited for");
}

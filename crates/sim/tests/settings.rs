//! What is set of an item and how networks are mapped, in the simulated world: the machine that is
//! made at the other site is made so, and the machine that comes home is as it was.

use leeward_control::{
    items::{Change, NicUpdate, PlannedSpec, SettingsUpdate, Shutdown},
    jobs::{JobView, RunState},
    networks::{MappingPlace, Resource},
};
use leeward_fabric::{Fabric as _, MachineRef};
use leeward_model::{MachineSpec, PointChoice, Site};
use leeward_replica::storage::Seeded;
use leeward_sim::world::{NIC, World, simulate};

fn went_well(ended: &JobView) {
    let well = matches!(ended.state, RunState::Succeeded | RunState::SucceededWithWarning);
    assert!(well, "{:?} ends as {:?}: {:?}", ended.scenario, ended.state, ended.errors);
}

/// The protected machine of a site as its host describes it.
async fn described(world: &World, site: Site) -> MachineSpec {
    let MachineRef::Owned(name) = world.owned(site) else { panic!("it has settled") };
    let all = world.machines(site).discover().await.expect("the world works");
    all.into_iter().find(|found| found.spec.name == name).expect("it is there").spec
}

/// Memory, network and address of a machine's one card.
fn shape(spec: &MachineSpec) -> (u32, &str, Option<String>) {
    let nic = &spec.nics[0];
    (spec.memory_mib, &nic.network, nic.address.map(|address| address.to_string()))
}

/// F-021, F-050, F-051, F-052: out as it is set and mapped, and home as it was.
#[test]
fn a_machine_is_made_as_it_is_set_and_comes_home_as_it_was() {
    let (before, away, home, writers) = simulate(async {
        let random = &mut Seeded::new(7);
        let mut world = World::replicated(None, random).await;
        let (control, item) = (world.control(), world.item.expect("it is protected"));
        let view = world.view().await.expect("it is there");
        let fabric = view.source_fabric_name.as_str();
        let place = MappingPlace { kind: Resource::Network, fabric, object: "user", name: "m" };
        let to = (view.target_fabric_name.as_str(), "isolated");
        control.resource_mapping_put(view.vault, place, to).await.expect("both exist");
        let address = Change::Set("10.7.0.50".parse().expect("an address"));
        let nic = NicUpdate { mac: Some(NIC.into()), address, ..NicUpdate::default() };
        let update = SettingsUpdate {
            memory_mib: Change::Set(48),
            nics: vec![nic],
            ..SettingsUpdate::default()
        };
        control.item_set(item, update).await.expect("all in bounds");
        let before = described(&world, Site::Primary).await;

        let job = control.item_failover(item, PointChoice::Latest, Shutdown::First).await;
        went_well(&world.finish(job.expect("the world is ready for it")).await);
        let away = described(&world, Site::Recovery).await;
        let job = control.item_commit(item).await;
        went_well(&world.finish(job.expect("the world is ready for it")).await);
        let job = control.item_planned_failover(item, PlannedSpec::default()).await;
        went_well(&world.finish(job.expect("it is committed")).await);
        world.settle().await;
        (before, away, described(&world, Site::Primary).await, world.writers())
    });

    assert_eq!(shape(&before), (32, "user", None));
    assert_eq!(shape(&away), (48, "isolated", Some("10.7.0.50".into())));
    assert_eq!(shape(&home), (32, "user", None));
    assert_eq!(writers, 1);
}

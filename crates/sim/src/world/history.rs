//! Random histories: what operators, guests and misfortune may do, drawn from one seed.
//!
//! Threads outside the world's time (the database's, the store's) may order things differently
//! from run to run: a seed fixes what is done and when, not every interleaving.

use super::{Mistakes, SITES, World, crowd::crowd, link::LinkState, other};
use leeward_capture::MemoryMachine;
use leeward_control::{
    items::Shutdown,
    jobs::{JobFilter, JobView, RunState, Scenario},
};
use leeward_fabric::memory::OnShutdown;
use leeward_model::{Commit, PointChoice, Protection, Site};
use leeward_replica::storage::{LostSync, Seeded};

/// How many things happen in a history.
const LENGTH: u64 = 18;

/// What happens to the disks of a machine that was left for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stale {
    /// They are not there any more.
    Gone,
    /// The second one is not there any more.
    OneGone,
    /// Something else is on them.
    Replaced,
    /// They were restored from a copy of an earlier time.
    Older,
    /// The second one grows.
    Grown,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// A test failover, to its end.
    TestFailover,
    /// The test machine is removed.
    Cleanup,
    /// A failover.
    Failover(Shutdown),
    /// A failover whose job is cancelled on its way.
    FailoverAndCancel,
    /// A failover to one of the points of either side.
    FailoverToPoint,
    /// The active machine's host dies, and one of the points must do.
    SecondDisaster,
    /// A planned failover.
    PlannedFailover,
    /// A planned failover whose job is cancelled on its way.
    PlannedFailoverAndCancel,
    /// A planned failover that waits for a person's word before the shutdown, and gets it.
    PlannedWaitAndResume,
    /// One that waits and is cancelled.
    PlannedWaitAndCancel,
    /// The other direction is built up.
    Reprotect,
    /// A reprotect whose job is cancelled on its way.
    ReprotectAndCancel,
    /// The other direction is built up to another host of the site that was left.
    ReprotectElsewhere,
    /// From now on a planned failover goes on to a reprotect by itself, or no longer.
    AutoReverse,
    /// A change of recovery point.
    ChangePoint,
    /// A change of recovery point whose job is cancelled on its way.
    ChangePointAndCancel,
    /// The failover is taken back.
    FailoverCancel,
    /// The failover is made final.
    Commit,
    /// A comparison.
    Resync,
    /// Protection ends, wherever the machine lives, and begins anew.
    DisableAndEnable,
    /// A failover becomes a migration without return; its owner goes back by hand.
    CompleteMigration,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// The config server dies and comes back.
    KillServer,
    /// The role of a site's host dies and comes back.
    KillRole(Site),
    /// The host of a site loses its power.
    PowerCut(Site),
    /// The host of a site boots again, and its role starts at once.
    Reboot(Site),
    /// Host and config server of the recovery site go down together.
    RecoverySiteDown,
    /// The store's disk of a site is full for a while.
    FillDisk(Site),
    /// The link is cut for a while.
    CutLink(LinkState),
    /// The link breaks while a cut is being sent, and comes back.
    BreakAtCut,
    /// The snapshot of the next cut is full before it is read.
    BreakSnapshot,
    /// The machine's disk cannot be read, once.
    FailRead,
    /// The guest does not shut down when it is asked to.
    GuestGoesDeaf,
    /// Frames of an epoch that has ended reach the stores.
    LateFrames,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// The live guest writes, in several places.
    Write,
    /// The live guest discards.
    Trim,
    /// Nothing, for a while.
    Wait,
    /// An operator asks for something.
    Ask(Asked),
    /// An operator asks for whatever leads on in the circle: failover, commit, reprotect.
    Onward,
    /// Something goes wrong.
    Suffer(Mishap),
    /// Every role that is dead comes back, and the link.
    Heal,
    /// The active machine ends and is started again.
    RestartMachine,
    /// A disk of the machine grows.
    Grow,
    /// Something happens to the disks of the machine that was left.
    StaleDisks(Stale),
}

const COMMON: &[Deed] = &[
    Deed::Write,
    Deed::Write,
    Deed::Trim,
    Deed::Wait,
    Deed::Ask(Asked::TestFailover),
    Deed::Ask(Asked::Cleanup),
    Deed::Ask(Asked::Failover(Shutdown::First)),
    Deed::Ask(Asked::Failover(Shutdown::First)),
    Deed::Ask(Asked::Failover(Shutdown::Leave)),
    Deed::Ask(Asked::FailoverAndCancel),
    Deed::Ask(Asked::FailoverToPoint),
    Deed::Ask(Asked::SecondDisaster),
    Deed::Ask(Asked::PlannedFailover),
    Deed::Ask(Asked::PlannedFailoverAndCancel),
    Deed::Ask(Asked::PlannedWaitAndResume),
    Deed::Ask(Asked::PlannedWaitAndCancel),
    Deed::Ask(Asked::Reprotect),
    Deed::Ask(Asked::ReprotectAndCancel),
    Deed::Ask(Asked::ReprotectElsewhere),
    Deed::Ask(Asked::AutoReverse),
    Deed::Ask(Asked::ChangePoint),
    Deed::Ask(Asked::ChangePointAndCancel),
    Deed::Ask(Asked::FailoverCancel),
    Deed::Ask(Asked::FailoverCancel),
    Deed::Ask(Asked::Commit),
    Deed::Ask(Asked::Resync),
    Deed::Ask(Asked::DisableAndEnable),
    Deed::Ask(Asked::CompleteMigration),
    Deed::Suffer(Mishap::KillServer),
    Deed::Suffer(Mishap::KillRole(Site::Primary)),
    Deed::Suffer(Mishap::KillRole(Site::Recovery)),
    Deed::Suffer(Mishap::PowerCut(Site::Primary)),
    Deed::Suffer(Mishap::PowerCut(Site::Recovery)),
    Deed::Suffer(Mishap::Reboot(Site::Primary)),
    Deed::Suffer(Mishap::Reboot(Site::Recovery)),
    Deed::Suffer(Mishap::RecoverySiteDown),
    Deed::Suffer(Mishap::FillDisk(Site::Primary)),
    Deed::Suffer(Mishap::FillDisk(Site::Recovery)),
    Deed::Suffer(Mishap::CutLink(LinkState::Hangs)),
    Deed::Suffer(Mishap::CutLink(LinkState::Refuses)),
    Deed::Suffer(Mishap::CutLink(LinkState::Refuses)),
    Deed::Suffer(Mishap::BreakAtCut),
    Deed::Suffer(Mishap::BreakAtCut),
    Deed::Suffer(Mishap::BreakSnapshot),
    Deed::Suffer(Mishap::FailRead),
    Deed::Suffer(Mishap::GuestGoesDeaf),
    Deed::Suffer(Mishap::LateFrames),
    Deed::Heal,
    Deed::RestartMachine,
    Deed::Grow,
    Deed::StaleDisks(Stale::Gone),
    Deed::StaleDisks(Stale::OneGone),
    Deed::StaleDisks(Stale::Replaced),
    Deed::StaleDisks(Stale::Older),
    Deed::StaleDisks(Stale::Grown),
];

/// One of so many deeds leads on in the circle: by chance alone few histories came round.
const ONWARD_ONE_OF: u64 = 3;

/// In one of so many histories the primary site has a second host, and in one of so many the
/// policy reverses by itself.
const SPARE_ONE_OF: u64 = 3;
const AUTO_REVERSE_ONE_OF: u64 = 4;
/// Bytes of a spool that is soon full, and of one that never is; a third of the histories has no
/// spool.
const SPOOL_SMALL: u64 = 48 << 10;
const SPOOL_ROOMY: u64 = 1 << 30;
/// Makes another draw of a history's seed.
const SPOOL_DRAW: u64 = 0x5900_1000;

/// What came of a history.
#[derive(Clone, Debug)]
pub struct Told {
    /// What happened, in order, with the world's time in milliseconds.
    pub deeds: Vec<(u64, Deed)>,
    /// What was violated.
    pub violations: Vec<String>,
    /// Points whose every byte was compared.
    pub points_checked: u64,
    /// The jobs that ran, how they ended, and the code of what went wrong with each.
    pub jobs: Vec<(Scenario, RunState, Option<String>)>,
}

/// Lives through the history of `seed`.
pub async fn live(seed: u64, mistakes: Mistakes) -> Told {
    let mut random = Seeded::new(seed);
    let mut world = World::new(mistakes).await;
    let mut deeds = Vec::new();
    // Drawn apart: what is done in a history does not depend on it.
    match Seeded::new(seed ^ SPOOL_DRAW).below(3) {
        0 => {}
        1 => world.spool_set(SPOOL_SMALL).await,
        _ => world.spool_set(SPOOL_ROOMY).await,
    }
    if random.below(SPARE_ONE_OF) == 0 {
        world.spare_join().await;
    }
    if random.below(AUTO_REVERSE_ONE_OF) == 0 {
        world.policy_set(true).await;
    }
    world.write(&mut random);
    world.protect(&mut random).await;
    for _ in 0..LENGTH {
        let deed = match random.below(ONWARD_ONE_OF) {
            0 => Deed::Onward,
            // A flush that is left out shows at a power cut only.
            1 if mistakes.skip_a_flush => Deed::Suffer(Mishap::PowerCut(Site::Recovery)),
            _ => COMMON[random.below(COMMON.len() as u64) as usize],
        };
        deeds.push((world.time.ms(), deed));
        world.enact(deed, &mut random).await;
        world.protect_again(&mut random).await;
        world.write(&mut random);
        let pause = random.below(1_500);
        world.wait(pause).await;
        world.check_often().await;
        if !world.ledger.violations().is_empty() {
            break;
        }
    }
    world.settle().await;
    let (violations, points_checked) = (world.ledger.violations(), world.ledger.points_checked());
    let control = world.control();
    let listed = control.job_list(world.vault, &JobFilter::default()).await;
    let jobs = listed.expect("the database works");
    let why = |job: &JobView| job.errors.last().map(|problem| problem.code.to_string());
    let jobs = jobs.iter().map(|job| (job.scenario, job.state, why(job))).collect();
    Told { deeds, violations, points_checked, jobs }
}

impl World {
    /// A world whose machine has been protected for a while and has written since; its two disks
    /// have `sizes` in bytes, or the usual ones.
    pub async fn replicated(sizes: Option<[u64; 2]>, random: &mut Seeded) -> World {
        let mut world = match sizes {
            Some(sizes) => World::sized(Mistakes::default(), sizes).await,
            None => World::new(Mistakes::default()).await,
        };
        world.write(random);
        world.protect(random).await;
        world.wait(5_000).await;
        world.write(random);
        world
    }

    /// Protects the machine and waits until it is.
    pub async fn protect(&mut self, random: &mut Seeded) {
        if self.enable().await.is_none() {
            return;
        }
        self.mistake().await;
        let protected = async |world: &World| {
            let view = world.view().await;
            view.is_some_and(|view| view.state.protection == Protection::Protected)
        };
        let steps = 300 + random.below(100) as usize;
        self.reaches(steps, protected).await;
    }

    /// Makes the stores wrong, where that was asked for.
    pub async fn mistake(&mut self) {
        let (Some(item), Some(mutation)) = (self.item, self.mistakes.store) else { return };
        for store in SITES.map(|site| self.store(site)).into_iter().flatten() {
            for _ in 0..100 {
                let set = store.with(item, move |item| {
                    item.set_mutation(mutation);
                    Ok(())
                });
                // A host that was never a target has no replica.
                if set.await.is_ok() {
                    break;
                }
                self.step().await;
            }
        }
    }

    /// What leads on from here.
    async fn onward(&self, random: &mut Seeded) -> Option<Asked> {
        let drawn = random.below(4);
        let state = self.view().await?.state;
        let mistaken = self.mistakes != Mistakes::default();
        match state.protection {
            Protection::Protected => Some(match drawn {
                0 => Asked::Failover(Shutdown::First),
                1 => Asked::PlannedWaitAndResume,
                2 if state.commit != Commit::Done => Asked::Commit,
                _ => Asked::PlannedFailover,
            }),
            Protection::FailedOver { .. } => Some(Asked::Commit),
            // A mistake shows where the circle comes round.
            Protection::Committed { .. } if mistaken => Some(Asked::Reprotect),
            Protection::Committed { .. } => Some(match random.below(8) {
                0 => Asked::SecondDisaster,
                1 => Asked::FailoverToPoint,
                2 | 3 => Asked::ReprotectElsewhere,
                4 => Asked::PlannedFailover,
                _ => Asked::Reprotect,
            }),
            Protection::Reprotecting { .. } => match random.below(8) {
                0 => Some(Asked::SecondDisaster),
                1 => Some(Asked::FailoverToPoint),
                _ => None,
            },
            Protection::Enabling { .. }
            | Protection::InitialReplication { .. }
            | Protection::Resynchronizing { .. }
            | Protection::FailingOver { .. }
            | Protection::ChangingPoint { .. }
            | Protection::Disabling { .. }
            | Protection::Removed => None,
        }
    }

    /// Does one thing. Requests that the state does not allow are refused, and that is that.
    pub async fn enact(&mut self, deed: Deed, random: &mut Seeded) {
        match deed {
            Deed::Write => (0..8).for_each(|_| self.write(random)),
            Deed::Trim => self.trim(random),
            Deed::Wait => self.wait(500 + random.below(4_000)).await,
            Deed::Ask(asked) => self.operate(asked, random).await,
            Deed::Onward => {
                // Who wants to get on sees to it that nobody is dead.
                if random.below(3) > 0 {
                    self.heal().await;
                    self.wait(random.below(2_000)).await;
                    self.owner_cares().await;
                }
                match self.onward(random).await {
                    Some(asked) => self.operate(asked, random).await,
                    None => self.wait(500 + random.below(4_000)).await,
                }
            }
            Deed::Suffer(mishap) => self.suffer(mishap, random).await,
            Deed::Heal => self.heal().await,
            Deed::RestartMachine => self.restart_machine(random).await,
            Deed::Grow => self.grow(),
            Deed::StaleDisks(what) => self.stale_disks(what, random).await,
        }
    }

    /// Lets an operator ask for something.
    async fn operate(&mut self, asked: Asked, random: &mut Seeded) {
        match asked {
            Asked::TestFailover => self.test_failover(random).await,
            Asked::Cleanup => self.cleanup(random).await,
            Asked::Failover(shutdown) => {
                self.failover(random, PointChoice::Latest, shutdown, None).await;
            }
            Asked::FailoverAndCancel => {
                let after = random.below(1_200);
                self.failover(random, PointChoice::Latest, Shutdown::First, Some(after)).await;
            }
            Asked::FailoverToPoint => {
                if let Some(point) = self.point(random).await {
                    let choice = PointChoice::Custom(point);
                    self.failover(random, choice, Shutdown::First, None).await;
                }
            }
            Asked::SecondDisaster => self.second_disaster(random).await,
            Asked::PlannedFailover => self.planned_failover(random, false, None).await,
            Asked::PlannedFailoverAndCancel => {
                let after = random.below(3_000);
                self.planned_failover(random, false, Some(after)).await;
            }
            Asked::PlannedWaitAndResume => self.planned_failover(random, true, None).await,
            Asked::PlannedWaitAndCancel => {
                let after = 2_000 + random.below(4_000);
                self.planned_failover(random, true, Some(after)).await;
            }
            Asked::AutoReverse => self.policy_set(!self.auto_reverse).await,
            Asked::ReprotectElsewhere => self.reprotect_elsewhere(random).await,
            Asked::Reprotect => self.reprotect(random, None).await,
            Asked::ReprotectAndCancel => {
                let after = random.below(2_000);
                self.reprotect(random, Some(after)).await;
            }
            Asked::ChangePoint => self.change_point(random, None).await,
            Asked::ChangePointAndCancel => {
                let after = random.below(800);
                self.change_point(random, Some(after)).await;
            }
            Asked::FailoverCancel => self.failover_cancel(random).await,
            Asked::Commit => self.commit(random).await,
            Asked::Resync => self.resync().await,
            Asked::DisableAndEnable => self.disable_and_enable(random).await,
            Asked::CompleteMigration => self.complete_migration(random).await,
        }
    }

    /// Lets something go wrong.
    async fn suffer(&mut self, mishap: Mishap, random: &mut Seeded) {
        match mishap {
            Mishap::KillServer => {
                self.server_kill().await;
                self.wait(random.below(4_000)).await;
                self.heal().await;
            }
            Mishap::KillRole(site) => {
                self.role_kill(site).await;
                self.away(random).await;
            }
            Mishap::PowerCut(site) => {
                // Only a store that takes data has much to flush.
                let live_at = self.ledger.live_at().unwrap_or(Site::Primary);
                let site = if self.mistakes.skip_a_flush { other(live_at) } else { site };
                let disk = self.disk(site).now();
                if self.mistakes.skip_a_flush {
                    disk.lose_sync(LostSync { nth: disk.syncs() + random.below(8) as usize });
                }
                self.wait(random.below(3_000)).await;
                self.power_cut(site, random).await;
                self.away(random).await;
            }
            Mishap::Reboot(site) => {
                self.reboot(site).await;
                self.role_start(site);
                self.wait(random.below(2_000)).await;
            }
            Mishap::RecoverySiteDown => {
                self.server_kill().await;
                self.power_cut(Site::Recovery, random).await;
                self.wait(random.below(4_000)).await;
                self.heal().await;
            }
            Mishap::FillDisk(site) => {
                self.disk(site).set_full(true);
                self.wait(random.below(6_000)).await;
                self.disk(site).set_full(false);
            }
            Mishap::CutLink(state) => {
                self.link_set(state);
                self.wait(500 + random.below(6_000)).await;
                self.write(random);
                if random.below(2) == 0 {
                    self.link_set(LinkState::Open);
                }
            }
            Mishap::BreakAtCut => {
                self.link_breaks_at_cut();
                self.wait(2_500).await;
                self.link_set(LinkState::Open);
                self.wait(2_500).await;
            }
            Mishap::BreakSnapshot => {
                let reads = random.below(8);
                self.live_disks().inspect(|disks| disks.break_snapshot_after(reads));
            }
            Mishap::FailRead => {
                let reads = random.below(8);
                self.live_disks().inspect(|disks| disks.fail_read_after(reads));
            }
            Mishap::GuestGoesDeaf => self.guests_answer(OnShutdown::Ignores),
            Mishap::LateFrames => self.late_frames().await,
        }
    }

    /// Somebody is dead for a while, and perhaps longer.
    async fn away(&mut self, random: &mut Seeded) {
        self.wait(random.below(4_000)).await;
        self.write(random);
        if random.below(2) == 0 {
            self.heal().await;
            self.mistake().await;
        }
    }

    /// The disks of the machine that was started last.
    fn live_disks(&self) -> Option<MemoryMachine> {
        let site = self.ledger.live_at().unwrap_or(Site::Primary);
        self.machines(site).disks(&self.owned(site))
    }

    /// What every guest does when it is asked to shut down.
    pub(super) fn guests_answer(&self, how: OnShutdown) {
        for site in SITES {
            let (machines, machine) = (self.machines(site), self.owned(site));
            if machines.disks(&machine).is_some() {
                machines.set_on_shutdown(&machine, how);
            }
        }
    }
}

/// Lives through the histories of `seeds`, each in a world of its own, until `enough` of them
/// violated something. Returns what came of each.
pub fn live_all(
    seeds: impl IntoIterator<Item = u64>,
    mistakes: impl Fn(u64) -> Mistakes + Sync,
    enough: usize,
) -> Vec<(u64, Told)> {
    let live_one = |seed| (seed, super::simulate(live(seed, mistakes(seed))));
    crowd(seeds, live_one, |told: &[(u64, Told)]| {
        told.iter().filter(|(_, told)| !told.violations.is_empty()).count() >= enough
    })
}

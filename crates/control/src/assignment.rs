//! Computes a host's whole assignment from the plans of its items. The only maker of permits.

use crate::clock::PermitSigner;
use crate::plan::{End, InstancePlan, Left, RunPlan, TargetRun, other};
use crate::store::{self, Conn, StoreError, hosts::HostRow, items::ItemRow};
use leeward_model::{
    Branch, Commit, Epoch, HostId, POINT_INTERVAL_MIN, PermitTerms, Policy, Protection, Site,
    StartPermit, TimelineId,
};
use leeward_wire::message::{
    Assignment, InstanceDuty, ItemDuty, OtherStore, Purpose, RETENTION_FROZEN_SECONDS, SourceDuty,
    SourceRun, TargetDuty,
};

/// The assignment of `host`, or none when it is not registered.
pub(crate) async fn of_host(
    conn: &mut Conn,
    host: HostId,
    signer: &dyn PermitSigner,
) -> Result<Option<Assignment>, StoreError> {
    let Some(row) = store::hosts::find(conn, host).await? else { return Ok(None) };
    let mut duties = Vec::new();
    for item in store::items::of_host(conn, host).await? {
        let policy = store::policies::find(conn, item.vault, &item.policy).await?;
        let policy = policy.map(|row| row.spec.policy).unwrap_or_default();
        let mut addresses = [None, None];
        for (site, address) in SITES.into_iter().zip(&mut addresses) {
            let end = store::hosts::find(conn, item.plan.end(site).host).await?;
            *address = end.and_then(|end| end.data_address);
        }
        let duty = Duty { item: &item, policy: &policy, host: &row, addresses, signer };
        if let Some(duty) = duty.compute() {
            duties.push(duty);
        }
    }
    Ok(Some(Assignment { generation: row.generation, duties }))
}

const SITES: [Site; 2] = [Site::Primary, Site::Recovery];

struct Duty<'a> {
    item: &'a ItemRow,
    policy: &'a Policy,
    host: &'a HostRow,
    /// Where the primary and the recovery host are dialled.
    addresses: [Option<String>; 2],
    signer: &'a dyn PermitSigner,
}

impl Duty<'_> {
    fn end(&self, site: Site) -> &End {
        self.item.plan.end(site)
    }

    fn address(&self, site: Site) -> Option<&String> {
        match site {
            Site::Primary => self.addresses[0].as_ref(),
            Site::Recovery => self.addresses[1].as_ref(),
        }
    }

    /// The sites that this host stands for, the target first: usually one.
    fn sites(&self) -> impl Iterator<Item = Site> + Clone {
        let target = self.item.target_site();
        [target, other(target)].into_iter().filter(|site| self.end(*site).host == self.host.id)
    }

    fn compute(&self) -> Option<ItemDuty> {
        let sites = self.sites();
        // On one host for both sites the live machine comes first: there is one entry for it.
        let source = sites.clone().filter_map(|site| self.source(site)).max_by_key(|duty| {
            matches!(duty.run, SourceRun::Replicate { .. } | SourceRun::Live { .. })
        });
        let source = source.or_else(|| self.left());
        let target = sites.clone().find_map(|site| self.target(site));
        let target = target.or_else(|| self.left_store());
        let here = |plan: &&InstancePlan| sites.clone().any(|site| site == plan.site);
        let instances: Vec<_> = (self.item.plan.instances.iter())
            .filter(here)
            .map(|instance| self.instance(instance))
            .collect();
        if source.is_none() && target.is_none() && instances.is_empty() {
            return None;
        }
        Some(ItemDuty {
            item: self.item.id,
            vault: self.item.vault,
            name: self.item.name.clone(),
            epoch: self.epoch(),
            source,
            target,
            instances,
        })
    }

    /// A source that is not told of its fence must not act under the epoch that fenced it.
    fn epoch(&self) -> Epoch {
        let to = self.item.target_site();
        let target = self.end(to);
        let made = self.item.plan.instances.iter().any(|plan| plan.site == to);
        let receives = target.host == self.host.id
            && (target.replica != TargetRun::Unassigned || made || target.run != target.rest());
        let source = self.end(other(to));
        let acts = matches!(
            source.run,
            RunPlan::Replicate { .. } | RunPlan::Live { .. } | RunPlan::ShutDown { .. }
        );
        match source.host == self.host.id && acts && !receives {
            true => self.item.plan.branch.epoch,
            false => self.item.state.epoch,
        }
    }

    fn source(&self, site: Site) -> Option<SourceDuty> {
        let plan = &self.item.plan;
        let end = self.end(site);
        let permit = || Some(self.permit(&end.machine, plan.branch.timeline, plan.branch.epoch));
        let mut branch = plan.branch;
        let run = match end.run {
            RunPlan::Unassigned => return None,
            RunPlan::Replicate { start } => SourceRun::Replicate { permit: permit(), start },
            RunPlan::ShutDown { job, timeout_ms, power_off, copy, needs_point } => {
                SourceRun::ShutDown { job, timeout_ms, power_off, copy, needs_point }
            }
            RunPlan::Fenced => SourceRun::Fenced,
            RunPlan::Seed { job, base, .. } => {
                branch = self.store_branch(site);
                SourceRun::Seed { job, base }
            }
            RunPlan::Live { start } => SourceRun::Live { permit: permit(), start },
            RunPlan::Release => SourceRun::Release,
            RunPlan::Leave => SourceRun::Leave,
        };
        let to = match end.run {
            RunPlan::Seed { .. } | RunPlan::Live { .. } => site,
            _ => other(site),
        };
        let target = self.end(to).host;
        let dialled = self.address(to).filter(|_| target != self.host.id);
        let interval = self.policy.point_interval_ms;
        let shortest = u64::try_from(POINT_INTERVAL_MIN.as_millis()).unwrap_or(interval);
        Some(SourceDuty {
            machine: end.machine.clone(),
            site,
            branch,
            target_host: target,
            target_address: dialled.cloned(),
            point_interval_ms: if plan.hurry { interval.min(shortest) } else { interval },
            run,
            resync: plan.resync,
            resync_full: plan.resync_full,
            resync_threshold_percent: self.policy.resync_threshold_percent,
            resync_allowed: !plan.resync_waits,
            bandwidth: self.policy.bandwidth.clone(),
        })
    }

    /// A machine that stayed on a host which is no end any more.
    fn left(&self) -> Option<SourceDuty> {
        let left: &Left = self.item.plan.left.iter().find(|left| left.host == self.host.id)?;
        Some(SourceDuty {
            machine: left.machine.clone(),
            site: left.site,
            branch: self.item.plan.branch,
            target_host: self.host.id,
            target_address: None,
            point_interval_ms: self.policy.point_interval_ms,
            run: SourceRun::Fenced,
            resync: 0,
            resync_full: 0,
            resync_threshold_percent: self.policy.resync_threshold_percent,
            resync_allowed: true,
            bandwidth: self.policy.bandwidth.clone(),
        })
    }

    /// The store of such a host, while copies lie there that were given up, or until its points are
    /// deleted with all others. It takes nothing, and makes no part of the item if that is gone.
    fn left_store(&self) -> Option<TargetDuty> {
        let left: &Left = self.item.plan.left.iter().find(|left| left.host == self.host.id)?;
        let delete = left.delete_since.is_some();
        if left.given_up.is_empty() && !delete {
            return None;
        }
        let other_store =
            OtherStore { host: self.end(left.site).host, address: None, waits: false };
        Some(TargetDuty {
            site: left.site,
            source_host: self.end(other(left.site)).host,
            source_address: None,
            branch: self.item.plan.branch,
            fence: self.epoch(),
            receive: false,
            retention_seconds: RETENTION_FROZEN_SECONDS,
            delete,
            other_store: Some(other_store),
            retired: left.given_up.clone(),
        })
    }

    /// The timeline whose data the store of `site` takes, or that of a half-made copy there, of
    /// which it says how far it came.
    fn store_branch(&self, site: Site) -> Branch {
        let end = self.end(site);
        match (end.run, end.half) {
            (RunPlan::Seed { timeline, base, .. }, _) => {
                Branch { timeline, parent: base, epoch: self.item.state.epoch }
            }
            (_, Some(half)) if end.replica == TargetRun::Hold => half.branch,
            _ => self.item.plan.branch,
        }
    }

    fn target(&self, site: Site) -> Option<TargetDuty> {
        let end = self.end(site);
        let (receive, delete) = match end.replica {
            TargetRun::Unassigned => return None,
            TargetRun::Receive => (true, false),
            TargetRun::Hold => (false, false),
            TargetRun::Delete => (false, true),
        };
        let seeds = matches!(end.run, RunPlan::Seed { .. });
        let from = if seeds { site } else { other(site) };
        // Whoever can be dialled is dialled; a target that cannot be dials its source.
        let dials = self.address(site).is_none() && self.end(from).host != self.host.id;
        Some(TargetDuty {
            site,
            source_host: self.end(from).host,
            source_address: self.address(from).filter(|_| dials).cloned(),
            branch: self.store_branch(site),
            fence: self.epoch(),
            receive,
            retention_seconds: self.retention_seconds(site),
            delete,
            other_store: self.other_store(site),
            retired: end.given_up.clone(),
        })
    }

    /// The store of the other end than `site`, from which the item's hash key comes, or to which
    /// it goes. Keys go between hosts only.
    fn other_store(&self, site: Site) -> Option<OtherStore> {
        let end = self.end(other(site));
        if !end.has_store() || end.host == self.host.id {
            return None;
        }
        // A seed comes before any session between the two. Later the data's session does it.
        let waits = matches!(end.run, RunPlan::Seed { .. }) && self.address(site).is_none();
        Some(OtherStore { host: end.host, address: self.address(other(site)).cloned(), waits })
    }

    fn retention_seconds(&self, site: Site) -> u64 {
        match self.item.state.protection {
            Protection::FailingOver { .. }
            | Protection::FailedOver { .. }
            | Protection::ChangingPoint { .. } => RETENTION_FROZEN_SECONDS,
            // Until the commit nobody gives up the points that the machine was started from.
            _ if site != self.item.target_site() && self.item.state.commit != Commit::Done => {
                RETENTION_FROZEN_SECONDS
            }
            _ if site != self.item.target_site() => self.policy.keep_after_commit_seconds,
            Protection::Committed { .. } => self.policy.keep_after_commit_seconds,
            Protection::Enabling { .. }
            | Protection::InitialReplication { .. }
            | Protection::Protected
            | Protection::Resynchronizing { .. }
            | Protection::Reprotecting { .. }
            | Protection::Disabling { .. }
            | Protection::Removed => self.policy.retention_seconds,
        }
    }

    fn instance(&self, plan: &InstancePlan) -> InstanceDuty {
        let permit = || self.permit(&plan.id.to_string(), plan.timeline, self.epoch());
        let settles = plan.purpose == Purpose::Failover;
        InstanceDuty {
            instance: plan.id,
            purpose: plan.purpose,
            point: plan.point,
            position: plan.position,
            timeline: plan.timeline,
            stage: plan.stage,
            permit: plan.permitted.then(permit),
            probe: plan.probe,
            keep_as: plan.keep_as.clone(),
            settle_as: settles.then(|| self.end(plan.site).machine.clone()),
            changes: plan.changes.clone(),
        }
    }

    fn permit(&self, machine: &str, timeline: TimelineId, epoch: Epoch) -> StartPermit {
        let terms = PermitTerms {
            item: self.item.id,
            timeline,
            epoch,
            machine: machine.to_owned(),
            host: self.host.id,
            host_boot: self.host.boot.clone(),
        };
        let signature = self.signer.sign(&terms.to_signed_bytes());
        StartPermit { terms, signature }
    }
}

//! Computes a host's whole assignment from the plans of its items. The only maker of permits.

use crate::clock::PermitSigner;
use crate::plan::{InstancePlan, RunPlan, TargetRun};
use crate::store::{self, Conn, StoreError, hosts::HostRow, items::ItemRow};
use leeward_model::{HostId, PermitTerms, Policy, Protection, Site, StartPermit, TimelineId};
use leeward_wire::message::{
    Assignment, InstanceDuty, ItemDuty, SourceDuty, SourceRun, TargetDuty,
};

/// Points of a failed-over item do not age until it is committed: a century.
const FROZEN_SECONDS: u64 = 100 * 365 * 86_400;

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
        let target = store::hosts::find(conn, item.plan.target.host).await?;
        let address = target.and_then(|target| target.data_address).unwrap_or_default();
        let duty = Duty { item: &item, policy: &policy, host: &row, address, signer };
        if let Some(duty) = duty.compute() {
            duties.push(duty);
        }
    }
    Ok(Some(Assignment { generation: row.generation, duties }))
}

struct Duty<'a> {
    item: &'a ItemRow,
    policy: &'a Policy,
    host: &'a HostRow,
    address: String,
    signer: &'a dyn PermitSigner,
}

impl Duty<'_> {
    fn compute(&self) -> Option<ItemDuty> {
        let plan = &self.item.plan;
        let source = (plan.source.host == self.host.id).then(|| self.source()).flatten();
        let target = (plan.target.host == self.host.id).then(|| self.target()).flatten();
        let instances = match plan.target.host == self.host.id {
            true => plan.instances.iter().map(|instance| self.instance(instance)).collect(),
            false => Vec::new(),
        };
        if source.is_none() && target.is_none() && instances.is_empty() {
            return None;
        }
        // A source that is not told of its fence must not act under the epoch that fenced it.
        let fenced = matches!(plan.source.run, RunPlan::Fenced | RunPlan::Release);
        let epoch = match target.is_none() && !fenced {
            true => plan.source.branch.epoch,
            false => self.item.state.epoch,
        };
        Some(ItemDuty {
            item: self.item.id,
            vault: self.item.vault,
            name: self.item.name.clone(),
            epoch,
            source,
            target,
            instances,
        })
    }

    fn source(&self) -> Option<SourceDuty> {
        let plan = &self.item.plan.source;
        let run = match plan.run {
            RunPlan::Unassigned => return None,
            RunPlan::Replicate { start } => {
                let branch = plan.branch;
                let permit = self.permit(&self.item.machine, branch.timeline, branch.epoch);
                SourceRun::Replicate { permit: Some(permit), start }
            }
            RunPlan::ShutDown { job, timeout_ms } => {
                SourceRun::ShutDown { job, timeout_ms, power_off: false }
            }
            RunPlan::Fenced => SourceRun::Fenced,
            RunPlan::Release => SourceRun::Release,
        };
        Some(SourceDuty {
            machine: self.item.machine.clone(),
            site: Site::Primary,
            branch: plan.branch,
            target_host: self.item.plan.target.host,
            target_address: Some(self.address.clone()),
            point_interval_ms: self.policy.point_interval_ms,
            run,
            resync: plan.resync,
        })
    }

    fn target(&self) -> Option<TargetDuty> {
        let (receive, delete) = match self.item.plan.target.wanted {
            TargetRun::Unassigned => return None,
            TargetRun::Receive => (true, false),
            TargetRun::Hold => (false, false),
            TargetRun::Delete => (false, true),
        };
        let retention_seconds = match self.item.state.protection {
            Protection::FailingOver { .. }
            | Protection::FailedOver { .. }
            | Protection::ChangingPoint { .. } => FROZEN_SECONDS,
            Protection::Committed { .. } => self.policy.keep_after_commit_seconds,
            Protection::Enabling { .. }
            | Protection::InitialReplication { .. }
            | Protection::Protected
            | Protection::Resynchronizing { .. }
            | Protection::Reprotecting { .. }
            | Protection::Disabling { .. }
            | Protection::Removed => self.policy.retention_seconds,
        };
        Some(TargetDuty {
            site: Site::Recovery,
            source_host: self.item.plan.source.host,
            source_address: None,
            branch: self.item.plan.source.branch,
            fence: self.item.state.epoch,
            receive,
            retention_seconds,
            delete,
        })
    }

    fn instance(&self, plan: &InstancePlan) -> InstanceDuty {
        let epoch = self.item.state.epoch;
        let permit = || self.permit(&plan.id.to_string(), plan.timeline, epoch);
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
            settle_as: None,
        }
    }

    fn permit(
        &self,
        machine: &str,
        timeline: TimelineId,
        epoch: leeward_model::Epoch,
    ) -> StartPermit {
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

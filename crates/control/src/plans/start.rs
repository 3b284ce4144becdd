//! Starts a job that does something with all machines of a plan. Which of them take part is
//! decided here; how it goes on, in `jobs::recovery_plan`.

use super::{GroupKind, Verb, auto_reverse, busy, fits, member_rows, plan_row};
use crate::error::Result;
use crate::items::{PlannedSpec, ReprotectSpec, Shutdown, SyncOption};
use crate::jobs::kinds::{Member, Progress, RecoveryPlan, RunAction, RunGroup, TakenBack};
use crate::jobs::{Request, Scenario, TargetKind};
use crate::store::plans::PlanRow;
use crate::store::{self, Conn, items::ItemRow, jobs::JobFacts, jobs::JobRow, jobs::Lane};
use crate::{Control, ControlError};
use leeward_durable::create;
use leeward_model::{Direction, JobId, PointChoice, Site, VaultId};
use serde::{Deserialize, Serialize};

/// What to do with the machines of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanAsk {
    /// What.
    pub verb: Verb,
    /// In which direction; needed when the machines run at different sites.
    pub direction: Option<Direction>,
    /// From which points; a chosen point is one machine's and not possible here.
    pub choice: PointChoice,
    /// The network of test machines; none: as it is set for each.
    #[serde(default)]
    pub network: Option<String>,
    /// Whether an unplanned failover shuts the machines down first.
    pub shutdown: Shutdown,
    /// What a planned failover sends before the machines are shut down.
    pub sync: SyncOption,
    /// Whether the boot groups are taken in the reverse order (F-162).
    pub reverse_order: bool,
    /// What the operator says about it.
    pub comments: String,
}

impl PlanAsk {
    /// What is asked when nothing else is said.
    pub fn new(verb: Verb) -> PlanAsk {
        PlanAsk {
            verb,
            direction: None,
            choice: PointChoice::Latest,
            network: None,
            shutdown: Shutdown::First,
            sync: SyncOption::ForDownTime,
            reverse_order: false,
            comments: String::new(),
        }
    }

    /// The same, of one machine.
    fn of_item(&self) -> Request {
        match self.verb {
            Verb::TestFailover => {
                Request::TestFailover { choice: self.choice, network: self.network.clone() }
            }
            Verb::TestCleanup => Request::Cleanup { comments: self.comments.clone() },
            Verb::PlannedFailover => Request::PlannedFailover {
                spec: PlannedSpec { sync: self.sync, ..PlannedSpec::default() },
            },
            Verb::UnplannedFailover => {
                Request::Failover { choice: self.choice, shutdown: self.shutdown }
            }
            Verb::Commit => Request::Commit,
            Verb::CancelFailover => Request::CancelFailover,
            Verb::Reprotect => Request::Reprotect { spec: ReprotectSpec::default() },
        }
    }
}

fn names<'a>(items: impl Iterator<Item = &'a ItemRow>) -> String {
    items.map(|item| item.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// The direction of a failover: the one that was named, or that of all machines.
fn direction(ask: &PlanAsk, plan: &PlanRow, items: &[ItemRow]) -> Result<Option<Direction>> {
    if !ask.verb.boots() || ask.direction.is_some() {
        return Ok(ask.direction.filter(|_| ask.verb.boots()));
    }
    let at = |site| items.iter().filter(move |item| item.state.active == site);
    let (primary, recovery) = (names(at(Site::Primary)), names(at(Site::Recovery)));
    match (primary.is_empty(), recovery.is_empty()) {
        (_, true) => Ok(Some(Direction::ToRecovery)),
        (true, false) => Ok(Some(Direction::ToPrimary)),
        (false, false) => Err(ControlError::bad_request(format!(
            "the machines of recovery plan {} run at both sites, so failoverDirection is needed: \
             {primary} at the primary, {recovery} at the recovery site",
            plan.name
        ))),
    }
}

/// Why an item takes no part; none when it does (F-072, F-088).
async fn left_out(
    conn: &mut Conn,
    verb: Verb,
    direction: Option<Direction>,
    item: &ItemRow,
) -> Result<Option<String>> {
    let to = direction.map(Direction::target);
    if to == Some(item.state.active) {
        let site = if to == Some(Site::Primary) { "primary" } else { "recovery" };
        return Ok(Some(format!("it runs at the {site} site already")));
    }
    let state = item.state.protection.name();
    if verb.boots() || fits(verb, item, auto_reverse(conn, item).await?) {
        return Ok(None);
    }
    Ok(Some(match verb {
        Verb::TestCleanup => "it has no test machine".to_owned(),
        Verb::Commit => format!("it is {state}: there is nothing to commit"),
        Verb::CancelFailover => format!("it is {state}: there is no failover to take back"),
        Verb::Reprotect => format!("it is {state}: it cannot be reprotected"),
        Verb::TestFailover | Verb::PlannedFailover | Verb::UnplannedFailover => state,
    }))
}

fn groups(plan: &PlanRow, ask: &PlanAsk, direction: Option<Direction>) -> Vec<RunGroup> {
    let mut groups: Vec<RunGroup> = Vec::new();
    let mut boots = 0;
    for group in &plan.groups {
        let applies = |action: &&super::Action| {
            action.verbs.contains(&ask.verb)
                && direction.is_some_and(|one| action.directions.contains(&one))
        };
        let actions = |list: &[super::Action]| {
            list.iter().filter(applies).map(RunAction::of).collect::<Vec<_>>()
        };
        boots += usize::from(group.kind == GroupKind::Boot);
        let name = match group.kind {
            GroupKind::Shutdown => "All groups shutdown".to_owned(),
            GroupKind::Failover => "All groups failover".to_owned(),
            GroupKind::Boot => format!("Group {boots}"),
        };
        // Only machines that start wait for one another.
        let opened = !ask.verb.boots();
        groups.push(RunGroup {
            opened,
            items: group.items.clone(),
            ..RunGroup::new(group.kind, name, actions(&group.before), actions(&group.after))
        });
    }
    if ask.reverse_order {
        let boot = groups.iter().position(|group| group.kind == GroupKind::Boot);
        groups[boot.unwrap_or(0)..].reverse();
    }
    groups
}

/// What is left to take back of a plan's last failover, or of its last test; the last first.
async fn to_take_back(conn: &mut Conn, plan: &PlanRow, verb: Verb) -> Result<Vec<TakenBack>> {
    let (done, undone): (&[Scenario], _) = match verb {
        Verb::TestCleanup => (&[Scenario::TestFailover], Scenario::TestFailoverCleanup),
        Verb::CancelFailover => {
            let failovers = &[Scenario::PlannedFailover, Scenario::UnplannedFailover];
            (failovers, Scenario::CancelFailover)
        }
        _ => return Ok(Vec::new()),
    };
    let ours = |row: &&JobRow| done.contains(&row.facts.scenario) || row.facts.scenario == undone;
    let jobs = store::jobs::of_plan(conn, plan.id).await?;
    let Some(last) = jobs.iter().find(ours) else { return Ok(Vec::new()) };
    // The memory of an older program has nothing to take back.
    let memory = serde_json::from_value(last.record.job.clone());
    Ok(memory.map(|job: RecoveryPlan| job.left_to_take_back()).unwrap_or_default())
}

impl Control {
    /// Does something with all machines of a plan (F-055, F-074, F-162). Machines with which it
    /// makes no sense are left out, and the job says which.
    ///
    /// # Errors
    /// NotFound for the plan; Conflict while another job runs it, or when no machine takes part;
    /// BadRequest when a direction is needed, or a point was chosen.
    pub async fn plan_start(&self, vault: VaultId, name: &str, ask: PlanAsk) -> Result<JobId> {
        if matches!(ask.choice, PointChoice::Custom(_)) {
            let what = "a recovery point is one machine's: a plan takes Latest or LatestProcessed";
            return Err(ControlError::bad_request(what));
        }
        let mut tx = self.store().begin().await?;
        let plan = plan_row(&mut tx, vault, name).await?;
        if let Some(running) = store::jobs::running_plan(&mut tx, plan.id).await? {
            let fails_over = [Scenario::PlannedFailover, Scenario::UnplannedFailover];
            if ask.verb != Verb::CancelFailover || !fails_over.contains(&running.facts.scenario) {
                return Err(busy(&plan, &running));
            }
            drop(tx);
            return Ok(self.job_cancel(vault, running.facts.id).await?.id);
        }
        let row = self.plan_job(&mut tx, &plan, ask).await?;
        store::jobs::insert(&mut tx, &row).await?;
        store::commit(tx).await?;
        self.poke();
        Ok(row.facts.id)
    }

    async fn plan_job(&self, conn: &mut Conn, plan: &PlanRow, ask: PlanAsk) -> Result<JobRow> {
        let items = member_rows(conn, plan).await?;
        let direction = direction(&ask, plan, &items)?;
        let mut members = Vec::new();
        for item in &items {
            let progress = match left_out(conn, ask.verb, direction, item).await? {
                Some(why) => Progress::LeftOut { why },
                None => Progress::Wanted,
            };
            members.push(Member { item: item.id, name: item.name.clone(), progress });
        }
        if !members.iter().any(|member| member.progress == Progress::Wanted) {
            let why = members.iter().filter_map(Member::why_left_out).collect::<Vec<_>>();
            let what = match why.is_empty() {
                true => format!("recovery plan {} has no machines", plan.name),
                false => format!("recovery plan {}: {}", plan.name, why.join("; ")),
            };
            return Err(ControlError::not_now(what));
        }
        let memory = RecoveryPlan {
            name: plan.name.clone(),
            verb: ask.verb,
            request: ask.of_item(),
            groups: groups(plan, &ask, direction),
            members,
            direction,
            taken_back: to_take_back(conn, plan, ask.verb).await?,
        };
        let record = create(&memory, self.now().wall_ms())
            .map_err(|error| ControlError::internal("could not make a job", &error))?;
        let facts = JobFacts {
            id: self.new_id(),
            vault: plan.vault,
            item: None,
            lane: Lane::Plan,
            scenario: ask.verb.scenario(),
            target_kind: TargetKind::RecoveryPlan,
            target_id: plan.id.to_string(),
            target_name: plan.name.clone(),
            comments: ask.comments.clone(),
            request: Some(Request::Plan { ask }),
            parent: None,
        };
        Ok(JobRow { facts, record })
    }

    /// Asks again for what a plan's job was asked for.
    pub(crate) async fn plan_repeat(
        &self,
        vault: VaultId,
        plan: &str,
        ask: PlanAsk,
    ) -> Result<JobId> {
        let gone = || ControlError::not_found("the recovery plan is gone");
        let id = plan.parse().map_err(|_| gone())?;
        let mut tx = self.store().read().await?;
        let row = store::plans::by_id(&mut tx, id).await?.ok_or_else(gone)?;
        drop(tx);
        self.plan_start(vault, &row.name, ask).await
    }
}

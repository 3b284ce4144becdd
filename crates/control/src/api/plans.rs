//! Recovery plans: how they are written, and the verbs on them. How they look is in `plan_view`.

use super::{
    Below,
    direction::asked,
    envelope::{Answer, Refusal},
    items::{choice, shutdown, test_network},
    plan_actions,
    plan_view::view,
    request::{Fields, list, name_in_id},
    routes::Operation as Op,
};
use crate::{
    ControlError, ErrorKind,
    items::SyncOption,
    jobs::{InstantJob, Scenario, TargetKind},
    plans::{GroupInput, GroupKind, ItemRef, PlanAsk, PlanInput, Verb},
};
use leeward_model::{Code, PointChoice};
use serde_json::{Value, json};

/// The contract's words for the kind of machines that a cloud makes; kept and returned.
const MODELS: [&str; 3] = ["NotApplicable", "Classic", "ResourceManager"];

fn wrong<T>(what: impl Into<String>) -> Result<T, ControlError> {
    Err(ControlError::bad_request(what))
}

/// The item that an id, a path or a name of a body means.
fn item(below: &Below<'_>, fields: Fields<'_>) -> Result<ItemRef, ControlError> {
    let id = fields.required("id")?;
    if let Ok(id) = id.parse() {
        return Ok(ItemRef::Id(id));
    }
    let key = &below.vault.key;
    let own = [
        ("subscriptions", &key.subscription),
        ("resourceGroups", &key.resource_group),
        ("vaults", &key.name),
    ];
    for (kind, known) in own {
        let named = id.contains('/').then(|| name_in_id(id, kind)).flatten();
        if named.is_some_and(|name| !name.eq_ignore_ascii_case(known)) {
            let what = format!("{id} is not an item of this vault");
            return Err(ControlError::not_found(what));
        }
    }
    let name = name_in_id(id, "replicationProtectedItems")
        .ok_or_else(|| ControlError::bad_request(format!("{id} names no protected item")))?;
    let fabric = id.contains('/').then(|| name_in_id(id, "replicationFabrics")).flatten();
    Ok(ItemRef::Named { fabric: fabric.map(str::to_owned), name: name.to_owned() })
}

fn group(below: &Below<'_>, fields: Fields<'_>) -> Result<GroupInput, ControlError> {
    let kind = match fields.required("groupType")? {
        text if text.eq_ignore_ascii_case("Shutdown") => GroupKind::Shutdown,
        text if text.eq_ignore_ascii_case("Failover") => GroupKind::Failover,
        text if text.eq_ignore_ascii_case("Boot") => GroupKind::Boot,
        text => return wrong(format!("groupType {text} is not one of Shutdown, Failover, Boot")),
    };
    let items = list(fields, "replicationProtectedItems")?;
    let actions =
        |name| list(fields, name)?.into_iter().map(plan_actions::read).collect::<Result<_, _>>();
    Ok(GroupInput {
        kind,
        items: items.into_iter().map(|one| item(below, one)).collect::<Result<_, _>>()?,
        before: actions("startGroupActions")?,
        after: actions("endGroupActions")?,
    })
}

fn groups(below: &Below<'_>, properties: Fields<'_>) -> Result<Vec<GroupInput>, ControlError> {
    if properties.raw("groups").is_none() {
        return wrong("the field groups is missing");
    }
    list(properties, "groups")?.into_iter().map(|one| group(below, one)).collect()
}

fn fabric(properties: Fields<'_>, field: &str) -> Result<String, ControlError> {
    let id = properties.required(field)?;
    let name = name_in_id(id, "replicationFabrics")
        .ok_or_else(|| ControlError::bad_request(format!("{field} {id} names no fabric")))?;
    Ok(name.to_owned())
}

/// List.
pub(super) async fn list_all(below: &Below<'_>) -> Result<Answer, Refusal> {
    let plans = below.control().plan_list(below.vault.id).await?;
    below.page(plans.iter().map(|plan| view(&below.ids, plan)).collect())
}

/// GET.
pub(super) async fn get(below: &Below<'_>) -> Result<Answer, Refusal> {
    let plan = below.control().plan_get(below.vault.id, below.name("plan")).await?;
    Ok(Answer::Ok(view(&below.ids, &plan)))
}

/// PUT: the whole plan.
pub(super) async fn put(below: &Below<'_>) -> Result<Answer, Refusal> {
    let properties = below.call.properties()?;
    let model = properties.text("failoverDeploymentModel")?.unwrap_or("NotApplicable");
    let known = MODELS.iter().find(|known| known.eq_ignore_ascii_case(model));
    let Some(model) = known else {
        let what = format!("failoverDeploymentModel {model} is not one of {}", MODELS.join(", "));
        return Err(ControlError::bad_request(what).into());
    };
    let details = list(properties, "providerSpecificInput")?;
    let multi = details.iter().find_map(|one| one.raw("primaryZone").or(one.raw("recoveryZone")));
    if multi.is_some() {
        return Err(ControlError::not_supported("zones of a plan are not supported yet").into());
    }
    let input = PlanInput {
        primary: fabric(properties, "primaryFabricId")?,
        recovery: fabric(properties, "recoveryFabricId")?,
        groups: groups(below, properties)?,
        extra: json!({ "failoverDeploymentModel": model }),
    };
    let plan = below.control().plan_put(below.vault.id, below.name("plan"), input).await?;
    noted(below, Scenario::SaveRecoveryPlan, &plan.name).await
}

/// PATCH: all groups anew.
pub(super) async fn patch(below: &Below<'_>) -> Result<Answer, Refusal> {
    let groups = groups(below, below.call.properties()?)?;
    let plan = below.control().plan_groups(below.vault.id, below.name("plan"), groups).await?;
    noted(below, Scenario::SaveRecoveryPlan, &plan.name).await
}

/// DELETE.
pub(super) async fn delete(below: &Below<'_>) -> Result<Answer, Refusal> {
    let control = below.control();
    let plan = control.plan_get(below.vault.id, below.name("plan")).await?;
    control.plan_delete(below.vault.id, &plan.name).await?;
    noted(below, Scenario::DeleteRecoveryPlan, &plan.name).await
}

async fn noted(below: &Below<'_>, scenario: Scenario, name: &str) -> Result<Answer, Refusal> {
    let instant = InstantJob {
        scenario,
        target_kind: TargetKind::RecoveryPlan,
        target_id: name.to_owned(),
        target_name: name.to_owned(),
    };
    let job = below.control().job_note(below.vault.id, instant).await?;
    Ok(below.accepted(below.ids.plan(name), job))
}

/// The verbs on a plan.
pub(super) async fn operate(below: &Below<'_>, op: Op) -> Result<Answer, Refusal> {
    let (control, vault) = (below.control(), below.vault.id);
    let plan = control.plan_get(vault, below.name("plan")).await?;
    let ask = ask(below.call.properties()?, op)?;
    match control.plan_start(vault, &plan.name, ask).await {
        Ok(job) => Ok(below.accepted(below.ids.plan(&plan.name), job)),
        Err(error) => {
            let busy = error.problem.code == Code::ITEM_BUSY.code;
            let mut refusal = Refusal::from(error);
            if let Some((_, job, _)) = plan.running.filter(|_| busy) {
                refusal.target = Some(below.ids.job(job));
            }
            Err(refusal)
        }
    }
}

fn ask(properties: Fields<'_>, op: Op) -> Result<PlanAsk, ControlError> {
    let verb = match op {
        Op::PlanTestFailover => Verb::TestFailover,
        Op::PlanTestCleanup => Verb::TestCleanup,
        Op::PlanPlannedFailover => Verb::PlannedFailover,
        Op::PlanFailover => Verb::UnplannedFailover,
        Op::PlanCommit => Verb::Commit,
        Op::PlanCancel => Verb::CancelFailover,
        Op::PlanReprotect => Verb::Reprotect,
        other => {
            let what = format!("{other:?} is not supported yet");
            return Err(ControlError::not_supported(what));
        }
    };
    let mut ask = PlanAsk::new(verb);
    ask.comments = properties.text("comments")?.unwrap_or_default().to_owned();
    if !verb.boots() {
        return Ok(ask);
    }
    ask.direction = asked(properties)?;
    ask.reverse_order = properties.flag("leewardReverseOrder")?.unwrap_or_default();
    let details = details(properties)?;
    match verb {
        Verb::TestFailover => {
            ask.network = test_network(properties)?;
            ask.choice = same(&details, |one| choice(properties, one))?;
        }
        Verb::UnplannedFailover => {
            ask.choice = same(&details, |one| choice(properties, one))?;
            ask.shutdown = same(&details, |one| shutdown(properties, one))?;
        }
        _ => ask.sync = same(&details, |one| planned(properties, one))?,
    }
    match ask.choice {
        PointChoice::Custom(_) => wrong(
            "a recovery point is one machine's: recoveryPointType of a plan is Latest or \
             LatestProcessed",
        ),
        PointChoice::Latest | PointChoice::LatestProcessed => Ok(ask),
    }
}

/// What is said for each provider; one that says nothing when there is none.
fn details(properties: Fields<'_>) -> Result<Vec<Fields<'_>>, ControlError> {
    let details = list(properties, "providerSpecificDetails")?;
    for one in &details {
        let point = one.text("multiVmSyncPointOption")?.unwrap_or_default();
        let common = one.flag("useMultiVmSyncPoint")?.unwrap_or_default()
            || point.eq_ignore_ascii_case("UseMultiVmSyncRecoveryPoint");
        if common {
            let what = "a point that several machines have in common is not supported yet";
            return Err(ControlError::not_supported(what));
        }
    }
    Ok(if details.is_empty() { vec![Fields::new(&Value::Null)] } else { details })
}

/// What all providers of a request say alike: Leeward has one.
fn same<'a, T: PartialEq>(
    details: &[Fields<'a>],
    read: impl Fn(Fields<'a>) -> Result<T, ControlError>,
) -> Result<T, ControlError> {
    let mut found = None;
    for one in details {
        let value = read(*one)?;
        if found.as_ref().is_some_and(|known| *known != value) {
            return wrong("providerSpecificDetails say different things for several providers");
        }
        found = Some(value);
    }
    found.ok_or_else(|| ControlError::new(ErrorKind::Internal, Code::INTERNAL, "no details"))
}

/// What a planned failover of a plan sends beforehand; it starts from final points alone.
fn planned(properties: Fields<'_>, details: Fields<'_>) -> Result<SyncOption, ControlError> {
    let spec = super::direction::planned_spec(properties, details)?;
    if spec.point.is_some_and(|point| point != PointChoice::Latest) {
        return wrong("a planned failover starts from the final points: leave the choice out");
    }
    for fields in [properties, details] {
        if fields.flag("leewardWaitToComplete")? == Some(true) {
            let what = "leewardWaitToComplete is not supported for plans yet: give the plan a \
                        manual action before its Shutdown group";
            return Err(ControlError::not_supported(what));
        }
    }
    Ok(spec.sync)
}

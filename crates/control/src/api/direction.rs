//! Requests that name a direction or turn it: planned failover, reprotect, and the direction
//! checks that every failover shares. Reads fields by name; what is possible, the core decides.

use super::{
    Below,
    items::choice,
    request::{Fields, name_in_id},
};
use crate::{
    ControlError,
    fabrics::HostView,
    items::{DisableReason, ItemView, PlannedSpec, ReprotectSpec, ResyncTrust, SyncOption},
};
use leeward_model::{Direction, PointChoice, Protection};

/// Fields that name the host to replicate to, the first one that is there counts. The contract's
/// inputs call it master target, agent, alternate provider or host by their kind of site.
const HOST_FIELDS: [&str; 5] = [
    "leewardHost",
    "masterTargetId",
    "reprotectAgentId",
    "providerIdForAlternateRecovery",
    "hvHostVmId",
];

/// The contract's word for a direction.
pub(super) fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::ToRecovery => "PrimaryToRecovery",
        Direction::ToPrimary => "RecoveryToPrimary",
    }
}

/// The direction that a request names.
pub(super) fn asked(properties: Fields<'_>) -> Result<Option<Direction>, ControlError> {
    let Some(text) = properties.text("failoverDirection")? else { return Ok(None) };
    let directions = [Direction::ToRecovery, Direction::ToPrimary];
    let found = directions.into_iter().find(|one| word(*one).eq_ignore_ascii_case(text));
    found.map(Some).ok_or_else(|| {
        ControlError::bad_request(format!(
            "failoverDirection {text} is not one of PrimaryToRecovery, RecoveryToPrimary"
        ))
    })
}

/// The direction that a failover is asked for must be possible. For an item whose direction has
/// turned, the contract's agent flow still says PrimaryToRecovery: that is accepted.
///
/// # Errors
/// BadRequest naming the field.
pub(super) fn check(properties: Fields<'_>, item: &ItemView) -> Result<(), ControlError> {
    match (asked(properties)?, item.state.direction) {
        (Some(Direction::ToPrimary), Direction::ToRecovery) => {
            Err(ControlError::bad_request(format!(
                "failoverDirection is RecoveryToPrimary, but {} is replicated from primary to \
                 recovery",
                item.name
            )))
        }
        (None | Some(_), Direction::ToRecovery | Direction::ToPrimary) => Ok(()),
    }
}

/// As [`check`], of an unplanned failover: a retained point lies where its store is, and so the
/// item's direction does not bind a failover to it after a commit or during a reprotect.
///
/// # Errors
/// BadRequest naming the field.
pub(super) fn check_failover(
    properties: Fields<'_>,
    item: &ItemView,
    choice: PointChoice,
) -> Result<(), ControlError> {
    let after = matches!(
        item.state.protection,
        Protection::Committed { .. } | Protection::Reprotecting { .. }
    );
    match choice {
        PointChoice::Custom(_) if after => asked(properties).map(drop),
        PointChoice::Custom(_) | PointChoice::Latest | PointChoice::LatestProcessed => {
            check(properties, item)
        }
    }
}

/// The direction of a reprotect is the one that it leads to: from where the machine runs to where
/// it came from. Of an item that has turned before, the mirrored word is accepted as in [`check`].
///
/// # Errors
/// BadRequest naming the field.
fn check_reverse(properties: Fields<'_>, item: &ItemView) -> Result<(), ControlError> {
    // While it is built up, and once it is there, the item has the direction already.
    let before = match item.state.protection {
        Protection::Reprotecting { .. } | Protection::Protected => item.state.direction.reversed(),
        _ => item.state.direction,
    };
    match (asked(properties)?, before) {
        (Some(Direction::ToRecovery), Direction::ToRecovery) => {
            Err(ControlError::bad_request(format!(
                "failoverDirection is PrimaryToRecovery, but {} runs at the recovery site: its \
                 reprotect goes from recovery to primary",
                item.name
            )))
        }
        (None | Some(_), Direction::ToRecovery | Direction::ToPrimary) => Ok(()),
    }
}

/// What a planned failover is asked for.
///
/// `dataSyncOption ForDownTime`, said in so many words, is the contract's failback in two phases:
/// the job waits for "Complete failover" between them. `leewardWaitToComplete` says it outright.
///
/// # Errors
/// BadRequest naming the field; NotFound for a host; NotSupported for application-consistent
/// points.
pub(super) async fn planned(
    below: &Below<'_>,
    properties: Fields<'_>,
    item: &ItemView,
) -> Result<PlannedSpec, ControlError> {
    match item.state.protection {
        // It begins with a reprotect, whose direction is the failover's.
        Protection::Committed { .. } | Protection::FailedOver { .. } => {
            check_reverse(properties, item)?;
        }
        _ => check(properties, item)?,
    }
    let details = properties.object("providerSpecificDetails")?;
    let spec = planned_spec(properties, details)?;
    let host = host(below, properties, details, item).await?;
    Ok(PlannedSpec { host: host.map(|host| host.name), ..spec })
}

pub(super) fn planned_spec(
    properties: Fields<'_>,
    details: Fields<'_>,
) -> Result<PlannedSpec, ControlError> {
    let sync = either(properties, details, "dataSyncOption")?.map(sync_option).transpose()?;
    if let Some(text) = either(properties, details, "recoveryVmCreationOption")? {
        let known = ["CreateVmIfNotFound", "NoAction"];
        if !known.iter().any(|one| one.eq_ignore_ascii_case(text)) {
            return Err(ControlError::bad_request(format!(
                "recoveryVmCreationOption {text} is not one of CreateVmIfNotFound, NoAction"
            )));
        }
    }
    let field = "leewardWaitToComplete";
    let wait = details.flag(field)?.or(properties.flag(field)?);
    Ok(PlannedSpec {
        point: planned_point(properties, details)?,
        wait_to_complete: wait.unwrap_or(sync == Some(SyncOption::ForDownTime)),
        sync: sync.unwrap_or_default(),
        host: None,
    })
}

/// A text of the provider's details, or else of the properties.
fn either<'a>(
    properties: Fields<'a>,
    details: Fields<'a>,
    field: &str,
) -> Result<Option<&'a str>, ControlError> {
    Ok(details.text(field)?.or(properties.text(field)?))
}

fn sync_option(text: &str) -> Result<SyncOption, ControlError> {
    if text.eq_ignore_ascii_case("ForDownTime") {
        Ok(SyncOption::ForDownTime)
    } else if text.eq_ignore_ascii_case("ForSynchronization") {
        Ok(SyncOption::ForSynchronization)
    } else {
        Err(ControlError::bad_request(format!(
            "dataSyncOption {text} is not one of ForDownTime, ForSynchronization"
        )))
    }
}

/// The point of a planned failover; none is the final one. The contract's `CrashConsistent` says
/// of what kind the final point shall be, not that an earlier one is wanted.
fn planned_point(
    properties: Fields<'_>,
    details: Fields<'_>,
) -> Result<Option<PointChoice>, ControlError> {
    let kind = either(properties, details, "recoveryPointType")?;
    let is_final = kind.is_none_or(|kind| {
        ["Latest", "LatestTime", "CrashConsistent"].iter().any(|one| one.eq_ignore_ascii_case(kind))
    });
    let named = either(properties, details, "recoveryPointId")?;
    if is_final && named.is_none() {
        return Ok(None);
    }
    choice(properties, details).map(Some)
}

/// What a reprotect is asked for.
///
/// # Errors
/// BadRequest naming the field; NotFound for a host.
pub(super) async fn reprotect(
    below: &Below<'_>,
    properties: Fields<'_>,
    item: &ItemView,
) -> Result<ReprotectSpec, ControlError> {
    check_reverse(properties, item)?;
    let details = properties.object("providerSpecificDetails")?;
    let host = host(below, properties, details, item).await?;
    let trust = trust(properties, details)?;
    Ok(ReprotectSpec { host: host.map(|host| host.name), trust })
}

/// What a comparison goes by: `leewardVerify`.
///
/// # Errors
/// BadRequest naming the field.
pub(super) fn trust(
    properties: Fields<'_>,
    details: Fields<'_>,
) -> Result<ResyncTrust, ControlError> {
    match either(properties, details, "leewardVerify")? {
        None | Some("hashes") => Ok(ResyncTrust::Hashes),
        Some("full") => Ok(ResyncTrust::Nothing),
        Some(word) => {
            let what = format!("leewardVerify {word} is not one of hashes, full");
            Err(ControlError::bad_request(what))
        }
    }
}

/// The host that a request names by name, id or path. The item's own machine, which some clients
/// give in `hvHostVmId`, names none.
async fn host(
    below: &Below<'_>,
    properties: Fields<'_>,
    details: Fields<'_>,
    item: &ItemView,
) -> Result<Option<HostView>, ControlError> {
    for field in HOST_FIELDS {
        let Some(text) = either(properties, details, field)? else { continue };
        if field == "hvHostVmId" && text.eq_ignore_ascii_case(&item.machine_id.to_string()) {
            continue;
        }
        let unknown = || {
            ControlError::not_found(format!(
                "{field} {text} names no host that has joined a site of this vault: join it with \
                 a registration key, or leave the field out"
            ))
        };
        let name = name_in_id(text, "replicationRecoveryServicesProviders").ok_or_else(unknown)?;
        let hosts = below.control().host_list(below.vault.id, None).await?;
        let found = hosts.into_iter().find(|host| {
            host.name.eq_ignore_ascii_case(name) || host.id.to_string().eq_ignore_ascii_case(name)
        });
        return found.map(Some).ok_or_else(unknown);
    }
    Ok(None)
}

/// Why protection is ended.
///
/// # Errors
/// BadRequest naming the field.
pub(super) fn disable_reason(properties: Fields<'_>) -> Result<DisableReason, ControlError> {
    match properties.text("disableProtectionReason")? {
        None => Ok(DisableReason::Normal),
        Some(text) if text.eq_ignore_ascii_case("NotSpecified") => Ok(DisableReason::Normal),
        Some(text) if text.eq_ignore_ascii_case("MigrationComplete") => {
            Ok(DisableReason::MigrationComplete)
        }
        Some(text) => Err(ControlError::bad_request(format!(
            "disableProtectionReason {text} is not one of NotSpecified, MigrationComplete"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::item, *};
    use crate::ErrorKind;
    use leeward_model::{InstanceId, JobId, PointId};
    use serde_json::{Value, json};

    fn says(direction: &str) -> Value {
        json!({ "failoverDirection": direction })
    }

    #[test]
    fn a_failover_goes_where_the_item_is_replicated_to_and_a_turned_item_may_say_it_either_way() {
        for (direction, forward, backward) in
            [(Direction::ToRecovery, true, false), (Direction::ToPrimary, true, true)]
        {
            let mut item = item();
            item.state.direction = direction;
            for (text, possible) in
                [("PrimaryToRecovery", forward), ("recoverytoprimary", backward), ("Up", false)]
            {
                let found = check(Fields::new(&says(text)), &item);
                assert_eq!(found.is_ok(), possible, "{direction:?} {text}");
            }
            check(Fields::new(&Value::Null), &item).unwrap();
        }
    }

    /// A retained point names its site, whatever the item's direction says.
    #[test]
    fn a_retained_point_is_not_bound_to_the_direction() {
        let point = PointChoice::Custom(PointId::from_u128(1));
        let back = says("RecoveryToPrimary");
        let mut item = item();
        assert!(check_failover(Fields::new(&back), &item, point).is_err());

        item.state.protection = Protection::Reprotecting { job: JobId::from_u128(1) };

        check_failover(Fields::new(&back), &item, point).unwrap();
        assert!(check_failover(Fields::new(&back), &item, PointChoice::Latest).is_err());
        assert!(check_failover(Fields::new(&says("Up")), &item, point).is_err());
    }

    #[test]
    fn a_reprotect_names_the_direction_that_it_leads_to() {
        let mut item = item();
        item.state.protection = Protection::Committed { machine: InstanceId::from_u128(1) };
        check_reverse(Fields::new(&says("RecoveryToPrimary")), &item).unwrap();
        check_reverse(Fields::new(&Value::Null), &item).unwrap();
        let wrong = check_reverse(Fields::new(&says("PrimaryToRecovery")), &item).unwrap_err();
        assert_eq!(wrong.kind, ErrorKind::BadRequest);

        item.state.direction = Direction::ToPrimary;
        check_reverse(Fields::new(&says("PrimaryToRecovery")), &item).unwrap();
        check_reverse(Fields::new(&says("RecoveryToPrimary")), &item).unwrap();

        item.state.protection = Protection::Reprotecting { job: JobId::from_u128(1) };
        let again = check_reverse(Fields::new(&says("RecoveryToPrimary")), &item);
        assert!(again.is_ok(), "the state refuses it, not the direction");
    }

    /// F-098, F-108, F-109.
    #[test]
    fn the_contracts_two_phases_wait_and_its_one_phase_does_not() {
        use SyncOption::{ForDownTime, ForSynchronization};
        for (details, sync, wait) in [
            (json!({}), ForDownTime, false),
            (json!({"instanceType": "HyperVReplicaAzure"}), ForDownTime, false),
            (
                json!({"instanceType": "HyperVReplicaAzureFailback", "dataSyncOption":
                    "ForDownTime", "recoveryVmCreationOption": "CreateVmIfNotFound"}),
                ForDownTime,
                true,
            ),
            (json!({"dataSyncOption": "forsynchronization"}), ForSynchronization, false),
            (json!({"leewardWaitToComplete": true}), ForDownTime, true),
            (
                json!({"leewardWaitToComplete": "false", "dataSyncOption": "ForDownTime"}),
                ForDownTime,
                false,
            ),
            (
                json!({"leewardWaitToComplete": true, "dataSyncOption": "ForSynchronization"}),
                ForSynchronization,
                true,
            ),
        ] {
            let spec = planned_spec(Fields::new(&Value::Null), Fields::new(&details)).unwrap();
            assert_eq!((spec.sync, spec.wait_to_complete), (sync, wait), "{details}");
            assert_eq!(spec.point, None, "{details}");
        }
        for details in [
            json!({"dataSyncOption": "Later"}),
            json!({"recoveryVmCreationOption": "Perhaps"}),
            json!({"leewardWaitToComplete": "perhaps"}),
        ] {
            let error = planned_spec(Fields::new(&Value::Null), Fields::new(&details)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::BadRequest, "{details}");
        }
    }

    #[test]
    fn a_planned_failover_takes_the_final_point_unless_another_is_named() {
        let id = "00000000-0000-0000-0000-000000000007";
        let seven = Some(PointChoice::Custom(PointId::from_u128(7)));
        for (details, wanted) in [
            (json!({}), None),
            (json!({"recoveryPointType": "Latest"}), None),
            (json!({"recoveryPointType": "CrashConsistent"}), None),
            (json!({"recoveryPointType": "LatestProcessed"}), Some(PointChoice::LatestProcessed)),
            (json!({"recoveryPointId": id}), seven),
            (json!({"recoveryPointId": id, "recoveryPointType": "Latest"}), seven),
        ] {
            let found = planned_point(Fields::new(&Value::Null), Fields::new(&details)).unwrap();
            assert_eq!(found, wanted, "{details}");
        }
        let details = json!({"recoveryPointType": "ApplicationConsistent"});
        let error = planned_point(Fields::new(&Value::Null), Fields::new(&details)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotSupported);
    }

    /// F-005.
    #[test]
    fn a_finished_migration_is_told_from_any_other_end() {
        for (properties, wanted) in [
            (json!({}), Some(DisableReason::Normal)),
            (json!({"disableProtectionReason": "NotSpecified"}), Some(DisableReason::Normal)),
            (
                json!({"disableProtectionReason": "migrationcomplete"}),
                Some(DisableReason::MigrationComplete),
            ),
            (json!({"disableProtectionReason": "Boredom"}), None),
        ] {
            assert_eq!(disable_reason(Fields::new(&properties)).ok(), wanted, "{properties}");
        }
    }
}

//! How protected items are shown: the table of all, and everything about one. Asks for nothing.

use super::{
    CliError,
    session::{Session, last_segment, text, texts},
    table::bytes,
};
use serde_json::Value;

/// The table of all items.
pub(super) async fn list(session: &Session) -> Result<(), CliError> {
    let items = session.client.list("replicationProtectedItems").await?;
    let heads = [
        "NAME", "PRIMARY", "", "RECOVERY", "STATE", "LIVE AT", "RPO", "POINTS", "HEALTH", "POLICY",
    ];
    session.list(&items, &heads, |item| {
        let properties = &item["properties"];
        let details = &properties["providerSpecificDetails"];
        vec![
            text(&item["name"]),
            text(&properties["primaryFabricFriendlyName"]),
            arrow(&properties["leewardDirection"]).to_owned(),
            text(&properties["recoveryFabricFriendlyName"]),
            text(&properties["protectionStateDescription"]),
            text(&details["leewardLiveAt"]),
            rpo(details),
            text(&details["leewardPoints"]),
            text(&properties["replicationHealth"]),
            text(&properties["policyFriendlyName"]),
        ]
    });
    Ok(())
}

/// Which way data flow, between the names of the primary and the recovery site.
fn arrow(direction: &Value) -> &'static str {
    match direction.as_str() {
        Some("PrimaryToRecovery") => "->",
        Some("RecoveryToPrimary") => "<-",
        _ => "",
    }
}

fn rpo(details: &Value) -> String {
    details["leewardRpoSeconds"].as_u64().map(|seconds| format!("{seconds} s")).unwrap_or_default()
}

/// Everything about one item.
pub(super) fn show(session: &Session, item: &Value) {
    let properties = &item["properties"];
    let details = &properties["providerSpecificDetails"];
    let size = |name: &str| details[name].as_f64().map(bytes).unwrap_or_default();
    let state = format!(
        "{} ({})",
        text(&properties["protectionState"]),
        text(&properties["protectionStateDescription"])
    );
    let copied = &details["initialReplicationDetails"]["initialReplicationProgressPercentage"];
    let newest = &details["leewardNewestPoint"];
    let sites = format!(
        "{} (primary) {} {} (recovery)",
        text(&properties["primaryFabricFriendlyName"]),
        arrow(&properties["leewardDirection"]),
        text(&properties["recoveryFabricFriendlyName"])
    );
    session.show(
        item,
        &[
            ("name", text(&item["name"])),
            ("direction", sites),
            ("state", state),
            ("live at", text(&details["leewardLiveAt"])),
            ("because", text(&details["leewardLiveEvidence"])),
            ("source", text(&details["leewardSourceState"]["state"])),
            ("source host", text(&details["leewardSourceHost"])),
            ("target host", text(&details["leewardTargetHost"])),
            ("test failover", text(&properties["testFailoverStateDescription"])),
            ("replication", text(&properties["replicationHealth"])),
            ("failover", text(&properties["failoverHealth"])),
            ("copied", format!("{} %", text(copied))),
            (
                "estimate",
                details["leewardEstimateSeconds"].as_u64().map(seconds).unwrap_or_default(),
            ),
            ("RPO", rpo(details)),
            ("newest point", text(&newest["cutAt"])),
            ("points", text(&details["leewardPoints"])),
            ("sent", size("leewardSentBytes")),
            ("waiting", waiting(&details["leewardSpool"])),
            ("stored", size("leewardStoredBytes")),
            ("compared", audit(&details["leewardAudit"])),
            ("store read", audit(&details["leewardStoreAudit"])),
            ("policy", text(&properties["policyFriendlyName"])),
            ("epoch", text(&details["leewardEpoch"])),
            ("allowed now", texts(&properties["allowedOperations"])),
        ],
    );
    show_parts(session, item);
}

/// The points that wait at the source until the store takes them.
fn waiting(spool: &Value) -> String {
    let (Some(points), Some(size)) = (spool["points"].as_u64(), spool["bytes"].as_f64()) else {
        return String::new();
    };
    let more = if spool["bitmapOnly"] == true { "; changes are noted by bitmap alone" } else { "" };
    format!("{points} points, {}{more}", bytes(size))
}

/// What an item has at its sites, its machines from points, and what is wrong with it.
fn show_parts(session: &Session, item: &Value) {
    let properties = &item["properties"];
    let details = &properties["providerSpecificDetails"];
    for end in details["leewardEnds"].as_array().into_iter().flatten() {
        session.say(&end_line(end));
    }
    session.say(&target_line(&details["leewardTarget"], &details["vmNics"]));
    super::home::say_options(session, &details["leewardDataSync"]);
    for instance in details["leewardInstances"].as_array().into_iter().flatten() {
        let percent = instance["hydratedPercent"].as_f64();
        let runs = percent.filter(|percent| *percent < 100.0);
        let runs = runs.map(|percent| format!(", runs from the store: {percent:.0} %"));
        session.say(&format!(
            "{} machine: {}{}",
            text(&instance["purpose"]),
            text(&instance["machineState"]),
            runs.unwrap_or_default()
        ));
    }
    for served in details["leewardServed"].as_array().into_iter().flatten() {
        let how = if served["writable"] == true { "for writing" } else { "read-only" };
        session.say(&format!(
            "point {} is served {how} by hand since {}, by {}",
            text(&served["recoveryPoint"]),
            text(&served["since"]),
            text(&served["by"])
        ));
    }
    if let Some(name) = details["leewardDivergent"]["name"].as_str() {
        session.say(&format!("what the left machine wrote on its own is kept as point {name}"));
    }
    for error in properties["healthErrors"].as_array().into_iter().flatten() {
        session.say(&format!(
            "{}: {}\n  cause: {}\n  now:   {}\n  do:    {}",
            text(&error["errorCode"]),
            text(&error["errorMessage"]),
            text(&error["possibleCauses"]),
            text(&error["leewardCurrentState"]),
            text(&error["recommendedAction"])
        ));
    }
}

/// One site of the item in a line.
fn end_line(end: &Value) -> String {
    let link = if end["connected"] == true { "connected" } else { "not connected" };
    let points = end["points"].as_u64();
    let store = points.map(|points| format!(", {points} points in its store")).unwrap_or_default();
    format!(
        "{} end: host {} ({link}), machine {} is {}, wanted {}{store}",
        text(&end["site"]),
        text(&end["host"]),
        text(&end["machine"]),
        text(&end["machineState"]),
        text(&end["run"])
    )
}

/// The machine that the next failover would make, in a line.
fn target_line(target: &Value, nics: &Value) -> String {
    let nic = |nic: &Value| {
        let address = nic["ipConfigs"][0]["recoveryStaticIPAddress"].as_str();
        let address = address.map(|address| format!(" as {address}")).unwrap_or_default();
        let network = text(&nic["recoveryVMNetworkId"]);
        format!(", {} in {}{address}", text(&nic["nicId"]), last_segment(&network))
    };
    let nics: String = nics.as_array().into_iter().flatten().map(nic).collect();
    let (site, name, size) = (text(&target["site"]), text(&target["name"]), text(&target["size"]));
    format!("next machine at {site}: {name} {size}{nics}")
}

/// How far an audit is, in a line; nothing before its first part.
fn audit(audit: &Value) -> String {
    let Some(percent) = audit["auditedPercentage"].as_f64() else { return String::new() };
    let last = match audit["lastRoundEndedAt"].as_str() {
        Some(at) => format!("last whole round ended {at}"),
        None => "no whole round yet".to_owned(),
    };
    let found = match audit["differences"].as_u64() {
        None | Some(0) => "nothing found".to_owned(),
        Some(count) => format!("{count} differences found"),
    };
    format!("{percent} % of this round, {last}, {found}")
}

fn seconds(count: u64) -> String {
    format!("{count} s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_site_is_told_in_one_line_and_the_direction_by_an_arrow() {
        let mut end = json!({"site": "Primary", "host": "kvm-a", "connected": true, "machine": "w",
            "machineState": "Off", "run": "Fenced", "points": null});
        let line = "Primary end: host kvm-a (connected), machine w is Off, wanted Fenced";
        assert_eq!(end_line(&end), line);

        end["points"] = json!(3);
        assert_eq!(end_line(&end), format!("{line}, 3 points in its store"));
        assert_eq!(arrow(&json!("RecoveryToPrimary")), "<-");
        assert_eq!(arrow(&json!("PrimaryToRecovery")), "->");
    }
}

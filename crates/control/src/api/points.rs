//! Recovery points, and the pictures by which they prove themselves.

use super::{
    Below,
    envelope::{Answer, Refusal},
    ids::{Ids, resource, time},
    items::find,
};
use crate::{ControlError, items::ItemView};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use leeward_model::{Evidence, PointInfo, PointKind, PointOrigin, Verification};
use serde_json::{Value, json};

fn kind(kind: PointKind) -> (&'static str, &'static str) {
    match kind {
        PointKind::CrashConsistent => ("CrashConsistent", "CrashConsistent"),
        PointKind::Final => ("CrashConsistent", "Final"),
        PointKind::ApplicationConsistent => ("ApplicationConsistent", "ApplicationConsistent"),
    }
}

fn origin(origin: &PointOrigin) -> &'static str {
    match origin {
        PointOrigin::Replicated => "Replicated",
        PointOrigin::BeforeChange => "BeforeChange",
        PointOrigin::Divergent => "Divergent",
    }
}

fn evidence(state: &str, evidence: &Evidence, id: &str, base: &str) -> Value {
    let picture = evidence.picture.as_ref().map(|_| format!("{base}{id}/leewardPicture"));
    json!({
        "state": state,
        "bootedAt": time(evidence.booted_at),
        "tookMilliseconds": evidence.took_ms,
        "probe": evidence.probe,
        "seen": evidence.seen,
        "picture": picture,
        "pictureHash": evidence.picture_hash,
        "contentHash": evidence.content_hash,
    })
}

/// What is known of whether the point boots; `base` is the server's address, for the picture.
fn verification(point: &PointInfo, id: &str, base: &str) -> Value {
    match &point.verification {
        Verification::Untested => json!({ "state": "Untested" }),
        Verification::Verified(seen) => evidence("Verified", seen, id, base),
        Verification::Failed(seen) => evidence("Failed", seen, id, base),
    }
}

fn view(ids: &Ids, item: &ItemView, point: &PointInfo, base: &str) -> Value {
    let id = ids.point(item, point.id);
    let (kind, own_kind) = kind(point.kind);
    let disks: Vec<_> = point
        .disks
        .iter()
        .map(|disk| {
            json!({
                "number": disk.number,
                "id": disk.id,
                "serial": disk.serial,
                "sizeBytes": disk.size,
                "blockBytes": disk.block_bytes,
            })
        })
        .collect();
    resource(
        &id,
        json!({
            "recoveryPointTime": time(point.cut_at),
            "recoveryPointType": kind,
            "providerSpecificDetails": {
                "instanceType": super::item_view::INSTANCE_TYPE,
                "leewardKind": own_kind,
                "leewardName": point.name,
                "leewardOrigin": origin(&point.origin),
                "leewardPosition": {
                    "timeline": point.position.timeline,
                    "lsn": point.position.lsn,
                },
                "leewardReceivedAt": time(point.received_at),
                "leewardExpiresAt": point.expires_at.map(time),
                "leewardHeldAt": super::item_view::site(point.held_at),
                "leewardPinnedBy": point.pinned_by,
                "leewardDisks": disks,
                "leewardVerification": verification(point, &id, base),
            },
        }),
    )
}

/// List, newest first.
pub(super) async fn list(below: &Below<'_>) -> Result<Answer, Refusal> {
    let item = find(below).await?;
    let (skip, size) = below.call.window()?;
    let page = below.control().point_list(item.id, skip, size).await?;
    let shown = page.points.len() as u64;
    let values =
        page.points.iter().map(|one| view(&below.ids, &item, one, &below.call.origin)).collect();
    let end = skip.saturating_add(shown);
    let next = (shown > 0 && end < page.total).then_some(end);
    Ok(Answer::Ok(below.call.list_body(values, next)))
}

/// GET.
pub(super) async fn get(below: &Below<'_>) -> Result<Answer, Refusal> {
    let item = find(below).await?;
    let found = below.control().point_get(item.id, below.call.point()?).await?;
    let mut body = view(&below.ids, &item, &found.point, &below.call.origin);
    body["properties"]["providerSpecificDetails"]["leewardMachine"] =
        found.machine.map_or(Value::Null, |machine| {
            json!({
                "name": machine.name,
                "memoryMib": machine.memory_mib,
                "cpus": machine.cpus,
            })
        });
    Ok(Answer::Ok(body))
}

/// The picture of the point's last test: PNG, or with `encoding=base64` the same in JSON.
pub(super) async fn picture(below: &Below<'_>) -> Result<Answer, Refusal> {
    let item = find(below).await?;
    let point = below.call.point()?;
    let found = below.control().point_get(item.id, point).await?;
    let name = match &found.point.verification {
        Verification::Untested => None,
        Verification::Verified(seen) | Verification::Failed(seen) => seen.picture.as_deref(),
    };
    let name = name.ok_or_else(|| {
        ControlError::not_found(format!("recovery point {point} of {} has no picture", item.name))
    })?;
    let bytes = below.control().point_picture(item.id, name).await?;
    match below.call.query.get("encoding") {
        Some("base64") => {
            Ok(Answer::Ok(json!({ "contentType": "image/png", "base64": STANDARD.encode(bytes) })))
        }
        _ => Ok(Answer::Picture(bytes)),
    }
}

//! `leeward store points` and `stats`: what a store holds. Nothing is read but what they show.

use super::{
    Failure,
    find::{self, Known},
    place::PlaceOptions,
    print, print_json, record, time_text,
};
use crate::cli::{
    Output,
    table::{Colour, bytes, table},
};
use leeward_model::{PointInfo, Site, Verification};
use leeward_replica::{Served, ServedAs, StoreError};
use serde_json::{Value, json};

/// Whose points.
#[derive(Clone, Debug, clap::Args)]
pub struct PointsOptions {
    #[command(flatten)]
    place: PlaceOptions,
    /// Only of this item: its machine's name, or its id.
    #[arg(long, value_name = "NAME")]
    item: Option<String>,
}

/// Which store.
#[derive(Clone, Debug, clap::Args)]
pub struct StatsOptions {
    #[command(flatten)]
    place: PlaceOptions,
    /// Also prove that the bucket keeps what is put there: put an object and fail to delete it.
    #[arg(long)]
    object_lock: bool,
}

/// Points of one page of the store's list.
const PAGE: u64 = 1000;

fn all_points(known: &Known) -> Result<Vec<PointInfo>, StoreError> {
    let mut points = Vec::new();
    loop {
        let page = known.reader.points(points.len() as u64, PAGE, Site::Recovery)?;
        points.extend(page.points);
        if points.len() as u64 >= page.total {
            return Ok(points);
        }
    }
}

fn word<T: serde::Serialize>(value: &T) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().or_else(|| value["kind"].as_str()).unwrap_or_default().to_owned()
}

fn verification(point: &PointInfo) -> &'static str {
    match point.verification {
        Verification::Untested => "untested",
        Verification::Verified(_) => "verified",
        Verification::Failed(_) => "failed",
    }
}

fn point_json(known: &Known, point: &PointInfo) -> Value {
    let disks = point.disks.iter().map(|disk| {
        json!({"id": disk.id, "number": disk.number, "serial": disk.serial, "size": disk.size})
    });
    json!({
        "item": known.reader.item(), "machine": known.name,
        "point": point.id, "name": point.name,
        "kind": word(&point.kind), "origin": word(&point.origin),
        "cutAt": time_text(point.cut_at), "receivedAt": time_text(point.received_at),
        "timeline": point.position.timeline, "lsn": point.position.lsn,
        "disks": disks.collect::<Vec<_>>(),
        "pinnedBy": point.pinned_by, "verification": verification(point),
    })
}

pub(super) fn points(options: &PointsOptions, output: Output) -> Result<(), Failure> {
    let place = &options.place;
    let store = place.open()?;
    let known = match &options.item {
        Some(name) => vec![find::item(place, &store, name)?],
        None => find::items(place, &store)?,
    };
    let (mut objects, mut rows) = (Vec::new(), Vec::new());
    for known in &known {
        let points = all_points(known).map_err(|error| place.failed("cannot be listed", &error))?;
        for point in &points {
            objects.push(point_json(known, point));
            let disks = point.disks.iter();
            rows.push(vec![
                known.label(),
                point.id.to_string(),
                time_text(point.cut_at),
                word(&point.kind),
                word(&point.origin),
                point.name.clone(),
                disks.map(|disk| disk.id.as_str()).collect::<Vec<_>>().join(","),
                verification(point).to_owned(),
            ]);
        }
    }
    match output {
        Output::Json => print_json(&objects.into()),
        Output::Table => {
            let heads = ["ITEM", "POINT", "CUT AT", "KIND", "ORIGIN", "NAME", "DISKS", "TESTED"];
            print(&table(&heads, &rows, Colour::Off));
        }
    }
    Ok(())
}

/// A use of a point by hand.
fn served_json(served: &Served) -> Value {
    let (how, target) = match &served.served_as {
        ServedAs::ReadOnly => ("read-only", None),
        ServedAs::Writable => ("writable", None),
        ServedAs::Restored { target } => ("restored", Some(target)),
    };
    json!({
        "id": served.id, "point": served.point, "disk": served.disk, "use": how, "target": target,
        "who": record::who(&served.process), "since": time_text(served.since),
        "stale": record::is_stale(&served.process),
    })
}

fn item_json(known: &Known) -> Result<Value, StoreError> {
    let (reader, state) = (&known.reader, known.reader.state());
    let pins = reader.pins()?;
    let pins = pins.iter().map(|pin| {
        json!({"id": pin.id, "point": pin.point, "who": pin.who, "why": pin.why,
               "created": time_text(pin.created)})
    });
    let unpinned = reader.unpinned()?;
    let unpinned = unpinned.iter().map(|gone| {
        json!({"id": gone.pin.id, "point": gone.pin.point, "who": gone.who, "why": gone.why,
               "at": time_text(gone.at), "pinnedBy": gone.pin.who, "pinnedFor": gone.pin.why})
    });
    let served = reader.served()?;
    let served = served.iter().map(served_json);
    let ended = reader.serves_ended()?;
    let ended = ended.iter().map(|ended| {
        let mut one = served_json(&ended.served);
        one["ended"] = json!(time_text(ended.ended));
        one["how"] = json!(ended.how);
        one
    });
    let space = reader.space()?;
    let newest = reader.newest_point();
    Ok(json!({
        "item": reader.item(), "machine": known.name,
        "points": state.points.len(), "kept": reader.kept()?.len(),
        "newestPoint": newest.map(|point| point.id),
        "newestCutAt": newest.map(|point| time_text(point.cut_at)),
        "storedBytes": reader.stored_bytes()?, "segments": state.segments.len(),
        "timelines": state.branches.len(), "fence": state.fence,
        "dataKeys": reader.key_versions(),
        "pins": pins.collect::<Vec<_>>(), "unpinned": unpinned.collect::<Vec<_>>(),
        "served": served.collect::<Vec<_>>(), "servesEnded": ended.collect::<Vec<_>>(),
        "liveBytes": space.live_bytes, "waitingBytes": space.waiting_bytes,
        "layers": space.layers, "layerBytes": space.layer_bytes,
    }))
}

pub(super) fn stats(options: &StatsOptions, output: Output) -> Result<(), Failure> {
    let place = &options.place;
    let store = place.open()?;
    let known = find::items(place, &store)?;
    let fail = |error: StoreError| place.failed("cannot be measured", &error);
    let items: Vec<Value> = known.iter().map(item_json).collect::<Result<_, _>>().map_err(fail)?;
    let lock = options.object_lock.then(|| place.prove_lock()).transpose()?;
    let until = lock.map(|proof| proof.until);
    let (free, identity) = (store.free_bytes().map_err(fail)?, store.identity());
    if output == Output::Json {
        print_json(&json!({
            "store": identity.store, "owner": identity.owner, "generation": identity.generation,
            "keyGeneration": store.key_generation(), "recipients": store.recipients(),
            "freeBytes": free, "items": items, "immutableUntil": until,
        }));
        return Ok(());
    }
    let free = free.map_or_else(|| "unknown".to_owned(), |free| bytes(free as f64));
    print(&format!("store {}, {} items, {free} free\n", identity.store, items.len()));
    if let Some(until) = until {
        print(&format!("what is put now cannot be deleted by anybody until {until}: tried\n"));
    }
    print("\n");
    let heads = ["ITEM", "POINTS", "KEPT", "NEWEST", "STORED", "SEGMENTS", "TIMELINES", "PINS"];
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let rows: Vec<_> = items
        .iter()
        .zip(&known)
        .map(|(item, known)| {
            vec![
                known.label(),
                text(&item["points"]),
                text(&item["kept"]),
                item["newestCutAt"].as_str().unwrap_or("none").to_owned(),
                bytes(item["storedBytes"].as_f64().unwrap_or_default()),
                text(&item["segments"]),
                text(&item["timelines"]),
                item["pins"].as_array().map_or(0, Vec::len).to_string(),
            ]
        })
        .collect();
    print(&table(&heads, &rows, Colour::Off));
    Ok(())
}

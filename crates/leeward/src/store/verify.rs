//! `leeward store verify`: proves every byte, and names those that are bad.

use super::{Failure, find, place::PlaceOptions, print, print_json, problem, time_text};
use crate::cli::{Output, table::bytes};
use indicatif::{ProgressBar, ProgressStyle};
use leeward_model::{Code, ItemId};
use leeward_replica::{Audit, Damage, Losses, StoreError};
use serde_json::{Value, json};

/// What to prove.
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyOptions {
    #[command(flatten)]
    place: PlaceOptions,
    /// Only this item: its machine's name, or its id.
    #[arg(long, value_name = "NAME")]
    item: Option<String>,
}

pub(super) fn run(options: &VerifyOptions, output: Output) -> Result<(), Failure> {
    let place = &options.place;
    let store = place.open()?;
    let fail = |error: StoreError| place.failed("cannot be read", &error);
    let items: Vec<ItemId> = match &options.item {
        Some(name) => vec![find::item(place, &store, name)?.reader.item()],
        None => store.items().map_err(fail)?,
    };
    let (mut objects, mut damages) = (Vec::new(), 0);
    for item in items {
        let audit = match store.item_read(item) {
            Ok(reader) => {
                let bar = bar(&item.to_string());
                let audit = reader.audit(&|done, total| {
                    bar.set_length(total);
                    bar.set_position(done);
                });
                bar.finish_and_clear();
                audit.map_err(fail)?
            }
            // Without its keys or its newest manifests there is no item to go through.
            Err(StoreError::Damaged { blob, why }) => closed(blob, why),
            Err(StoreError::Key { what, why }) => {
                closed(format!("items/{item}/keys"), format!("{what}: {why}"))
            }
            Err(error) => return Err(fail(error)),
        };
        damages += audit.damages.len();
        if output == Output::Table {
            print(&text(item, &audit));
        }
        objects.push(object(item, &audit));
    }
    if options.item.is_none() {
        damages += deleted(place, damages, output, &mut objects);
    }
    if output == Output::Json {
        print_json(&objects.into());
    }
    match damages {
        0 => Ok(()),
        count => {
            let what = format!("the store in {} has {count} damages", place.store);
            Err(problem(Code::STORE_DAMAGED, what, Code::STORE_DAMAGED.cause))
        }
    }
}

/// What was deleted that no writer of a store deletes, as far as a bucket tells; how much. Says how
/// that, and what is damaged otherwise, can come back.
fn deleted(
    place: &PlaceOptions,
    damages: usize,
    output: Output,
    objects: &mut Vec<Value>,
) -> usize {
    let losses = match place.history() {
        Some(Ok(history)) => Losses::of(&history),
        // Not every server keeps versions, and not every key may ask for them.
        Some(Err(error)) => {
            tracing::debug!(%error, "nobody knows what was deleted");
            return 0;
        }
        None => return 0,
    };
    let mut words = String::new();
    for (item, at) in &losses.items {
        let at = time_text(*at);
        words += &format!("{item}: deleted as a whole at {at}: by `shred`, or by somebody else\n");
    }
    for (name, at) in &losses.manifests {
        words += &format!("{name}: deleted at {}, and newer than what is there\n", time_text(*at));
    }
    if losses.is_loss() || damages > 0 {
        let store = &place.store;
        words +=
            &format!("`leeward store undelete {store}` shows what the bucket still has of it\n");
    }
    if output == Output::Table {
        print(&words);
    }
    for (name, at) in &losses.manifests {
        objects.push(json!({"good": false, "deleted": name, "deletedAt": time_text(*at)}));
    }
    losses.manifests.len()
}

fn closed(blob: String, why: String) -> Audit {
    let why = format!("{why}; no point of this item can be read");
    let damage = Damage { blob, bytes: None, why, part: None, points: Vec::new() };
    Audit { damages: vec![damage], ..Audit::default() }
}

fn bar(item: &str) -> ProgressBar {
    let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.with_message(item.to_owned())
}

fn text(item: ItemId, audit: &Audit) -> String {
    let Audit { manifests, segments, records, extents, points, notes, .. } = audit;
    let mut out = format!(
        "{item}: {points} points, {segments} segments with {records} records ({}), {extents} \
         extents, {manifests} manifests, {notes} notes: {}\n",
        bytes(audit.bytes as f64),
        if audit.damages.is_empty() { "good" } else { "DAMAGED" }
    );
    for damage in &audit.damages {
        let place = damage.bytes.map(|(from, len)| format!(", bytes {from} to {}", from + len - 1));
        out += &format!("  {}{}: {}\n", damage.blob, place.unwrap_or_default(), damage.why);
        if let Some(part) = damage.part {
            let end = part.offset + part.len - 1;
            out += &format!("    holds bytes {} to {end} of disk {}\n", part.offset, part.disk);
        }
        let points: Vec<_> = damage.points.iter().map(ToString::to_string).collect();
        out += &match points.is_empty() {
            true => "    no listed point is known to need it\n".to_owned(),
            false => format!("    points that need it: {}\n", points.join(", ")),
        };
    }
    out
}

fn object(item: ItemId, audit: &Audit) -> Value {
    let damages = audit.damages.iter().map(|damage| {
        json!({
            "blob": damage.blob,
            "bytes": damage.bytes.map(|(offset, len)| json!({"offset": offset, "length": len})),
            "why": damage.why,
            "disk": damage.part.map(|part| {
                json!({"number": part.disk, "offset": part.offset, "length": part.len})
            }),
            "points": damage.points,
        })
    });
    json!({
        "item": item, "good": audit.damages.is_empty(),
        "points": audit.points, "segments": audit.segments, "records": audit.records,
        "extents": audit.extents, "layers": audit.layers,
        "manifests": audit.manifests, "notes": audit.notes,
        "bytes": audit.bytes, "damages": damages.collect::<Vec<_>>(),
    })
}

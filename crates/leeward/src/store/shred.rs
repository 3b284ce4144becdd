//! `leeward store shred`: destroys an item of a store for good, its keys first.

use super::{Failure, find, place::PlaceOptions, print, print_json, problem};
use crate::cli::{Output, table::bytes};
use leeward_model::{Code, ItemId};
use leeward_replica::{Destroyed, Store};
use serde_json::json;

/// What to destroy.
#[derive(Clone, Debug, clap::Args)]
pub struct ShredOptions {
    #[command(flatten)]
    place: PlaceOptions,
    /// The item: its machine's name, or its id.
    #[arg(long, value_name = "NAME")]
    item: String,
    /// The same name again: its recovery points are gone for good then.
    #[arg(long, value_name = "NAME")]
    yes_destroy: Option<String>,
    /// Destroy it also while something has pinned a point of it.
    #[arg(long)]
    although_pinned: bool,
}

/// Where else data of the item may be: nothing in a store tells.
const ELSEWHERE: [&str; 3] = [
    "the replica store of the item's other site, which has data keys of its own: shred it there",
    "files that `leeward store export` made of it, and stores into which they were imported",
    "copies of this folder, and of disks below it, that were made while the item's keys were there",
];

pub(super) fn run(options: &ShredOptions, output: Output) -> Result<(), Failure> {
    let place = &options.place;
    let store = place.open_writer()?;
    let item = item(options, &store)?;
    let what =
        || format!("item {} of the store in {} was not destroyed", options.item, place.store);
    if options.yes_destroy.as_deref() != Some(options.item.as_str()) {
        let cause = format!("it takes --yes-destroy {}: nothing brings it back", options.item);
        return Err(problem(Code::BAD_REQUEST, what(), cause));
    }
    let points = store.item_read(item).map(|reader| reader.state().points.len()).ok();
    let destroyed = match options.although_pinned {
        true => store.item_destroy(item),
        false => store.item_delete(item),
    };
    let destroyed = destroyed.map_err(|error| {
        let keys = store.items().is_ok_and(|items| items.contains(&item));
        let now = if keys { "its keys are still there" } else { "its keys are gone already" };
        place.failed(&format!("could not destroy item {} ({now})", options.item), &error)
    })?;
    show(options, item, points, &destroyed, output);
    Ok(())
}

/// The item, also one of which so little is left that it cannot be opened.
fn item(options: &ShredOptions, store: &Store) -> Result<ItemId, Failure> {
    match options.item.parse::<ItemId>() {
        Ok(id) => Ok(id),
        Err(_) => Ok(find::item(&options.place, store, &options.item)?.reader.item()),
    }
}

fn show(
    options: &ShredOptions,
    item: ItemId,
    points: Option<usize>,
    destroyed: &Destroyed,
    output: Output,
) {
    // Its keys too: until then the item is out of reach, and not destroyed.
    let kept = options.place.kept_words();
    if output == Output::Json {
        print_json(&json!({
            "item": item, "name": options.item, "points": points,
            "wrappedKeys": destroyed.keys, "blobs": destroyed.blobs, "bytes": destroyed.bytes,
            "mayAlsoBeIn": ELSEWHERE, "bucketKeeps": kept,
        }));
        return;
    }
    let points = points.map_or_else(|| "points not known".to_owned(), |n| format!("{n} points"));
    let mut text = format!(
        "destroyed item {item} ({}): {} wrapped keys, then {points} in {} files, {}\n\
         it may also be in:\n",
        options.item,
        destroyed.keys,
        destroyed.blobs,
        bytes(destroyed.bytes as f64)
    );
    for place in ELSEWHERE {
        text += &format!("  - {place}\n");
    }
    if let Some(kept) = kept {
        text += &format!("  - old versions, its keys too: {kept}\n");
    }
    text += "a process that serves it now has its keys in memory until it ends\n";
    print(&text);
}

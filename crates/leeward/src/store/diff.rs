//! `leeward store diff`: which parts of the disks differ between two points of an item, by 4 KiB.

use super::{Failure, find, place::PlaceOptions, print, print_json};
use crate::cli::{
    Output,
    table::{Colour, bytes, table},
};
use leeward_model::{BLOCK_BYTES, BLOCKS_PER_EXTENT, DiskEntry};
use leeward_replica::{StoreError, View};
use serde_json::json;

/// What to compare.
#[derive(Clone, Debug, clap::Args)]
pub struct DiffOptions {
    #[command(flatten)]
    place: PlaceOptions,
    /// The item: its machine's name, or its id.
    #[arg(long, value_name = "NAME")]
    item: String,
    /// One point: its id, its name, or latest.
    #[arg(long, value_name = "POINT")]
    from: String,
    /// The other.
    #[arg(long, value_name = "POINT")]
    to: String,
    /// Only this disk: its id, its serial number, or its number.
    #[arg(long, value_name = "ID")]
    disk: Option<String>,
}

/// Half-open parts of one disk, ascending, not touching: offset and length in bytes.
type Parts = Vec<(u64, u64)>;

pub(super) fn run(options: &DiffOptions, output: Output) -> Result<(), Failure> {
    let place = &options.place;
    let store = place.open()?;
    let known = find::item(place, &store, &options.item)?;
    let views =
        [known.view(&known.point(&options.from)?)?, known.view(&known.point(&options.to)?)?];
    let disks = match &options.disk {
        Some(name) => vec![find::disk(views[1].disks(), name)?],
        None => views[1].disks().to_vec(),
    };
    let (mut objects, mut rows) = (Vec::new(), Vec::new());
    for disk in disks {
        let parts =
            differing(&views, &disk).map_err(|error| place.failed("cannot be compared", &error))?;
        let total: u64 = parts.iter().map(|(_, len)| len).sum();
        rows.push(vec![disk.id.clone(), parts.len().to_string(), bytes(total as f64)]);
        objects.push(json!({"disk": disk.id, "bytes": total, "ranges": parts}));
    }
    match output {
        Output::Json => print_json(&objects.into()),
        Output::Table => print(&table(&["DISK", "PARTS", "DIFFER"], &rows, Colour::Off)),
    }
    Ok(())
}

fn differing(views: &[View; 2], disk: &DiskEntry) -> Result<Parts, StoreError> {
    let [from, to] = views;
    let before = from.disks().iter().find(|one| one.number == disk.number);
    let common = before.map_or(0, |before| before.size.min(disk.size));
    let mut parts = Parts::new();
    for extent in to.differing_extents(from, disk.number)? {
        let (theirs, ours) =
            (from.block_hashes(disk.number, extent)?, to.block_hashes(disk.number, extent)?);
        for block in 0..BLOCKS_PER_EXTENT {
            let offset = extent.offset() + u64::from(block) * BLOCK_BYTES;
            let end = (offset + BLOCK_BYTES).min(common);
            if theirs[block as usize] != ours[block as usize] && offset < end {
                add(&mut parts, offset, end);
            }
        }
    }
    if common < disk.size {
        add(&mut parts, common, disk.size);
    }
    Ok(parts)
}

fn add(parts: &mut Parts, from: u64, end: u64) {
    match parts.last_mut() {
        Some((offset, len)) if *offset + *len == from => *len = end - *offset,
        _ => parts.push((from, end - from)),
    }
}

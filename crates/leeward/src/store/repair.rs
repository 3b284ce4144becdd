//! `leeward store repair`: puts right what can be put right without guessing. Says what it would
//! do unless it is told to do it.

use super::{
    Failure, find,
    place::{Place, PlaceOptions},
    print, print_json, problem,
};
use crate::{cli::Output, roles::host::clock::wall_now};
use leeward_model::{Code, ItemId};
use leeward_replica::{
    GoodRecords, ItemReader, RepairPlan, Store, StoreError,
    storage::{BlobStore as _, LocalStore},
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Beginning of the names of files that a put which was not finished leaves.
const TEMPORARY: &str = ".new-";
/// Largest segment in bytes that is taken from a copy: twice what a sealer makes.
const SEGMENT_BYTES_MAX: u64 = 80 << 20;

/// What to repair.
#[derive(Clone, Debug, clap::Args)]
pub struct RepairOptions {
    #[command(flatten)]
    place: PlaceOptions,
    /// Only this item: its machine's name, or its id.
    #[arg(long, value_name = "NAME")]
    item: Option<String>,
    /// A copy of this store, or one into which the item was imported: good segments are taken
    /// from there. It is only read.
    #[arg(long, value_name = "OTHER_STORE")]
    from: Option<PathBuf>,
    /// Do it. Without this, what would be done is only shown.
    #[arg(long)]
    yes_repair: bool,
    /// Take the points off the list that stay damaged after everything else was done.
    #[arg(long)]
    drop_damaged_points: bool,
}

/// What was found of one item, and done.
struct Repaired {
    item: ItemId,
    plan: RepairPlan,
    mended: u64,
    dropped: u64,
}

pub(super) fn run(options: &RepairOptions, output: Output) -> Result<(), Failure> {
    let place = &options.place;
    let store = if options.yes_repair { place.open_writer()? } else { place.open()? };
    let fail = |error: StoreError| place.failed("cannot be repaired", &error);
    let items = match &options.item {
        Some(name) => vec![find::item(place, &store, name)?.reader.item()],
        None => store.items().map_err(fail)?,
    };
    let litter = match place.place()? {
        Place::Folder(folder) => temporary_files(&folder),
        // An object is there whole or not at all.
        Place::Objects(_) => Vec::new(),
    };
    if options.yes_repair {
        for path in &litter {
            // What stays is found the next time.
            let _ = std::fs::remove_file(path);
        }
    }
    let mut all = Vec::new();
    for item in items {
        all.push(repair(options, &store, item).map_err(fail)?);
    }
    show(options, &litter, &all, output);
    let left = all.iter().map(|one| one.left(options)).sum::<usize>();
    match left {
        0 => Ok(()),
        count => {
            let what = format!("{count} damages of the store in {} are left", place.store);
            Err(problem(Code::STORE_DAMAGED, what, Code::STORE_DAMAGED.cause))
        }
    }
}

fn repair(options: &RepairOptions, store: &Store, item: ItemId) -> Result<Repaired, StoreError> {
    let copy = options.from.as_ref().map(LocalStore::open_reading);
    let copy_of = |path: &str| {
        let copy = copy.as_ref()?;
        let len = copy.len(path).ok()??;
        copy.read_at(path, 0, usize::try_from(len.min(SEGMENT_BYTES_MAX)).ok()?).ok()
    };
    let plan_of = |reader: &ItemReader| reader.repair_plan(&reader.audit(&|_, _| {})?, &copy_of);
    if !options.yes_repair {
        let plan = plan_of(&store.item_read(item)?)?;
        return Ok(Repaired { item, plan, mended: 0, dropped: 0 });
    }
    let mut opened = store.item_open(item)?;
    let plan = plan_of(opened.reader())?;
    let (mut mended, mut dropped) = (0, 0);
    for damaged in &plan.segments {
        mended += u64::from(opened.repair_segment(damaged.segment, &copy_of, wall_now())?);
    }
    // Some may have gone with the segments that they stood for.
    opened.drop_layers(&plan.layers, wall_now())?;
    if options.drop_damaged_points {
        opened.drop_points(&plan.lost_points, wall_now())?;
        dropped = plan.lost_points.len() as u64;
    }
    Ok(Repaired { item, plan, mended, dropped })
}

impl Repaired {
    /// Damages that are left, or would be.
    fn left(&self, options: &RepairOptions) -> usize {
        let lost = |records| records == GoodRecords::Nowhere || !options.yes_repair;
        let segments = self.plan.segments.iter().filter(|one| lost(one.records)).count();
        let layers = if options.yes_repair { 0 } else { self.plan.layers.len() };
        segments + layers + self.plan.other_blobs.len()
    }

    fn object(&self) -> Value {
        let word = |records| match records {
            GoodRecords::Here => "footer only",
            GoodRecords::InCopy => "good in the copy",
            GoodRecords::Nowhere => "not found",
        };
        let segments = self.plan.segments.iter();
        let segments = segments.map(|one| json!({"id": one.segment, "records": word(one.records)}));
        json!({
            "item": self.item, "segments": segments.collect::<Vec<_>>(),
            "layers": self.plan.layers,
            "lostPoints": self.plan.lost_points, "otherBlobs": self.plan.other_blobs,
            "segmentsMended": self.mended, "pointsDropped": self.dropped,
        })
    }
}

/// Files that puts which were not finished left; nobody reads them.
fn temporary_files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            } else if name.to_string_lossy().starts_with(TEMPORARY) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn show(options: &RepairOptions, litter: &[PathBuf], all: &[Repaired], output: Output) {
    if output == Output::Json {
        let items: Vec<_> = all.iter().map(Repaired::object).collect();
        print_json(&json!({
            "repaired": options.yes_repair, "temporaryFiles": litter.len(), "items": items,
        }));
        return;
    }
    let mut text = String::new();
    if !litter.is_empty() {
        text += &format!("{} temporary files of puts that were not finished\n", litter.len());
    }
    for one in all {
        let (plan, item) = (&one.plan, one.item);
        if plan.segments.is_empty() && plan.layers.is_empty() && plan.other_blobs.is_empty() {
            text += &format!("{item}: good\n");
            continue;
        }
        for damaged in &plan.segments {
            text += &match damaged.records {
                GoodRecords::Here => format!(
                    "{item}: segment {}: all its records are good; its index is made anew\n",
                    damaged.segment
                ),
                GoodRecords::InCopy => {
                    format!("{item}: segment {}: taken from the copy\n", damaged.segment)
                }
                GoodRecords::Nowhere => format!(
                    "{item}: segment {}: damaged, and no good copy is known (--from)\n",
                    damaged.segment
                ),
            };
        }
        for layer in &plan.layers {
            text += &format!(
                "{item}: layer {layer} of the index: damaged; the segments say what it said\n"
            );
        }
        for blob in &plan.other_blobs {
            text += &format!("{item}: {blob}: damaged, and not repaired\n");
        }
        for point in &plan.lost_points {
            text += &format!("{item}: point {point} cannot be read whole\n");
        }
        text +=
            &format!("{item}: {} segments mended, {} points dropped\n", one.mended, one.dropped);
    }
    if !options.yes_repair {
        text += "nothing was changed; --yes-repair does it\n";
    }
    print(&text);
}

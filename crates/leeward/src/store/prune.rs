//! `leeward store prune`: lets points go by age and by thinning, and frees what only they needed.
//! For stores that no server keeps; a server does this by its policies.

use super::{Failure, find, find::Known, place::PlaceOptions, print, print_json, problem};
use crate::{
    cli::{Output, table::bytes},
    roles::host::clock::wall_now,
};
use leeward_model::Code;
use leeward_replica::{Retention, Store, StoreError, Thinning, ThinningStep, Upkeep};
use serde_json::{Value, json};

/// What to let go.
#[derive(Clone, Debug, clap::Args)]
pub struct PruneOptions {
    #[command(flatten)]
    place: PlaceOptions,
    /// Only this item: its machine's name, or its id.
    #[arg(long, value_name = "NAME")]
    item: Option<String>,
    /// Points older than this go: a number and s, m, h or d. Without it none goes by its age.
    #[arg(long, value_name = "AGE", value_parser = age)]
    keep: Option<u64>,
    /// How older points are thinned out: AGE:EVERY pairs, as in 2h:1m,1d:1h,7d:1d; or `none`.
    #[arg(long, value_name = "STEPS", default_value = "none", value_parser = steps)]
    thin: Steps,
    /// Says what would go, and changes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Deletes at once what else stays for an hour for those who are still reading it.
    #[arg(long)]
    nobody_is_reading: bool,
    /// Also items that a server made and keeps by its policy. A server that is running holds the
    /// store, and is never passed over.
    #[arg(long)]
    i_know_a_server_owns_it: bool,
}

/// A plan of thinning, when there is one.
#[derive(Clone, Debug)]
struct Steps(Option<Thinning>);

/// A number of milliseconds from a number with a unit.
fn age(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no age: write a number and s, m, h or d, as in 14d");
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let unit_ms = match unit {
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_ms)).ok_or_else(wrong)
}

fn steps(text: &str) -> Result<Steps, String> {
    if text == "none" {
        return Ok(Steps(None));
    }
    let step = |part: &str| {
        let (after, every) =
            part.split_once(':').ok_or_else(|| format!("{part:?} is not AGE:EVERY"))?;
        Ok::<_, String>(ThinningStep { after_ms: age(after)?, every_ms: age(every)? })
    };
    let steps = text.split(',').map(step).collect::<Result<Vec<_>, _>>()?;
    Thinning::new(steps).map(|plan| Steps(Some(plan))).map_err(|error| error.to_string())
}

pub(super) fn run(options: &PruneOptions, output: Output) -> Result<(), Failure> {
    let place = &options.place;
    let store = if options.dry_run { place.open()? } else { place.open_writer()? };
    let known = match &options.item {
        Some(name) => vec![find::item(place, &store, name)?],
        None => find::items(place, &store)?,
    };
    let keep_ms = options.keep.unwrap_or(u64::MAX);
    let thinning = options.thin.0.clone();
    let retention = Retention { keep_ms, thinning, keep_until: None };
    let mut objects = Vec::new();
    for known in &known {
        check_owner(options, known)?;
    }
    for known in &known {
        let fail = |error: StoreError| place.failed("cannot be pruned", &error);
        let done = if options.dry_run {
            plan(known, &retention)
        } else {
            prune(options, &store, known, &retention)
        };
        objects.push(done.map_err(fail)?);
    }
    let kept = if options.dry_run { None } else { place.kept_words() };
    match output {
        Output::Json => {
            objects.iter_mut().for_each(|object| object["bucketKeeps"] = json!(kept));
            print_json(&objects.into());
        }
        Output::Table => {
            objects.iter().for_each(|object| print(&text(object)));
            kept.iter().for_each(|kept| print(&format!("{kept}\n")));
        }
    }
    Ok(())
}

/// Items of a server have no label: its policy says how long their points are kept.
fn check_owner(options: &PruneOptions, known: &Known) -> Result<(), Failure> {
    let label = known.reader.label();
    let label = label.map_err(|error| options.place.failed("cannot be read", &error))?;
    if label.is_some() || options.dry_run || options.i_know_a_server_owns_it {
        return Ok(());
    }
    let cause = "a server made this item and keeps its points by a policy: change that instead, \
                 or say --i-know-a-server-owns-it";
    Err(problem(Code::NOT_POSSIBLE_NOW, format!("{} was not pruned", known.label()), cause))
}

fn plan(known: &Known, retention: &Retention) -> Result<Value, StoreError> {
    let going = known.reader.expiring(wall_now(), retention)?;
    Ok(json!({
        "item": known.reader.item(), "machine": known.name, "dryRun": true,
        "points": going.points, "kept": going.kept.iter().map(|work| work.id).collect::<Vec<_>>(),
        "left": known.reader.state().points.len() - going.points.len(),
        "segments": going.segments, "freedBytes": going.bytes,
    }))
}

fn prune(
    options: &PruneOptions,
    store: &Store,
    known: &Known,
    retention: &Retention,
) -> Result<Value, StoreError> {
    let mut item = store.item_open(known.reader.item())?;
    let default = Upkeep::default();
    // By hand it is worth it whatever the gain.
    let grace_ms = if options.nobody_is_reading { 0 } else { default.grace_ms };
    item.set_upkeep(Upkeep { layer_after: 2, rewrite_gain_min: 1, grace_ms, ..default });
    let before = item.reader().stored_bytes()?;
    let now = wall_now();
    item.merge_layers(now)?;
    let expired = item.expire(now, retention)?;
    let mut segments = expired.segments.len();
    segments += item.collect(now)?.len();
    let (after, space) = (item.reader().stored_bytes()?, item.reader().space()?);
    Ok(json!({
        "item": known.reader.item(), "machine": known.name, "dryRun": false,
        "points": expired.points,
        "kept": expired.kept.iter().map(|work| work.id).collect::<Vec<_>>(),
        "left": item.reader().state().points.len(), "segments": segments,
        "freedBytes": before.saturating_sub(after), "waitingBytes": space.waiting_bytes,
    }))
}

fn text(object: &Value) -> String {
    let count = |name: &str| object[name].as_array().map_or(0, Vec::len);
    let size = |name: &str| bytes(object[name].as_f64().unwrap_or_default());
    let name = object["machine"].as_str().filter(|name| !name.is_empty());
    let name = name.or(object["item"].as_str()).unwrap_or_default();
    let (points, kept) = (count("points"), count("kept"));
    let mut out = match object["dryRun"].as_bool() {
        Some(true) => format!("{name}: {points} points and {kept} kept works would go, "),
        _ => format!("{name}: {points} points and {kept} kept works went, "),
    };
    out += &format!("{} points stay; {} freed", object["left"], size("freedBytes"));
    if object["waitingBytes"].as_u64().is_some_and(|bytes| bytes > 0) {
        out += &format!(", {} when nobody can be reading it any more", size("waitingBytes"));
    }
    for point in object["points"].as_array().into_iter().flatten() {
        out += &format!("\n  {}", point.as_str().unwrap_or_default());
    }
    out + "\n"
}

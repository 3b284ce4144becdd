//! `leeward store undelete`: a store in a bucket with versions, as it was before somebody deleted
//! or overwrote its objects. Needs no key of the store, and takes nothing away.

use super::{
    Failure,
    place::{Place, PlaceOptions},
    print, print_json, problem, time_text,
};
use crate::cli::{Output, table::bytes};
use leeward_model::{Code, Problem, UnixMillis};
use leeward_replica::{
    deletions, lost_since,
    storage::{AskError, History, Lost, ObjectPlace},
};
use serde_json::json;

/// What to bring back.
#[derive(Clone, Debug, clap::Args)]
pub struct UndeleteOptions {
    /// The store: s3://BUCKET/PREFIX.
    #[arg(value_name = "STORE")]
    store: String,
    /// As it was at this time, shortly before the damage, by the bucket's clock: RFC 3339, as in
    /// 2026-11-22T05:30:00Z. Without it, when objects were deleted is shown.
    #[arg(long, value_name = "TIME", value_parser = time)]
    as_of: Option<UnixMillis>,
    /// Do it. No other writer may be at work.
    #[arg(long, requires = "as_of")]
    yes_undelete: bool,
}

fn time(text: &str) -> Result<UnixMillis, String> {
    let time = text.parse::<jiff::Timestamp>();
    let wrong = |error| format!("{text:?} is no time, as in 2026-11-22T05:30:00Z: {error}");
    time.map(|time| UnixMillis(time.as_millisecond())).map_err(wrong)
}

pub(super) fn run(options: &UndeleteOptions, output: Output) -> Result<(), Failure> {
    let place = PlaceOptions::from(options.store.clone());
    let Place::Objects(objects) = place.place()? else {
        let cause = "a folder keeps nothing of what was deleted";
        let todo = "import an export of the store, or take the points of the other site's store; \
                    only a bucket with versions can be brought back";
        let known = Code::NOT_SUPPORTED.because(not_known(options), cause);
        return Err(Box::new(Problem { todo: todo.to_owned(), ..known }));
    };
    let history = ask(options, &objects)?;
    let Some(at) = options.as_of else {
        show_times(&history, output);
        return Ok(());
    };
    let lost = lost_since(&history, at);
    let (count, size) = (lost.len(), lost.iter().map(|lost| lost.bytes).sum());
    if !options.yes_undelete {
        show(&lost, size, output);
        return Ok(());
    }
    objects.bring_back(lost).map_err(|error| {
        let what = format!("not everything in {} came back", options.store);
        problem(Code::STORE_IO, what, format!("{error}; the same command goes on"))
    })?;
    // What was put in front again is another version of the same bytes, and was confirmed.
    let after = lost_since(&ask(options, &objects)?, at);
    let left = after.iter().filter(|lost| !lost.overwritten).count();
    if left > 0 {
        let what = format!("not everything in {} is as it was", options.store);
        let cause = format!("{left} objects changed again meanwhile: is somebody still writing?");
        return Err(problem(Code::STORE_IO, what, cause));
    }
    match output {
        Output::Json => print_json(&json!({"broughtBack": count, "bytes": size})),
        Output::Table => print(&format!(
            "{count} objects came back, {}; now: leeward store verify {}\n",
            bytes(size as f64),
            options.store
        )),
    }
    Ok(())
}

fn not_known(options: &UndeleteOptions) -> String {
    format!("what was deleted in {} is not known", options.store)
}

fn ask(options: &UndeleteOptions, objects: &ObjectPlace) -> Result<History, Failure> {
    objects.history().map_err(|error| {
        let code = match &error {
            AskError::NotS3 => Code::NOT_SUPPORTED,
            AskError::Connect(_) | AskError::Failed { .. } => Code::STORE_IO,
        };
        problem(code, not_known(options), error)
    })
}

fn show_times(history: &History, output: Output) {
    let times = deletions(history);
    if output == Output::Json {
        let times = times.iter().map(|(at, count)| json!({"at": time_text(*at), "objects": count}));
        print_json(&times.collect());
        return;
    }
    let mut text = "deleted objects that the bucket still has, by the minute of their deletion; a \
                    store's own writers delete too\n"
        .to_owned();
    for (at, count) in times {
        text += &format!("  {}  {count} objects\n", time_text(at));
    }
    print(&(text + "choose a time shortly before the damage: --as-of TIME\n"));
}

fn show(lost: &[Lost], size: u64, output: Output) {
    let object = |lost: &Lost| {
        json!({
            "object": lost.name, "bytes": lost.bytes, "since": time_text(lost.since),
            "overwritten": lost.overwritten,
        })
    };
    if output == Output::Json {
        print_json(&lost.iter().map(object).collect());
        return;
    }
    let mut text = String::new();
    for lost in lost {
        let how = if lost.overwritten { "overwritten" } else { "deleted" };
        text += &format!("{how} at {}: {}\n", time_text(lost.since), lost.name);
    }
    let (count, size) = (lost.len(), bytes(size as f64));
    print(&format!("{text}{count} objects, {size}; nothing was changed: --yes-undelete does it\n"));
}

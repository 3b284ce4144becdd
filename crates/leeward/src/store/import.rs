//! `leeward store import`: takes an item that `leeward store export` wrote into a store.

use super::{Failure, export::bar, file_problem, place::PlaceOptions, print, print_json, problem};
use crate::{
    cli::{Output, table::bytes},
    roles::host::clock::wall_now,
};
use leeward_model::Code;
use leeward_replica::RecipientSecret;
use serde_json::json;
use std::{fs::File, io::BufReader, path::PathBuf, time::Instant};

/// Bytes read from the file at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// What to import, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct ImportOptions {
    /// The exported item.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The file with the export's key; without it, FILE.key.
    #[arg(long, value_name = "KEY")]
    key: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceOptions,
}

pub(super) fn run(options: &ImportOptions, output: Output) -> Result<(), Failure> {
    let place = &options.place;
    let file = options.file.display();
    let what = || format!("{file} was not imported into the store in {}", place.store);
    let key = options.key.clone().unwrap_or_else(|| {
        let mut name = options.file.as_os_str().to_owned();
        name.push(".key");
        PathBuf::from(name)
    });
    let text = std::fs::read_to_string(&key).map_err(|error| {
        problem(Code::KEY_MISSING, what(), format!("{}: {error}", key.display()))
    })?;
    let secret = RecipientSecret::parse(&text).map_err(|error| Box::new(error.problem(what())))?;
    let input = File::open(&options.file).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => problem(Code::NOT_FOUND, what(), "there is no such file"),
        _ => file_problem(what(), &error),
    })?;
    let store = place.open_writer()?;
    let begun = Instant::now();
    let bar = bar("import");
    let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
    let done = store.import(&mut input, &secret, wall_now(), &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let done = done.map_err(|error| Box::new(error.problem(what())))?;
    let seconds = begun.elapsed().as_secs_f64();
    if output == Output::Json {
        print_json(&json!({
            "item": done.item, "points": done.points, "segments": done.segments,
            "bytes": done.bytes, "seconds": seconds,
        }));
        return Ok(());
    }
    print(&format!(
        "item {}: {} new points, {} new segments ({}), after {seconds:.1} s\n\
         every byte was proved\n",
        done.item,
        done.points,
        done.segments,
        bytes(done.bytes as f64)
    ));
    Ok(())
}

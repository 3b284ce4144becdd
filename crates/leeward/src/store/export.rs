//! `leeward store export`: an item as one sealed file, to be carried to another store.

use super::{Failure, file_problem, find, place::PlaceOptions, print, print_json, problem};
use crate::{
    cli::{Output, table::bytes},
    folder::write_secret,
    roles::host::clock::wall_now,
};
use indicatif::{ProgressBar, ProgressStyle};
use leeward_model::Code;
use leeward_replica::{Exported, RecipientSecret};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;
use std::{
    fs::File,
    io::{BufWriter, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Bytes written to the file at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// What to export.
#[derive(Clone, Debug, clap::Args)]
pub struct ExportOptions {
    #[command(flatten)]
    place: PlaceOptions,
    /// The item: its machine's name, or its id.
    #[arg(long, value_name = "NAME")]
    item: String,
    /// Only what a store that has this point does not have.
    #[arg(long, value_name = "POINT")]
    since: Option<String>,
    /// File to write the export's key to; without it, FILE.key. It has to travel another way.
    #[arg(long, value_name = "KEY")]
    key: Option<PathBuf>,
    /// The file to make. It must not exist.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(super) fn run(options: &ExportOptions, output: Output) -> Result<(), Failure> {
    let place = &options.place;
    let what = || format!("item {} was not exported to {}", options.item, options.file.display());
    let key_file = options.key.clone().unwrap_or_else(|| with(&options.file, ".key"));
    for path in [&options.file, &key_file] {
        if path.exists() {
            let cause = format!("{} exists, and is never overwritten", path.display());
            return Err(problem(Code::NAME_TAKEN, what(), cause));
        }
    }
    let store = place.open()?;
    let known = find::item(place, &store, &options.item)?;
    let since = options.since.as_deref().map(|text| known.point(text)).transpose()?;
    let partial = with(&options.file, ".partial");
    let io = |error: std::io::Error| file_problem(what(), &error);
    // What an interrupted export left there is of no use to anybody.
    let _ = std::fs::remove_file(&partial);
    let file = File::options().write(true).create_new(true).mode(0o600).open(&partial);
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file.map_err(io)?);
    let bar = bar(&options.item);
    let made =
        known.reader.export(since.map(|point| point.id), wall_now(), &mut out, &mut |a, b| {
            bar.set_length(b);
            bar.set_position(a);
        });
    bar.finish_and_clear();
    let made = made.map_err(|error| Box::new(error.problem(what())));
    let placed = made.and_then(|(exported, secret)| {
        out.flush().map_err(io)?;
        out.get_ref().sync_all().map_err(io)?;
        finish(&partial, &options.file, &key_file, &secret).map_err(io)?;
        Ok(exported)
    });
    if placed.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    show(options, &key_file, &placed?, output);
    Ok(())
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn bar(item: &str) -> ProgressBar {
    let style = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.with_message(item.to_owned())
}

/// Keeps the key, then gives the file its name: whoever finds it finds a whole one with its key.
fn finish(
    partial: &Path,
    file: &Path,
    key_file: &Path,
    secret: &RecipientSecret,
) -> std::io::Result<()> {
    let (file, key_file) = (std::path::absolute(file)?, std::path::absolute(key_file)?);
    write_secret(&key_file, format!("{}\n", secret.to_text()).as_bytes())?;
    renameat_with(CWD, partial, CWD, &file, RenameFlags::NOREPLACE)?;
    match file.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn show(options: &ExportOptions, key_file: &Path, exported: &Exported, output: Output) {
    if output == Output::Json {
        print_json(&json!({
            "export": exported.export, "file": options.file, "keyFile": key_file,
            "points": exported.points, "segments": exported.segments, "bytes": exported.bytes,
            "since": options.since,
        }));
        return;
    }
    print(&format!(
        "{} points, {} segments ({}) are in {}\nits key is in {}: carry it another way than the \
         file\n",
        exported.points,
        exported.segments,
        bytes(exported.bytes as f64),
        options.file.display(),
        key_file.display()
    ));
}

//! `leeward store`: the break-glass tool. It opens a replica store with the store's own key file or
//! its recovery key, and needs no server, no network and no database.
//!
//! `place` opens stores, `find` turns names into items, points and disks; every other file is a
//! verb. Looking changes nothing in a store; serving and restoring leave a pin for their
//! time, and a note of who did what. What a store is lies in `leeward-replica`.

mod capture;
mod diff;
mod export;
mod find;
mod import;
mod init;
mod overlay;
mod pin;
pub(crate) mod place;
mod prune;
pub(crate) mod record;
mod rekey;
mod repair;
mod restore;
mod serve;
mod show;
mod shred;
mod source;
mod undelete;
mod verify;

use crate::cli::Output;
use leeward_model::{Code, Problem};
use std::{io::Write as _, process::ExitCode};

/// What stands below the help: an emergency card, and the exit codes.
pub const CARD: &str = "In an emergency, with nothing left but the store:
  1. What is there?         leeward store points STORE
  2. Is it good?            leeward store verify STORE
  3. Run from it at once    leeward store serve STORE --item NAME --point latest --disk ID \\
                              --socket /tmp/disk.sock
     and start QEMU with    -drive file=nbd+unix:///?socket=/tmp/disk.sock,format=raw,snapshot=on
  4. Get a disk back        leeward store restore STORE --item NAME --point latest --disk ID OUT
STORE is a folder, DATA/store of `leeward up` or `leeward host`, or a place in a bucket:
s3://BUCKET/PREFIX (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL) or
az://CONTAINER/PREFIX (AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY). NAME is the
machine's name. The key file lies in the folder; that of a bucket never does, and is given with
--key-file FILE. If it is lost: --recovery-key FILE (`-` reads standard input).
Reading takes no lock and changes nothing: it is safe beside a running server.

Exit codes: 0 done; 1 it failed, or something is damaged; 2 the command line cannot be used;
4 there is no such store, item, point or disk, or the store refuses; 5 not supported yet";

/// The exit codes of the tool, and of `leeward kit`.
pub const EXIT_CODES: &str = "Exit codes: 0 done; 1 it failed, or something is damaged; 2 the \
command line cannot be used;
4 there is no such store, item, point or disk, or the store refuses; 5 not supported yet";

/// The verbs of the tool.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum StoreVerb {
    /// Makes a store in an empty folder or bucket; its recovery key is written beside it, once.
    Init(init::InitOptions),
    /// Lists recovery points, newest first.
    Points(show::PointsOptions),
    /// Shows what the store holds: items, bytes, timelines, pins.
    Stats(show::StatsOptions),
    /// Serves one disk of a point over NBD until it is ended: read-only, or with --writable into
    /// an overlay that is gone then.
    Serve(serve::ServeOptions),
    /// Writes one disk of a point to a new file.
    Restore(restore::RestoreOptions),
    /// Lists the parts of disks that differ between two points.
    Diff(diff::DiffOptions),
    /// Reads and proves every byte; names what is bad and the points it touches.
    Verify(verify::VerifyOptions),
    /// Puts right what can be put right without guessing; without --yes-repair it only shows it.
    Repair(repair::RepairOptions),
    /// Makes new keys: data keys of items, the recovery key, the key file.
    Rekey(rekey::RekeyOptions),
    /// Destroys an item for good: its keys first, then its data.
    Shred(shred::ShredOptions),
    /// Writes an item to one sealed file, to be carried to another store.
    Export(export::ExportOptions),
    /// Takes an item that was exported into a store.
    Import(import::ImportOptions),
    /// Makes a recovery point of disks that are files, block devices or NBD exports.
    Capture(capture::CaptureOptions),
    /// Keeps a point whatever its age, until it is unpinned.
    Pin(pin::PinOptions),
    /// Takes the pins of a point off; who did it and why stays in the store.
    Unpin(pin::UnpinOptions),
    /// Lets points go by age and by thinning, and frees what only they needed.
    Prune(prune::PruneOptions),
    /// Brings back what was deleted or overwritten in a bucket that keeps versions (object lock);
    /// without --yes-undelete it only shows it.
    Undelete(undelete::UndeleteOptions),
}

/// What a verb says that does not end well.
pub(crate) type Failure = Box<Problem>;

/// Runs a verb; its exit code is that of the card.
pub async fn run(verb: StoreVerb, output: Output) -> ExitCode {
    let done = match verb {
        StoreVerb::Init(options) => blocking(move || init::run(&options, output)).await,
        StoreVerb::Points(options) => blocking(move || show::points(&options, output)).await,
        StoreVerb::Stats(options) => blocking(move || show::stats(&options, output)).await,
        StoreVerb::Serve(options) => serve::run(options).await,
        StoreVerb::Restore(options) => restore::run(options).await,
        StoreVerb::Diff(options) => blocking(move || diff::run(&options, output)).await,
        StoreVerb::Verify(options) => blocking(move || verify::run(&options, output)).await,
        StoreVerb::Repair(options) => blocking(move || repair::run(&options, output)).await,
        StoreVerb::Rekey(options) => blocking(move || rekey::run(&options, output)).await,
        StoreVerb::Shred(options) => blocking(move || shred::run(&options, output)).await,
        StoreVerb::Export(options) => blocking(move || export::run(&options, output)).await,
        StoreVerb::Import(options) => blocking(move || import::run(&options, output)).await,
        StoreVerb::Capture(options) => capture::run(options).await,
        StoreVerb::Pin(options) => blocking(move || pin::pin(&options, output)).await,
        StoreVerb::Unpin(options) => blocking(move || pin::unpin(&options, output)).await,
        StoreVerb::Prune(options) => blocking(move || prune::run(&options, output)).await,
        StoreVerb::Undelete(options) => blocking(move || undelete::run(&options, output)).await,
    };
    finish(done)
}

/// The exit code of a verb, after its problem was written to standard error.
pub(crate) fn finish(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // A closed standard error leaves the exit code to tell.
            let _ = writeln!(std::io::stderr(), "{problem}");
            ExitCode::from(exit_code(&problem))
        }
    }
}

fn exit_code(problem: &Problem) -> u8 {
    let is = |codes: &[Code]| codes.iter().any(|code| code.code == problem.code);
    if is(&[Code::BAD_REQUEST]) {
        2
    } else if is(&[Code::NOT_SUPPORTED]) {
        5
    } else if is(&[
        Code::NOT_FOUND,
        Code::NO_POINT,
        Code::NAME_TAKEN,
        Code::NOT_POSSIBLE_NOW,
        Code::FOLDER_IN_USE,
        Code::STORE_FOREIGN,
        Code::KEY_MISSING,
    ]) {
        4
    } else {
        1
    }
}

/// Runs work that waits for disks off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Box::new(Code::INTERNAL.because("the verb stopped", error.to_string()))),
    }
}

/// The problem of a code for one object, boxed.
pub(crate) fn problem(code: Code, what: impl Into<String>, cause: impl ToString) -> Failure {
    Box::new(code.because(what, cause.to_string()))
}

/// The problem of a file that is not the store's.
pub(crate) fn file_problem(what: impl Into<String>, error: &std::io::Error) -> Failure {
    let full =
        matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
    Box::new(Problem {
        code: if full { Code::STORE_NO_SPACE.code } else { Code::STORE_IO.code }.into(),
        what: what.into(),
        cause: error.to_string(),
        now: "the store was not changed by this".into(),
        todo: "correct the cause and run the command again".into(),
    })
}

/// Writes to standard output; a reader that went away has seen enough.
pub(crate) fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Writes JSON to standard output.
pub(crate) fn print_json(value: &serde_json::Value) {
    print(&format!("{value:#}\n"));
}

/// A wall time in RFC 3339, in UTC.
pub(crate) fn time_text(time: leeward_model::UnixMillis) -> String {
    jiff::Timestamp::from_millisecond(time.0)
        .map_or_else(|_| String::new(), |time| time.to_string())
}

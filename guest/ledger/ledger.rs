//! Keeps a ledger over two disks, so that a copy of both can be judged from its contents alone.
//!
//! Each step makes three writes durable, one after the other: record N in log A (boot disk), a
//! page of the table stamped N (data disk), record N in log B (data disk). A copy of the two
//! disks that shows a later write without an earlier one is not one moment of the machine.
//!
//! Standard library only: `rustc -O -C target-feature=+crt-static ledger.rs`; its own tests:
//! `rustc --test ledger.rs`. It is not a benchmark, and it cannot see damage outside its
//! three files: the file systems are checked by `verify-image.sh`.

#![deny(unsafe_code)]
#![warn(missing_docs)]

mod judge;
mod screen;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use judge::{
    Judgement, LogScan, Noise, PAGE_BYTES, PAGES_MAX, Record, Side, Verdict, judge_files,
    log_offset, page_bytes, u32_at,
};

const USAGE: &str = "usage: ledger run LOG_A LOG_B TABLE      verify, report, then append
       ledger verify LOG_A LOG_B TABLE   judge only; exit 0 only when ok
       ledger dump LOG_A LOG_B           the newest records of both logs";

/// 16 MiB: the table of the default guest fits its 64 MiB data disk with room for the rest.
const PAGES_DEFAULT: u32 = 4096;
/// 5 ms between steps keeps the rate below 200 records a second however fast the disks are.
const DELAY_DEFAULT: Duration = Duration::from_millis(5);
/// The port's driver reports "no host" as end of file at once, so it must be asked again.
const PORT_POLL: Duration = Duration::from_millis(100);
/// A longer command line on the port is thrown away.
const COMMAND_BYTES_MAX: usize = 256;
/// While this file is there, the power button does nothing.
const DEAF: &str = "/run/deaf";
const PORT_NAME: &str = "leeward.workload";

// ---------------------------------------------------------------- entry

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["run", a, b, table] => run(&Paths::new(a, b, table)),
        ["verify", a, b, table] => verify(&Paths::new(a, b, table)),
        ["dump", a, b] => dump(Path::new(a), Path::new(b)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|failure| {
        println!("LEDGER-ERROR {{\"error\":\"{failure}\"}}");
        ExitCode::from(2)
    })
}

struct Paths {
    log_a: PathBuf,
    log_b: PathBuf,
    table: PathBuf,
}

impl Paths {
    fn new(log_a: &str, log_b: &str, table: &str) -> Self {
        Self { log_a: log_a.into(), log_b: log_b.into(), table: table.into() }
    }
}

/// What was tried, on what, and why it did not work.
#[derive(Debug)]
struct Failure {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {} {}: {}", self.action, self.path.display(), self.source)
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Failure + 'a {
    move |source| Failure { action, path: path.to_path_buf(), source }
}

fn verify(paths: &Paths) -> Result<ExitCode, Failure> {
    let verdict = judge_files(paths)?.verdict;
    // A copy without a single record proves nothing, so it is not called good.
    let good = verdict.ok() && verdict.last_a > 0;
    println!("LEDGER {}", verdict.json(good, 0.0));
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn dump(log_a: &Path, log_b: &Path) -> Result<ExitCode, Failure> {
    const RECORDS_SHOWN: u64 = 16;
    for (name, side, path) in [("a", Side::A, log_a), ("b", Side::B, log_b)] {
        let scan = LogScan::of(&read_whole(path)?, side);
        for seq in scan.last.saturating_sub(RECORDS_SHOWN - 1).max(1)..=scan.last {
            if let Some(r) = scan.record(seq) {
                println!(
                    "{{\"log\":\"{name}\",\"seq\":{seq},\"wall_ns\":{},\"page\":{},\"boot\":{}}}",
                    r.wall_ns, r.page, r.boot
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a file; one that does not exist is an empty one, as on disks never booted.
fn read_whole(path: &Path) -> Result<Vec<u8>, Failure> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(failed("read", path)),
    }
}

// ---------------------------------------------------------------- the running ledger

fn run(paths: &Paths) -> Result<ExitCode, Failure> {
    let judgement = judge_files(paths)?;
    let report = judgement.verdict.json(judgement.verdict.ok(), uptime_s());
    say(&format!("LEDGER {report}"));
    let options = Options::from_kernel_command_line();
    let shared = Arc::new(Shared::new(&judgement.verdict, report, options.delay));
    let for_display = Arc::clone(&shared);
    thread::spawn(move || screen::show(&for_display));
    let for_port = Arc::clone(&shared);
    thread::spawn(move || serve_port(&for_port));
    if !judgement.verdict.ok() {
        // Appending would grind the evidence away; the port and the display go on telling.
        say("LEDGER-STOPPED the disks contradict each other; nothing is appended");
        loop {
            thread::park();
        }
    }
    Writer::open(paths, judgement, options.pages)?.write_forever(&shared)
}

/// Prints one line; a console that went away is no reason to stop.
fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// `ledger.delay_us=` and `ledger.pages=` of the kernel command line.
struct Options {
    delay: Duration,
    pages: u32,
}

impl Options {
    fn from_kernel_command_line() -> Self {
        Self::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
    }

    fn parse(command_line: &str) -> Self {
        let mut options = Self { delay: DELAY_DEFAULT, pages: PAGES_DEFAULT };
        for word in command_line.split_whitespace() {
            if let Some(us) = word.strip_prefix("ledger.delay_us=").and_then(|v| v.parse().ok()) {
                options.delay = Duration::from_micros(us);
            }
            if let Some(pages) = word.strip_prefix("ledger.pages=").and_then(|v| v.parse().ok()) {
                options.pages = u32::clamp(pages, 1, PAGES_MAX);
            }
        }
        options
    }
}

/// What the writer, the port and the display know in common.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone)]
struct State {
    seq_a: u64,
    seq_b: u64,
    /// Time of the newest record on both disks.
    wall_ns: u64,
    /// Longest step (three durable writes) since the last reset.
    io_max: Duration,
    /// Longest time between two records since the last reset; a pause does not count.
    gap_max: Duration,
    last_record_at: Option<Instant>,
    paused: bool,
    delay: Duration,
    damaged: bool,
    boot: u32,
    boot_report: String,
}

impl Shared {
    fn new(verdict: &Verdict, boot_report: String, delay: Duration) -> Self {
        let state = State {
            seq_a: verdict.last_a,
            seq_b: verdict.last_b,
            wall_ns: verdict.last_wall_ns,
            io_max: Duration::ZERO,
            gap_max: Duration::ZERO,
            last_record_at: None,
            paused: false,
            delay,
            damaged: !verdict.ok(),
            boot: verdict.boot_count + 1,
            boot_report,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the state")
    }

    /// Waits for the delay between two steps, and on for as long as the ledger is paused.
    fn wait_for_next_step(&self) {
        let state = self.lock();
        let delay = state.delay;
        let (state, _) = self
            .changed
            .wait_timeout_while(state, delay, |now| now.delay == delay && !now.paused)
            .expect("no thread panics while it holds the state");
        drop(
            self.changed
                .wait_while(state, |now| now.paused)
                .expect("no thread panics while it holds the state"),
        );
    }
}

struct Writer<'a> {
    paths: &'a Paths,
    log_a: File,
    log_b: File,
    table: File,
    pages: u32,
    boot: u32,
    last_b: u64,
    unfinished: Option<Record>,
    noise: Noise,
}

impl<'a> Writer<'a> {
    fn open(paths: &'a Paths, judgement: Judgement, pages: u32) -> Result<Self, Failure> {
        Ok(Self {
            paths,
            log_a: open_durable(&paths.log_a)?,
            log_b: open_durable(&paths.log_b)?,
            table: open_durable(&paths.table)?,
            pages,
            boot: judgement.verdict.boot_count + 1,
            last_b: judgement.verdict.last_b,
            unfinished: judgement.unfinished,
            noise: Noise::from_clock(),
        })
    }

    /// Returns only when a write failed: the caller starts anew, and so checks the disks again.
    fn write_forever(mut self, shared: &Shared) -> Result<ExitCode, Failure> {
        let mut announced = false;
        loop {
            shared.wait_for_next_step();
            let begun = Instant::now();
            let record = self.step(shared)?;
            let mut state = shared.lock();
            let done = Instant::now();
            state.io_max = state.io_max.max(done - begun);
            if let Some(before) = state.last_record_at.replace(done) {
                state.gap_max = state.gap_max.max(done - before);
            }
            state.seq_b = record.seq;
            state.wall_ns = record.wall_ns;
            drop(state);
            if !announced {
                let uptime = uptime_s();
                say(&format!(
                    "LEDGER-FIRST {{\"seq\":{},\"wall_ns\":{},\"uptime_s\":{uptime:.2}}}",
                    record.seq, record.wall_ns
                ));
                announced = true;
            }
        }
    }

    /// One step of the ledger; a step that a crash cut short is finished with its own page.
    fn step(&mut self, shared: &Shared) -> Result<Record, Failure> {
        let mut record = match self.unfinished.take() {
            Some(record) => record,
            None => self.begin()?,
        };
        shared.lock().seq_a = record.seq;
        let page = page_bytes(&record, &mut self.noise);
        let offset = u64::from(record.page) * PAGE_BYTES as u64;
        put(&self.table, &self.paths.table, offset, &page)?;
        record.side = Side::B;
        record.boot = self.boot;
        record.page_crc = u32_at(&page, PAGE_BYTES - 4);
        record.wall_ns = wall_ns();
        put(&self.log_b, &self.paths.log_b, log_offset(record.seq), &record.encode())?;
        self.last_b = record.seq;
        Ok(record)
    }

    fn begin(&mut self) -> Result<Record, Failure> {
        let record = Record {
            side: Side::A,
            seq: self.last_b + 1,
            wall_ns: wall_ns(),
            page: (self.noise.next() % u64::from(self.pages)) as u32,
            page_crc: 0,
            boot: self.boot,
        };
        put(&self.log_a, &self.paths.log_a, log_offset(record.seq), &record.encode())?;
        Ok(record)
    }
}

fn put(file: &File, path: &Path, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
    file.write_all_at(bytes, offset).map_err(failed("write to", path))?;
    file.sync_data().map_err(failed("make durable", path))
}

/// Opens or makes a file whose name outlives a crash from now on.
fn open_durable(path: &Path) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(path).map_err(failed("open", path))?;
    file.sync_all().map_err(failed("make durable", path))?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder_handle = File::open(folder).map_err(failed("open", folder))?;
    folder_handle.sync_all().map_err(failed("make durable", folder))?;
    Ok(file)
}

// ---------------------------------------------------------------- the port

/// Answers every command line on the virtio-serial port with one line of JSON, for ever.
fn serve_port(shared: &Shared) {
    loop {
        if let Some(mut port) = open_port() {
            let mut line = Vec::new();
            // An error means that the port was unplugged: look for it again.
            while serve_some(&mut port, &mut line, shared).is_ok() {}
        }
        thread::sleep(PORT_POLL);
    }
}

fn open_port() -> Option<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT_NAME {
            let device = Path::new("/dev").join(entry.file_name());
            return OpenOptions::new().read(true).write(true).open(device).ok();
        }
    }
    None
}

fn serve_some(port: &mut File, line: &mut Vec<u8>, shared: &Shared) -> io::Result<()> {
    let mut bytes = [0u8; COMMAND_BYTES_MAX];
    let count = port.read(&mut bytes)?;
    if count == 0 {
        line.clear();
        thread::sleep(PORT_POLL);
    }
    for byte in &bytes[..count] {
        if *byte != b'\n' {
            line.push(*byte);
            continue;
        }
        if line.len() <= COMMAND_BYTES_MAX {
            let answer = answer(&String::from_utf8_lossy(line), shared);
            port.write_all(answer.as_bytes())?;
        }
        line.clear();
    }
    line.truncate(COMMAND_BYTES_MAX + 1);
    Ok(())
}

/// Obeys the words of one line and tells the state after it; `id=` comes back in the answer.
fn answer(line: &str, shared: &Shared) -> String {
    let mut state = shared.lock();
    let mut id = 0u64;
    let mut error = "";
    let mut reset = false;
    for word in line.split_whitespace() {
        match word.split_once('=') {
            None if word == "state" => {}
            None if word == "reset" => reset = true,
            None if word == "pause" => state.paused = true,
            None if word == "resume" => {
                state.paused = false;
                state.last_record_at = None;
            }
            None if word == "deaf" => {
                if fs::write(DEAF, "").is_err() {
                    error = "could not become deaf";
                }
            }
            None if word == "hearing" => {
                // One that was not deaf hears already.
                let _ = fs::remove_file(DEAF);
            }
            Some(("delay", us)) => match us.parse() {
                Ok(us) => state.delay = Duration::from_micros(us),
                Err(_) => error = "delay is not a number of microseconds",
            },
            Some(("id", number)) => id = number.parse().unwrap_or(0),
            _ => error = "known: state reset pause resume deaf hearing delay=US id=N",
        }
    }
    shared.changed.notify_all();
    let text = state_json(&state, id, error);
    if reset {
        state.io_max = Duration::ZERO;
        state.gap_max = Duration::ZERO;
    }
    text
}

fn state_json(state: &State, id: u64, error: &str) -> String {
    format!(
        "{{\"id\":{id},\"error\":\"{error}\",\"seq_a\":{},\"seq_b\":{},\"wall_ns\":{},\
         \"now_ns\":{},\"max_io_ms\":{:.2},\"max_gap_ms\":{:.2},\"paused\":{},\"delay_us\":{},\
         \"uptime_s\":{:.2},\"boot\":{}}}\n",
        state.seq_a,
        state.seq_b,
        state.wall_ns,
        wall_ns(),
        state.io_max.as_secs_f64() * 1e3,
        state.gap_max.as_secs_f64() * 1e3,
        state.paused,
        state.delay.as_micros(),
        uptime_s(),
        state.boot_report,
    )
}

// ---------------------------------------------------------------- clock

fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Seconds since the kernel started; 0 where `/proc` does not tell.
fn uptime_s() -> f64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

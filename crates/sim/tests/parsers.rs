//! E19: every parser of bytes that others send or that lie on disks, fed with changed samples of
//! the real thing. It must answer: no panic, no hang, no memory beyond a bound.
//!
//! What parsers accept is not judged here: their own tests do that. `LEEWARD_SEED=n` replays a
//! run, `LONG=1` takes two thousand times as many samples.

#[path = "parsers/changed.rs"]
mod changed;
#[path = "parsers/table.rs"]
mod table;

use changed::Changed;
use leeward_replica::storage::Seeded;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Changed samples for each parser in a usual run, and in a long one.
const SAMPLES: u64 = 5_000;
const SAMPLES_LONG: u64 = 10_000_000;
/// Most address space that the process may take beyond what it has when the parsers begin, in
/// bytes: an allocation beyond ends the test.
const MEMORY_MAX: u64 = 256 << 20;

/// Bounds the memory of this process from now on.
fn bound_memory() {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells the memory");
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let size = size.and_then(|size| size.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let now = size.expect("the size in kB") << 10;
    let limit = Some(now + MEMORY_MAX);
    let limits = rustix::process::Rlimit { current: limit, maximum: limit };
    rustix::process::setrlimit(rustix::process::Resource::As, limits).expect("a lower limit");
}

#[test]
fn no_changed_sample_makes_a_parser_panic_or_take_much_memory() {
    let seed = std::env::var("LEEWARD_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let samples = if std::env::var_os("LONG").is_some() { SAMPLES_LONG } else { SAMPLES };
    let parsers = table::parsers();
    bound_memory();
    let mut failures = Vec::new();
    for parser in &parsers {
        let mut changed = Changed::new(&parser.samples, Seeded::new(seed));
        assert!((parser.parse)(&parser.samples[0]), "{}: the sample is not one", parser.name);
        let mut refused = 0_u64;
        for _ in 0..samples {
            let bytes = changed.draw();
            match catch_unwind(AssertUnwindSafe(|| (parser.parse)(&bytes))) {
                Ok(accepted) => refused += u64::from(!accepted),
                Err(_) => {
                    failures.push(format!("{}: {:02x?}", parser.name, bytes));
                    break;
                }
            }
        }
        assert!(refused > 0, "{}: nothing is ever refused", parser.name);
    }
    assert!(failures.is_empty(), "panics: {failures:#?}");
    let count = parsers.len();
    println!("PROOF E19 parsers={count} samples={} seed={seed}", samples * count as u64);
}

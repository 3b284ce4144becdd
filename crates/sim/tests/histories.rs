//! Random histories against the byte-exact oracle, the seeds that once failed, and the proof that
//! the oracle sees mistakes.
//!
//! `LEEWARD_SEED=n` lives through one history and tells it; `LONG=1` through many.

use leeward_sim::world::{
    Mistakes,
    history::{Told, live, live_all},
    simulate,
};

/// Histories of a usual run.
const HISTORIES: u64 = 200;
/// Histories of a long run.
const HISTORIES_LONG: u64 = 20_000;

fn tell(seed: u64, told: &Told) -> String {
    let deeds: Vec<String> =
        told.deeds.iter().map(|(ms, deed)| format!("  {ms:>7} ms {deed:?}")).collect();
    let violations = told.violations.join("\n  ");
    format!("LEEWARD_SEED={seed}\n{}\n violated:\n  {violations}", deeds.join("\n"))
}

/// E11.
#[test]
fn random_histories_keep_every_promise() {
    if let Ok(seed) = std::env::var("LEEWARD_SEED") {
        let seed = seed.parse().expect("LEEWARD_SEED is a number");
        let told = simulate(live(seed, Mistakes::default()));
        eprintln!("{}", tell(seed, &told));
        assert!(told.violations.is_empty(), "seed {seed}");
        return;
    }
    let long = std::env::var_os("LONG").is_some();
    let count = if long { HISTORIES_LONG } else { HISTORIES };
    let first = std::env::var("LEEWARD_FIRST_SEED").map_or(0, |text| text.parse().unwrap());
    let begun = std::time::Instant::now();

    let (failed, points) = live_all(first..first + count, |_| Mistakes::default(), 10);

    let took = begun.elapsed().as_secs_f64();
    eprintln!("seeds {first} to {}: {points} points in {took:.0} s", first + count - 1);
    let told: Vec<_> = failed.iter().map(|(seed, told)| tell(*seed, told)).collect();
    assert!(told.is_empty(), "{} histories failed:\n{}", told.len(), told.join("\n\n"));
}

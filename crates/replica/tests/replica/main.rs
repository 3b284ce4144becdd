//! Tests of the replica store through its public face: a source that seals, a disk that crashes,
//! and a model that knows what must be there.
//!
//! `LEEWARD_SEED=n` replays a run; every random test prints its seed.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests")]

mod adoption;
mod behaviour;
mod crash;
mod damage;
mod divergent;
mod faults;
mod golden;
mod half_made;
mod keys;
mod layers;
mod objects;
mod oracle;
mod outline;
mod races;
mod reads;
mod retention;
mod rough;
mod storage;
mod verbs;
mod world;
mod worn;

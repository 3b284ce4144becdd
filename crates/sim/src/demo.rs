//! The demo: two sites on one machine, a real guest, a real disaster, and the proof.
//!
//! It drives the product through the public API alone; what it reads beside it (the guest's
//! console and disks) is only for judging the product.

pub mod api;
pub mod guest;
pub mod judge;
pub mod progress;
pub mod report;
pub mod sites;
pub mod stage;
pub mod story;

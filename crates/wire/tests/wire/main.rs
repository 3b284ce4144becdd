//! The formats of the crate from outside: round trips, damage, golden files.

mod credits;
mod damage;
mod data;
mod frame;
mod golden;
mod marker;
mod message;
mod samples;
mod seal;
mod segment;

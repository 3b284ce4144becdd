//! A host: capture, process server and master target of one machine that runs guests.
//!
//! It holds one session to the config server, gets the whole desired state, converges on it with
//! one worker per thing, and reports the whole observed state. It is never called.

pub mod board;
pub mod clock;
pub mod dial;

//! For developers only: what drives the product from outside. The demo's sites and checks, and
//! the simulated world of the random histories. Nothing of the product depends on it.

pub mod demo;
pub mod world;

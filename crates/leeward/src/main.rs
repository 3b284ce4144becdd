//! The `leeward` binary.
fn main() {}

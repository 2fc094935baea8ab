//! The drawing of the crate, as a test.
fn main() {}

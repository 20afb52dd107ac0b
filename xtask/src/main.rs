//! Chores of the egressd workspace.
fn main() {}

//! egressd, the command.

mod cli;

fn main() {}

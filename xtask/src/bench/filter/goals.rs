//! What the filter may cost.

use super::{
    page::{Goal, Limit},
    side::Filter,
    startup,
    table::{CONNECT, Results, SEND, SENDTO_RANDOM},
};

/// The size that most goals are stated for.
const USUAL: u32 = 1_000;

/// `sizes`: what was measured, in rising order.
pub(super) fn all(results: &Results, sizes: &[u32]) -> Vec<Goal> {
    let ratio = |row, filter| results.ratio(row, USUAL, filter);
    let figure = |name| results.figures.get(name).copied();
    let program = figure(startup::PROGRAM_NS).zip(figure(startup::EMPTY_NS)).map(|(program, empty)| program / empty);
    let goal = |what, at_most, measured, unit| Goal { what, limit: Limit::AtMost(at_most), measured, unit };
    vec![
        goal("UDP packet, cgroup hooks, 1k permits", 1.12, ratio(SEND, Filter::Egressd), "x"),
        goal("UDP packet, with the device", 1.18, ratio(SEND, Filter::EgressdDevice), "x"),
        goal("connect p50, cgroup hooks, 1k permits", 1.10, ratio(CONNECT, Filter::Egressd), "x"),
        goal("connect p50, with the device", 1.15, ratio(CONNECT, Filter::EgressdDevice), "x"),
        goal("growth of the added cost, fewest to most permits", 3.0, growth(results, sizes), "x"),
        // 130 ns where an empty program reads 26 ns.
        goal("egress program, allowed IPv4 UDP packet, beside an empty program", 5.0, program, "x"),
        goal("loading all programs", 12.0, figure(startup::LOAD_MS), "ms"),
        goal("attaching a sandbox, programs loaded", 1.0, figure(startup::ATTACH_MS), "ms"),
        goal("`run -- true`, more than `true`", 15.0, figure(startup::RUN_MS), "ms"),
        goal("the same, a program set preloaded", 15.0, figure(startup::RUN_PRELOADED_MS), "ms"),
        goal("one more permit through the agent, p50", 200.0, figure(startup::PERMIT_US), "us"),
        goal("kernel memory, 1k permits", 4.0, results.kernel_bytes.get(&USUAL).map(|bytes| *bytes as f64 / 1e6), "MB"),
    ]
}

/// By random destinations, because one destination stays in the cache whatever the size.
fn growth(results: &Results, sizes: &[u32]) -> Option<f64> {
    let added = |permitted| results.added(SENDTO_RANDOM, permitted, Filter::Egressd);
    let (fewest, most) = (sizes.first()?, sizes.last()?);
    // Below a nanosecond the quotient would be noise.
    if fewest == most { None } else { Some(added(*most)? / added(*fewest)?.max(1.0)) }
}

//! The part of the page about names.

use super::{
    OUTSTANDING, Results,
    page::{self, Goal, Limit, digits, machine},
    side::Resolver,
};
use std::fmt::{self, Write as _};

pub(super) const MISS_US: &str = "miss, p50 us";
pub(super) const MANY_US: &str = "miss with 45 addresses, p50 us";
pub(super) const HIT_US: &str = "hit, p50 us";
pub(super) const DENIED_US: &str = "denial, p50 us";
pub(super) const MISS_QPS: &str = "misses, thousands a second";
pub(super) const HIT_QPS: &str = "hits, thousands a second";
pub(super) const DENIED_QPS: &str = "denials, thousands a second";
pub(super) const MISS_CPU_US: &str = "the resolver's CPU time of such a miss, us";
const ROWS: [&str; 8] = [MISS_US, MANY_US, HIT_US, DENIED_US, MISS_QPS, MISS_CPU_US, HIT_QPS, DENIED_QPS];

pub(super) const IDLE_MIB: &str = "idle";
pub(super) const GROWTH_MIB: &str = "growth";

/// The text, and whether every goal that was measured is reached.
pub(super) fn render(results: &Results, rounds: usize) -> Result<(String, bool), fmt::Error> {
    let mut part = String::new();
    writeln!(part, "## Names\n\nWritten by `cargo xtask bench dns` on {}.\n", machine())?;
    writeln!(
        part,
        "Medians of {rounds} paired rounds; in brackets the median of the rounds' ratios to dnsmasq. Each resolver has a namespace \
         of its own, one thread, and the same scripted upstream on loopback. Times are with one question outstanding, \
         the resolver on one CPU, and the generator and the upstream on another, for where the scheduler happens to put them is worth more than \
         what they differ by. Rates are with {OUTSTANDING} outstanding, on whichever CPUs. Answers live for 300 s, and a name is asked for again when \
         nobody has it any more: every miss is seen by the upstream. egressd judges each name by a policy of 22 000, and has every \
         address in the kernel's map before it answers; dnsmasq --nftset has it in an nftables set with a timeout; unbound does without its validator. \
         The bare forwarder receives, sends, receives and sends, one message at a time and all questions from one port, and tries each socket \
         once more than it has to; egressd writes a permit, and takes a port and an id of its own for each question."
    )?;
    write!(part, "\n| |")?;
    for resolver in Resolver::ALL {
        write!(part, " {} |", resolver.name())?;
    }
    writeln!(part, "\n|---|{}", "---|".repeat(Resolver::ALL.len()))?;
    for row in ROWS {
        write!(part, "| {row} |")?;
        let scale = if row.contains("thousands") { 1e-3 } else { 1.0 };
        for resolver in Resolver::ALL {
            let Some(value) = results.pairs.median(row, resolver) else {
                write!(part, " |")?;
                continue;
            };
            write!(part, " {}", digits(value * scale))?;
            let ratio = results.pairs.ratio((row, resolver), (row, Resolver::Dnsmasq));
            match ratio.filter(|_| resolver != Resolver::Dnsmasq) {
                Some(ratio) => write!(part, " ({ratio:.2}x) |")?,
                None => write!(part, " |")?,
            }
        }
        writeln!(part)?;
    }
    writeln!(part, "\n### Goals of names")?;
    let reached = page::goals(&mut part, &goals(results))?;
    Ok((part, reached))
}

fn goals(results: &Results) -> Vec<Goal> {
    let to = |row, other_row, other| results.pairs.ratio((row, Resolver::Egressd), (other_row, other));
    let dnsmasq = |row, other_row| to(row, other_row, Resolver::Dnsmasq);
    let figure = |name| results.figures.get(name).copied();
    let goal = |what, limit, measured, unit| Goal { what, limit, measured, unit };
    let (most, least) = (Limit::AtMost, Limit::AtLeast);
    let many = results.pairs.added((MANY_US, Resolver::Egressd), (MISS_US, Resolver::Egressd));
    vec![
        goal("miss p50, to dnsmasq", most(1.2), dnsmasq(MISS_US, MISS_US), "x"),
        goal("misses a second, to dnsmasq", least(1.0), dnsmasq(MISS_QPS, MISS_QPS), "x"),
        goal("misses a second, to dnsmasq --nftset", least(3.0), to(MISS_QPS, MISS_QPS, Resolver::DnsmasqNftset), "x"),
        goal("misses a second, to unbound", least(3.0), to(MISS_QPS, MISS_QPS, Resolver::Unbound), "x"),
        goal("hit p50, to dnsmasq", most(1.5), dnsmasq(HIT_US, HIT_US), "x"),
        goal("hits a second, to dnsmasq", least(0.9), dnsmasq(HIT_QPS, HIT_QPS), "x"),
        goal("denial p50, to a hit of dnsmasq", most(1.5), dnsmasq(DENIED_US, HIT_US), "x"),
        goal("denials a second, to hits of dnsmasq", least(0.9), dnsmasq(DENIED_QPS, HIT_QPS), "x"),
        goal("miss with 45 addresses, above a miss with one", most(150.0), many, "us"),
        goal("memory of 100 idle sandboxes", most(16.0), figure(IDLE_MIB), "MiB"),
        goal("growth from the 10^5th to the 10^6th question", most(1.0), figure(GROWTH_MIB), "MiB"),
    ]
}

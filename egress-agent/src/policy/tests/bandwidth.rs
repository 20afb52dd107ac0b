//! Rates and amounts: what is taken, what is refused, and what the kernel half makes of them.

use crate::policy::{Amount, Bandwidth, Flags, Mode, Policy, Rate, Source};
use egress_common::bucket::{BURST_MIN_NS, Limit, Limits};
use proptest::prelude::*;
use std::time::Duration;

const FULL: &str =
    "[bandwidth]\negress = \"100mbit\"\ningress = \"1gbit\"\negress_burst = \"300ms\"\nbudget = \"10GB\"\n";

fn file(name: &str, text: &str) -> Source {
    Source::Toml { name: name.into(), text: text.into() }
}

fn rate(text: &str) -> Source {
    Source::Flags(Flags { rate: Some(text.into()), ..Flags::default() })
}

#[test]
fn every_key_changes_what_it_names() {
    let bandwidth = Policy::from_toml(FULL).unwrap().bandwidth;
    assert_eq!(bandwidth.egress.map(Rate::bits_per_s), Some(100_000_000));
    assert_eq!(bandwidth.ingress.map(Rate::bits_per_s), Some(1_000_000_000));
    assert_eq!(bandwidth.egress_burst, Duration::from_millis(300));
    assert_eq!(bandwidth.budget.map(Amount::bytes), Some(10_000_000_000));
    assert_eq!(Policy::deny_all().bandwidth, Bandwidth::default());
    let json = r#"{"bandwidth": {"egress": "100mbit", "ingress": "1gbit", "egress_burst": "300ms", "budget": "10GB"}}"#;
    assert_eq!(Policy::from_json(json).unwrap().bandwidth, bandwidth);
}

#[test]
fn what_is_printed_says_the_same() {
    for text in [FULL, "[bandwidth]\nbudget = \"1kB\"", "[bandwidth]\negress = \"1500kbit\"", ""] {
        let policy = Policy::from_toml(text).unwrap();
        assert_eq!(Policy::from_toml(&policy.to_toml()).unwrap(), policy, "{}", policy.to_toml());
    }
    let printed = Policy::from_toml("[bandwidth]\negress = \"1000kbit\"").unwrap().to_toml();
    assert!(printed.contains("[bandwidth]\negress = \"1mbit\"\negress_burst = \"200ms\"\n"), "{printed}");
}

#[test]
fn bytes_for_people_are_short_and_never_too_many() {
    for (bytes, want) in [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1099, "1 kB"),
        (1_234_567_890, "1.2 GB"),
        (9_999_999_999, "9.9 GB"),
        (10_000_000_000, "10 GB"),
        (u64::MAX, "18446744 TB"),
    ] {
        assert_eq!(Amount::about(bytes), want);
    }
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    for (line, want) in [
        ("egress = \"100mbps\"", "policy:2:10: bandwidth.egress: \"100mbps\", but allowed is \"8kbit\" to \"100gbit\""),
        ("egress = \"100\"", "bandwidth.egress: \"100\""),
        ("egress = 100", "bandwidth.egress: 100"),
        ("egress = \"\"", "bandwidth.egress: \"\""),
        ("egress = \"mbit\"", "bandwidth.egress"),
        ("egress = \"1.5mbit\"", "bandwidth.egress"),
        ("egress = \"+1mbit\"", "bandwidth.egress"),
        ("egress = \"1 mbit\"", "bandwidth.egress"),
        ("egress = \"1Mbit\"", "bandwidth.egress"),
        ("egress = \"0mbit\"", "bandwidth.egress"),
        ("egress = \"7kbit\"", "bandwidth.egress"),
        ("egress = \"101gbit\"", "bandwidth.egress"),
        ("egress = \"18446744073709551616gbit\"", "bandwidth.egress"),
        ("ingress = \"1MB\"", "policy:2:11: bandwidth.ingress: \"1MB\""),
        ("budget = \"10gbit\"", "policy:2:10: bandwidth.budget: \"10gbit\", but allowed is \"1kB\""),
        ("budget = \"10GiB\"", "bandwidth.budget"),
        ("budget = \"999B\"", "bandwidth.budget"),
        ("budget = \"1000001TB\"", "bandwidth.budget"),
        (
            "egress = \"1mbit\"\negress_burst = \"199ms\"",
            "policy:3:16: bandwidth.egress_burst: \"199ms\", but allowed is \"200ms\" to \"1s\"",
        ),
        ("egress = \"1mbit\"\negress_burst = \"1001ms\"", "bandwidth.egress_burst"),
        ("egress_burst = \"300ms\"", "policy:2:16: bandwidth.egress_burst: \"300ms\", but allowed is a burst beside"),
        ("burst = \"300ms\"", "unknown key bandwidth.burst; allowed here: egress, ingress, egress_burst, budget"),
    ] {
        let message = Policy::from_toml(&format!("[bandwidth]\n{line}")).expect_err(line).to_string();
        assert!(message.contains(want), "{line}\n{message}");
    }
    for (line, bits) in [("8kbit", 8000), ("100gbit", 100_000_000_000), ("8000bit", 8000), ("10mbit", 10_000_000)] {
        assert_eq!(line.parse::<Rate>().map(Rate::bits_per_s), Ok(bits));
    }
}

#[test]
fn a_flag_beats_a_file_and_a_burst_may_stand_elsewhere() {
    let policy = Policy::merge([file("ci.toml", FULL), rate("5mbit")]).unwrap();
    assert_eq!(policy.bandwidth.egress.map(Rate::bits_per_s), Some(5_000_000));
    assert_eq!(policy.bandwidth.egress_burst, Duration::from_millis(300));
    let burst = file("burst.toml", "[bandwidth]\negress_burst = \"1s\"");
    assert!(Policy::merge([burst.clone()]).is_err());
    let policy = Policy::merge([burst, rate("5mbit")]).unwrap();
    assert_eq!(policy.bandwidth.egress_burst, Duration::from_secs(1));
    let message = Policy::merge([rate("abc")]).unwrap_err().to_string();
    assert!(message.contains("--rate abc: bandwidth.egress: \"abc\", but allowed is"), "{message}");
}

#[test]
fn the_kernel_half_gets_what_the_mode_lets_it_enforce() {
    let bandwidth = Policy::from_toml(FULL).unwrap().bandwidth;
    let limits = Limits {
        egress: Limit::new(100_000_000, 300_000_000),
        ingress: Limit::new(1_000_000_000, BURST_MIN_NS),
        budget: 10_000_000_000,
    };
    assert_eq!(bandwidth.limits(Mode::Enforce), limits);
    assert_eq!(bandwidth.limits(Mode::Observe), Limits { budget: limits.budget, ..Limits::default() });
    assert_eq!(Bandwidth::default().limits(Mode::Enforce), Limits::default());
}

proptest! {
    #[test]
    fn what_is_written_is_read_again(bits in 8000_u64..=100_000_000_000, bytes in 1000_u64..=1_000_000_000_000_000_000) {
        let rate: Rate = format!("{bits}bit").parse().unwrap();
        prop_assert_eq!(rate.to_string().parse::<Rate>(), Ok(rate));
        prop_assert_eq!(rate.bits_per_s(), bits);
        let amount: Amount = format!("{bytes}B").parse().unwrap();
        prop_assert_eq!(amount.to_string().parse::<Amount>(), Ok(amount));
    }

    #[test]
    fn no_text_breaks_the_parsers(text in "[0-9]{0,25}[a-zA-Z]{0,6}") {
        if let Ok(rate) = text.parse::<Rate>() {
            prop_assert!((8000..=100_000_000_000).contains(&rate.bits_per_s()));
        }
        if let Ok(amount) = text.parse::<Amount>() {
            prop_assert!(amount.bytes() >= 1000);
        }
    }
}

//! What holds for every set of rules.

use crate::policy::{Destination, NamePattern, NameTable, NameVerdict, Policy, Ports};
use egress_common::destination::{PortRange, Protocols, is_name_service};
use proptest::prelude::*;

fn name() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|mut labels| {
        labels.extend(["example", "test"]);
        labels.join(".")
    })
}

fn pattern() -> impl Strategy<Value = String> {
    (prop::sample::select(vec!["", "*.", "."]), name()).prop_map(|(prefix, name)| format!("{prefix}{name}"))
}

fn policy(allow: &[String], deny: &[String]) -> Policy {
    let policy = allow.iter().fold(Policy::deny_all(), |policy, dest| policy.allow(dest.parse().unwrap()));
    deny.iter().fold(policy, |policy, dest| policy.deny(dest.parse().unwrap()))
}

fn opens(policy: &Policy, name: &str) -> Vec<String> {
    let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
    match NameTable::new(policy).verdict(&labels) {
        NameVerdict::Allow { rules, .. } => {
            let mut texts: Vec<String> = rules.iter().map(|&rule| policy.allow.names[rule].text.clone()).collect();
            texts.sort();
            texts.dedup();
            texts
        }
        _ => Vec::new(),
    }
}

fn ranges() -> impl Strategy<Value = Vec<PortRange>> {
    let port = prop_oneof![130_u16..145, 850_u16..856, prop::sample::select(vec![0, 1, 65535])];
    let range = (port.clone(), port, 1_u32..4).prop_map(|(a, b, protocols)| PortRange {
        first: a.min(b),
        last: a.max(b),
        protocols: Protocols(protocols),
    });
    prop::collection::vec(range, 1..6)
}

proptest! {
    #[test]
    fn the_table_says_what_the_patterns_say(
        allow in prop::collection::vec(pattern(), 0..6),
        deny in prop::collection::vec(pattern(), 0..3),
        name in name(),
    ) {
        let policy = policy(&allow, &deny);
        let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
        let matches = |text: &String| text.parse::<NamePattern>().unwrap().matches(&labels);
        let mut want: Vec<String> = if deny.iter().any(matches) { Vec::new() } else { allow.iter().filter(|text| matches(text)).cloned().collect() };
        want.sort();
        want.dedup();
        prop_assert_eq!(opens(&policy, &name), want);
    }

    #[test]
    fn b07_the_order_of_name_rules_never_matters(
        allow in prop::collection::vec(pattern(), 0..6),
        deny in prop::collection::vec(pattern(), 0..3),
        name in name(),
    ) {
        let turned = |list: &[String]| list.iter().rev().cloned().collect::<Vec<_>>();
        prop_assert_eq!(opens(&policy(&allow, &deny), &name), opens(&policy(&turned(&allow), &turned(&deny)), &name));
    }

    #[test]
    fn a_deny_more_never_opens_and_an_allow_more_never_closes(
        allow in prop::collection::vec(pattern(), 0..6),
        deny in prop::collection::vec(pattern(), 0..3),
        more in pattern(),
        name in name(),
    ) {
        let before = opens(&policy(&allow, &deny), &name);
        let with = |list: &[String]| list.iter().cloned().chain([more.clone()]).collect::<Vec<_>>();
        let closed = opens(&policy(&allow, &with(&deny)), &name);
        prop_assert!(closed.iter().all(|rule| before.contains(rule)));
        let opened = opens(&policy(&with(&allow), &deny), &name);
        prop_assert!(before.iter().all(|rule| opened.contains(rule)));
    }

    #[test]
    fn normal_form_keeps_every_port(ranges in ranges()) {
        let ports = Ports::union(ranges.iter().copied()).unwrap();
        for protocol in [Protocols::TCP, Protocols::UDP] {
            for port in (1..150).chain(845..860).chain([65535]) {
                let opened = ranges.iter().any(|range| range.opens(protocol, port));
                prop_assert_eq!(ports.opens(protocol, port), opened, "{} {}", port, ports);
                let covered = ranges.iter().any(|range| range.hit(protocol, port.into(), true));
                prop_assert_eq!(ports.ranges().iter().any(|range| range.hit(protocol, port.into(), true)), covered);
            }
        }
        prop_assert_eq!(&Ports::union(ports.ranges().iter().copied()).unwrap(), &ports);
        prop_assert!(ports.covers(&ports));
        let single = ports.ranges().iter().filter(|range| range.first == range.last && is_name_service(range.first));
        let mut named = single.map(|range| (range.first, range.protocols));
        let named_before = ranges.iter().any(|range| range.first == range.last && is_name_service(range.first));
        prop_assert!(named.next().is_none() || named_before);
    }

    #[test]
    fn no_text_breaks_the_parsers(text in "\\PC{0,40}") {
        if let Ok(destination) = text.parse::<Destination>() {
            prop_assert_eq!(destination.to_string(), text.clone());
        }
        for parsed in [
            Policy::from_toml(&text),
            Policy::from_json(&text),
            Policy::from_toml(&format!("[dns]\nservers = [{text:?}]")),
        ] {
            prop_assert!(parsed.map_or_else(|error| !error.to_string().is_empty(), |policy| policy.check().is_ok()));
        }
    }

    #[test]
    fn what_almost_is_a_destination_breaks_nothing(text in "(https?://)?[a-z0-9*.:,/%@\\[\\]-]{0,30}(/(tcp|udp))?") {
        if let Ok(destination) = text.parse::<Destination>() {
            let policy = Policy::deny_all().allow(destination);
            if policy.check().is_ok()
                && let Ok(printed) = Policy::from_toml(&policy.to_toml())
            {
                prop_assert_eq!(printed.allow, policy.allow);
            }
        }
    }
}

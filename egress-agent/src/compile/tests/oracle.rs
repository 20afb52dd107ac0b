//! The policy read line by line, as its text says, against the image asked by the function that the kernel runs.

use super::lab::{LIMITS, SLOT, destination, facts, lines, policy, question, questions};
use crate::{
    compile::{CompileError, Facts, ImageTables, RuleIds, compile},
    policy::{AddressRule, Icmp, Local, Policy},
};
use egress_common::{
    destination::{Protocols, is_name_service},
    packet::protocol,
    question::Path,
};
use ipnet::IpNet;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What decides for an address: IPv4 for its mapped and NAT64 forms, loopback for the unspecified one.
fn routed(ip: IpAddr) -> IpAddr {
    let ip = match ip {
        IpAddr::V6(v6) if v6.octets().starts_with(&[0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0]) => {
            let [.., a, b, c, d] = v6.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        other => other.to_canonical(),
    };
    match ip {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

/// The special range that holds the address, if any.
fn special(ip: IpAddr) -> Option<IpNet> {
    [
        "0.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
        "::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
    ]
    .iter()
    .map(|net| net.parse::<IpNet>().unwrap())
    .find(|net| net.contains(&ip))
}

fn local_opens(local: &Local, ip_protocol: u8, port: Option<u16>) -> bool {
    match (local, port) {
        (Local::Closed, _) => false,
        (Local::Open, Some(port)) => Protocols::of(ip_protocol) != Protocols::NONE && !is_name_service(port),
        (Local::Ports(ports), Some(port)) => ports.contains(&port),
        (_, None) => true,
    }
}

fn line_opens(line: &AddressRule, ip: IpAddr, facts: &Facts, ip_protocol: u8, port: Option<u16>) -> bool {
    let is_host = !facts.own_netns && facts.own_addresses.contains(&ip);
    let names_it = match special(ip) {
        _ if is_host => line.net.prefix_len() == line.net.max_prefix_len(),
        Some(range) => range.contains(&line.net),
        None => true,
    };
    line.net.contains(&ip) && names_it && port.is_none_or(|port| line.ports.opens(Protocols::of(ip_protocol), port))
}

fn denied(policy: &Policy, ip: IpAddr, ip_protocol: u8, port: Option<u16>) -> bool {
    let around: Vec<&AddressRule> = policy.deny.addresses.iter().filter(|line| line.net.contains(&ip)).collect();
    match port {
        Some(port) => around.iter().any(|line| line.ports.closes(Protocols::of(ip_protocol), port)),
        // Without a port in sight only a deny of every port closes.
        None => [Protocols::TCP, Protocols::UDP].iter().all(|&protocol| {
            (1..=u16::MAX)
                .step_by(7)
                .chain([137, 853])
                .all(|port| around.iter().any(|line| line.ports.closes(protocol, port)))
        }),
    }
}

/// May it pass, by the text of the policy?
fn allowed(policy: &Policy, facts: &Facts, (dst, ip_protocol, port, path): (&str, u8, Option<u16>, Path)) -> bool {
    let ip = routed(dst.parse().unwrap());
    if ip.is_loopback() {
        return path != Path::Wire && port != Some(53) && local_opens(&policy.allow.loopback, ip_protocol, port);
    }
    let unwanted_ping = ip_protocol == protocol::ICMP && policy.allow.icmp == Icmp::None;
    if port == Some(53) || unwanted_ping || denied(policy, ip, ip_protocol, port) {
        return false;
    }
    if policy.allow.addresses.iter().any(|line| line_opens(line, ip, facts, ip_protocol, port)) {
        return true;
    }
    let own = policy.allow.own.clone().unwrap_or(if facts.own_netns { Local::Open } else { Local::Closed });
    path != Path::Wire && facts.own_addresses.contains(&ip) && local_opens(&own, ip_protocol, port)
}

fn agree(policy: &Policy, facts: &Facts) -> Result<(), TestCaseError> {
    let image = match compile(policy, facts, SLOT, &mut RuleIds::new(0..4096), LIMITS) {
        Ok(image) => image,
        Err(CompileError::Ranges { .. }) => return Ok(()),
        Err(error) => return Err(TestCaseError::fail(error.to_string())),
    };
    let tables = ImageTables::from(&image);
    for asked in questions() {
        let (dst, ip_protocol, port, path) = asked;
        let verdict = tables.decide(question(dst, ip_protocol, port, path));
        let want = allowed(policy, facts, asked);
        prop_assert_eq!(
            verdict.allows(),
            want,
            "{:?}: {:?}\n{}\n{:#?}",
            asked,
            verdict.reason_number(),
            policy.to_toml(),
            image.networks
        );
        let rule = verdict.rule();
        if !rule.is_none() {
            let origin = image.explain(rule.tag, dst.parse().unwrap(), Protocols::of(ip_protocol), port);
            prop_assert!(origin.is_some(), "no line behind rule {:?}", rule);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_image_says_what_the_text_says(lines in lines(), own_netns: bool) {
        if let Some(policy) = lines.policy() {
            agree(&policy, &facts(own_netns))?;
        }
    }

    #[test]
    fn the_order_of_lines_never_matters(lines in lines(), own_netns: bool) {
        let mut turned = lines.clone();
        for list in [&mut turned.allow, &mut turned.deny, &mut turned.inbound, &mut turned.names] {
            list.reverse();
        }
        if let (Some(policy), Some(turned)) = (lines.policy(), turned.policy()) {
            let mut ids = RuleIds::new(0..4096);
            let first = compile(&policy, &facts(own_netns), SLOT, &mut ids, LIMITS);
            let second = compile(&turned, &facts(own_netns), SLOT, &mut ids, LIMITS);
            if let (Ok(first), Ok(second)) = (first, second) {
                prop_assert_eq!(&first.networks, &second.networks);
                prop_assert_eq!(&first.permits, &second.permits);
                prop_assert_eq!(first.settings, second.settings);
                prop_assert!(first.rules.keys().eq(second.rules.keys()));
            }
        }
    }

    #[test]
    fn a_deny_more_never_opens_and_an_allow_more_never_closes(lines in lines(), more in destination(), own_netns: bool) {
        let Some(before) = lines.policy() else { return Ok(()) };
        let tables = |policy: &Policy| {
            compile(policy, &facts(own_netns), SLOT, &mut RuleIds::new(0..4096), LIMITS).ok().map(|image| ImageTables::from(&image))
        };
        let Some(open) = tables(&before) else { return Ok(()) };
        let mut closed = before.clone();
        closed.deny.addresses.extend(policy(&format!("[allow]\nloopback = false\n[deny]\naddresses = [{more:?}]")).deny.addresses);
        let mut opened = before.clone();
        opened.allow.addresses.extend(policy(&format!("[allow]\naddresses = [{more:?}]")).allow.addresses);
        let (closed, opened) = (tables(&closed), tables(&opened));
        for (dst, ip_protocol, port, path) in questions() {
            let question = question(dst, ip_protocol, port, path);
            let was = open.decide(question).allows();
            prop_assert!(closed.as_ref().is_none_or(|tables| was || !tables.decide(question).allows()), "{} {:?}", dst, port);
            prop_assert!(opened.as_ref().is_none_or(|tables| !was || tables.decide(question).allows()), "{} {:?}", dst, port);
        }
    }
}

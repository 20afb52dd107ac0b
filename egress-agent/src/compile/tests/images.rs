//! What stands in an image, case by case.

use super::lab::{LIMITS, SLOT, asks, facts, image, policy, question};
use crate::compile::{CompileError, Image, ImageTables, Limits, Prefix, RuleIds, compile};
use egress_common::{
    addr::Addr,
    destination::Protocols,
    packet::protocol,
    permit::{NEVER_NS, RANGES, RuleRef, rule_flags},
    question::{Asked, Mode, Path},
    sandbox::flags,
    verdict::{ListenerKey, Reason, Tables},
};
use std::{collections::BTreeSet, net::IpAddr};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefixes(image: &Image) -> Vec<String> {
    image.networks.keys().map(ToString::to_string).collect()
}

#[test]
fn an_empty_policy_opens_nothing_but_loopback_and_self() {
    let image = image("", true);
    assert!(image.networks.is_empty() && image.permits.is_empty());
    assert_eq!(image.rules.len(), 2);
    assert_eq!(asks(&image, "198.51.100.7", 443).reason_number(), Reason::NotPermitted as u8);
    let sandbox = image.sandbox(5);
    assert_eq!((sandbox.nonce, sandbox.netns_cookie, sandbox.listener_port), (5, 7, 953));
    assert_eq!(sandbox.flags, flags::OWN_NETNS);
}

#[test]
fn settings_follow_the_policy() {
    let flags_of = |text: &str, own_netns| image(text, own_netns).settings.flags;
    assert_eq!(flags_of("", false), 0);
    assert_eq!(flags_of("mode = \"observe\"", false), flags::OBSERVE);
    assert_eq!(flags_of("[allow]\nicmp = \"echo\"", false), flags::ICMP_ECHO);
    assert_eq!(flags_of("[allow]\ninbound = [\"198.51.100.1\"]", false), flags::INBOUND);
    assert_eq!(flags_of("[allow]\nloopback = [80]", false), flags::LOOPBACK_PORTS);
    assert!(image("[allow]\nloopback = false", false).settings.loopback.is_none());
    assert!(image("", false).settings.own.is_none());
    assert!(image("", false).own.is_empty());
    assert_eq!(image("[allow]\nself = true", false).own.len(), 3);
    assert_eq!(image("", true).own.len(), 3);
    let mut raw = facts(true);
    raw.raw_sockets = true;
    let image = compile(&policy(""), &raw, SLOT, &mut RuleIds::new(0..8), LIMITS).unwrap();
    assert_eq!(image.settings.flags, flags::OWN_NETNS | flags::RAW_SOCKETS);
}

#[test]
fn a_longer_prefix_carries_what_covers_it() {
    let image = image(
        "[allow]\naddresses = [\"10.0.0.0/8:443\", \"10.1.0.0/16:5432/tcp\", \"10.1.2.3:22\"]\n[deny]\naddresses = [\"10.1.0.0/24\", \"10.0.0.0/9:25\"]",
        true,
    );
    assert_eq!(prefixes(&image), ["10.0.0.0/8", "10.0.0.0/9", "10.1.0.0/16", "10.1.0.0/24"]);
    assert_eq!(image.permits.keys().map(|addr| addr.to_ip()).collect::<Vec<_>>(), [ip("10.1.2.3")]);
    for (addr, port, open) in [
        ("10.200.0.1", 443, true),
        ("10.200.0.1", 5432, false),
        ("10.1.9.9", 443, true),
        ("10.1.9.9", 5432, true),
        ("10.1.9.9", 25, false),
        ("10.1.0.9", 443, false),
        ("10.1.2.3", 22, true),
        ("10.1.2.3", 443, true),
        ("10.1.2.3", 5432, true),
        ("10.1.2.3", 25, false),
        ("10.1.2.4", 22, false),
        ("::ffff:10.1.2.3", 22, true),
        ("64:ff9b::a01:203", 22, true),
    ] {
        assert_eq!(asks(&image, addr, port).allows(), open, "{addr} {port}");
    }
    let permit = image.permits[&Addr::from(ip("10.1.2.3"))];
    assert_eq!(permit.grants[0].expires_ns, NEVER_NS);
    assert_eq!(image.static_grant_for(ip("10.1.2.3")), Some(permit.grants[0].rule));
    assert_eq!(image.deny_for(ip("10.1.2.3")), permit.deny);
    assert_eq!(image.deny_for(ip("198.51.100.1")), RuleRef::NONE);
    assert_eq!(image.deny_for(ip("10.200.0.1")), RuleRef::NONE);
    assert!(!image.deny_for(ip("10.1.0.77")).is_none());
}

#[test]
fn flags_of_rules_say_what_they_may_open() {
    let image = image(
        "[allow]\nnames = [\"a.test\"]\naddresses = [\"192.0.2.1\"]\ninbound = [\"192.0.2.2\"]\n[deny]\naddresses = [\"192.0.2.3\"]",
        true,
    );
    let mut kinds: Vec<(&str, u32)> =
        image.rules.values().map(|(rule, text)| (text.origins()[0].key.as_ref(), rule.flags)).collect();
    kinds.sort_unstable();
    let want = [
        ("allow.addresses", rule_flags::STATIC),
        ("allow.inbound", rule_flags::INBOUND),
        ("allow.loopback", rule_flags::STATIC),
        ("allow.names", 0),
        ("allow.self", rule_flags::STATIC),
        ("deny.addresses", rule_flags::DENY),
    ];
    assert_eq!(kinds, want);
    assert!(image.rules.iter().all(|(at, (rule, _))| rule.tag == at.tag && rule.slot == SLOT));
}

#[test]
fn special_ranges_open_only_by_a_line_that_lies_in_them() {
    for (line, addr, open) in [
        ("0.0.0.0/0", "169.254.169.254", false),
        ("169.0.0.0/8", "169.254.169.254", false),
        ("169.0.0.0/8", "169.253.0.1", true),
        ("169.254.0.0/16", "169.254.169.254", true),
        ("169.254.169.254", "169.254.169.254", true),
        ("169.254.169.254", "169.254.169.253", false),
        ("0.0.0.0/0", "224.0.0.251", false),
        ("224.0.0.0/4", "224.0.0.251", true),
        ("0.0.0.0/0", "255.255.255.255", false),
        ("0.0.0.0/0", "0.1.2.3", false),
        ("::/0", "fe80::1", false),
        ("::/0", "2002:7f00:1::", false),
        ("::/0", "2001:db8::1", true),
        ("::/0", "198.51.100.1", false),
        ("0.0.0.0/0", "2001:db8::1", false),
        ("2002::/16", "2002:7f00:1::", true),
        ("fe80::/64", "fe80::1", true),
    ] {
        assert_eq!(
            asks(&image(&format!("[allow]\naddresses = [{line:?}]"), true), addr, 80).allows(),
            open,
            "{line} {addr}"
        );
    }
}

#[test]
fn a_deny_of_all_of_ipv6_leaves_ipv4_alone() {
    let image =
        image("[allow]\nloopback = false\naddresses = [\"198.51.100.0/24\"]\n[deny]\naddresses = [\"::/0\"]", true);
    assert!(asks(&image, "198.51.100.7", 80).allows());
    assert_eq!(image.deny_for(ip("198.51.100.7")), RuleRef::NONE);
    assert!(!image.deny_for(ip("2001:db8::1")).is_none());
}

#[test]
fn the_hosts_own_addresses_open_only_by_their_very_address() {
    let wide = "[allow]\naddresses = [\"198.51.100.0/24:443\"]";
    let exact = "[allow]\naddresses = [\"198.51.100.0/24:443\", \"198.51.100.30:22\"]";
    for path in [Path::Socket, Path::Loopback, Path::Wire] {
        let ask = |text: &str, own_netns, port| {
            let tables = ImageTables::from(&image(text, own_netns));
            tables.decide(question("198.51.100.30", protocol::TCP, Some(port), path)).allows()
        };
        assert!(!ask(wide, false, 443) && ask(wide, true, 443));
        assert!(ask(exact, false, 22) && !ask(exact, false, 443));
    }
    assert!(asks(&image(wide, false), "198.51.100.31", 443).allows());
}

#[test]
fn a_peer_that_is_denied_whole_is_not_welcome() {
    let welcome = |text: &str, addr: &str, port| {
        let image = image(text, true);
        let tables = ImageTables::from(&image);
        let asked = Asked::new(Path::Wire, protocol::TCP, Some(port), 0).read_as(Mode::Inbound);
        let rule = image.network(ip(addr)).map_or(RuleRef::NONE, |network| network.inbound);
        !rule.is_none() && matches!(tables.matches(rule, SLOT, asked), egress_common::permit::Match::Hit)
    };
    let open = "[allow]\ninbound = [\"198.51.100.0/24\"]\n";
    assert!(welcome(open, "198.51.100.7", 8080) && !welcome(open, "203.0.113.7", 8080));
    assert!(!asks(&image(open, true), "198.51.100.7", 80).allows());
    let closed = format!("{open}[deny]\naddresses = [\"198.51.100.7\", \"198.51.100.8:80\"]");
    assert!(!welcome(&closed, "198.51.100.7", 8080) && welcome(&closed, "198.51.100.8", 8080));
    let ported = "[allow]\ninbound = [\"198.51.100.7:8080\"]";
    assert!(welcome(ported, "198.51.100.7", 8080) && !welcome(ported, "198.51.100.7", 22));
}

#[test]
fn loopback_and_listeners() {
    let image = image("[allow]\nloopback = [8080]", false);
    let mut tables = ImageTables::from(&image);
    let ask = |tables: &ImageTables, addr, port| {
        tables.decide(question(addr, protocol::TCP, Some(port), Path::Loopback)).allows()
    };
    assert!(ask(&tables, "127.0.0.1", 8080) && ask(&tables, "0.0.0.0", 8080) && !ask(&tables, "127.0.0.1", 8081));
    assert!(ask(&tables, "127.0.0.1", 953) && !ask(&tables, "127.0.0.2", 953));
    tables.add_listener(ListenerKey { netns_cookie: 7, port: 8080, reserved: 0 }, 99);
    assert!(!ask(&tables, "127.0.0.1", 8080));
}

#[test]
fn a_verdict_leads_back_to_its_line() {
    let image = image(
        "[allow]\nnames = [\"github.com\"]\naddresses = [\"10.0.0.0/8:443\",\n\"10.1.0.0/16:5432\"]\n[deny]\naddresses = [\"10.1.0.0/24\"]",
        true,
    );
    let line = |addr, port| {
        let rule = asks(&image, addr, port).rule();
        image.explain(rule.tag, ip(addr), Protocols::TCP, Some(port)).map(ToString::to_string)
    };
    assert_eq!(line("10.1.9.9", 443).as_deref(), Some("allow.addresses: 10.0.0.0/8:443 (policy:3:14)"));
    assert_eq!(line("10.1.9.9", 5432).as_deref(), Some("allow.addresses: 10.1.0.0/16:5432 (policy:4:1)"));
    assert_eq!(line("10.1.0.1", 443).as_deref(), Some("deny.addresses: 10.1.0.0/24 (policy:6:14)"));
    assert_eq!(line("192.0.2.1", 443), None);
    let name = image.explain(image.name_rules[0].tag, ip("192.0.2.9"), Protocols::TCP, Some(443)).unwrap();
    assert_eq!(name.to_string(), "allow.names: github.com (policy:2:10)");
    assert_eq!(image.explain(u32::MAX, ip("192.0.2.9"), Protocols::TCP, Some(443)), None);
}

#[test]
fn what_does_not_fit_is_refused_whole_and_changes_nothing() {
    let text = "[allow]\nnames = [\"a.test\", \"b.test\"]\naddresses = [\"10.0.0.0/8\", \"192.0.2.0/24\", \"192.0.2.1:1\", \"192.0.2.2:2\"]";
    let mut ids = RuleIds::new(0..64);
    let mut try_with = |limits| compile(&policy(text), &facts(true), SLOT, &mut ids, limits);
    let roomy = Limits { rules: 5, networks: 2, permits: 2 };
    for (limits, want) in [
        (Limits { rules: 4, ..roomy }, "compiles to 5 rules, and a sandbox may have 4"),
        (Limits { networks: 1, ..roomy }, "compiles to 2 networks, and the map holds 1"),
        (Limits { permits: 1, ..roomy }, "names 2 single addresses, and the map holds 1"),
    ] {
        let message = try_with(limits).unwrap_err().to_string();
        assert!(message.contains(want), "{message}");
    }
    assert_eq!(try_with(roomy).unwrap().rules.keys().map(|rule| rule.tag).max(), Some(5));

    let mut ids = RuleIds::new(0..3);
    let full = compile(&policy("[allow]\nnames = [\"a.test\", \"b.test\"]"), &facts(true), SLOT, &mut ids, LIMITS);
    assert!(full.unwrap_err().to_string().contains("needs 4 new rules, and 3 are free"));
    assert_eq!(ids.next_tag(), 1);

    let mut ids = RuleIds::new(0..8);
    let mut attempt = ids.clone();
    compile(&policy(""), &facts(true), SLOT, &mut attempt, LIMITS).unwrap();
    ids.skip_tags(&attempt);
    let image = compile(&policy(""), &facts(true), SLOT, &mut ids, LIMITS).unwrap();
    assert_eq!(image.rules.keys().map(|rule| rule.tag).min(), Some(3));
}

#[test]
fn lines_that_need_too_many_ranges_together_are_named() {
    let ports = |from: u16| (0..RANGES as u16).map(|n| (from + 4 * n).to_string()).collect::<Vec<_>>().join(",");
    let text = format!("[allow]\naddresses = [\"10.0.0.0/8:{}\", \"10.1.0.0/16:{}\"]", ports(1000), ports(1002));
    let error = compile(&policy(&text), &facts(true), SLOT, &mut RuleIds::new(0..64), LIMITS).unwrap_err();
    assert!(matches!(error, CompileError::Ranges { ranges: 32, .. }), "{error}");
    assert!(error.to_string().contains("10.1.0.0/16"));
    let local = (0..17).map(|n| (1000 + 2 * n).to_string()).collect::<Vec<_>>().join(", ");
    let text = format!("[allow]\nloopback = [{local}]");
    let error = compile(&policy(&text), &facts(true), SLOT, &mut RuleIds::new(0..64), LIMITS).unwrap_err();
    assert!(error.to_string().starts_with("allow.loopback = ["), "{error}");
}

#[test]
fn a_policy_built_in_code_is_checked_too() {
    let built = policy("").allow("api.example.com".parse().unwrap()).deny("*.example.com".parse().unwrap());
    let error = compile(&built, &facts(true), SLOT, &mut RuleIds::new(0..64), LIMITS).unwrap_err();
    assert!(
        matches!(error, CompileError::Policy(_)) && error.to_string().starts_with("policy: allow.names"),
        "{error}"
    );
    let built = policy("").deny("example.com:443".parse().unwrap());
    assert!(compile(&built, &facts(true), SLOT, &mut RuleIds::new(0..64), LIMITS).is_err());
}

#[test]
fn tags_are_never_used_again_and_indices_as_late_as_possible() {
    let mut ids = RuleIds::new(0..8);
    let (mut tags, mut indices) = (BTreeSet::new(), Vec::new());
    let mut last: Option<Image> = None;
    for round in 0..20 {
        let text = format!("[allow]\nloopback = false\nself = false\nnames = [\"n{round}.test\", \"keep.test\"]");
        let next = compile(&policy(&text), &facts(true), SLOT, &mut ids, LIMITS).unwrap();
        assert!(tags.insert(next.name_rules[0].tag));
        if let Some(last) = last {
            assert_eq!(last.name_rules[1], next.name_rules[1]);
        }
        indices.push(next.name_rules[0].index);
        last = Some(next);
    }
    // One index is kept, so the others take turns.
    assert!(indices.windows(7).all(|window| window.iter().collect::<BTreeSet<_>>().len() == 7), "{indices:?}");
    let other = compile(&policy("[allow]\nnames = [\"keep.test\"]"), &facts(true), 9, &mut ids, LIMITS).unwrap();
    assert_ne!(other.name_rules[0], last.as_ref().unwrap().name_rules[1]);
    ids.release(SLOT);
    ids.release(9);
    let full = (0..6).map(|n| format!("n{n}.test")).collect::<Vec<_>>();
    assert!(compile(&policy(&format!("[allow]\nnames = {full:?}")), &facts(true), 1, &mut ids, LIMITS).is_ok());
}

#[test]
fn an_owner_that_takes_over_gives_out_nothing_that_is_taken() {
    let mut ids = RuleIds::resume(0..4, [0, 2], 50);
    let text = "[allow]\nloopback = false\nself = false\nnames = [\"a.test\", \"b.test\"]";
    let image = compile(&policy(text), &facts(true), SLOT, &mut ids, LIMITS).unwrap();
    assert_eq!(image.name_rules, [RuleRef { index: 1, tag: 50 }, RuleRef { index: 3, tag: 51 }]);
    let more = text.replace("b.test", "c.test");
    assert!(compile(&policy(&more), &facts(true), 9, &mut ids, LIMITS).is_err());
    ids.give_back(0);
    ids.give_back(0);
    ids.give_back(2);
    assert!(compile(&policy(&more), &facts(true), 9, &mut ids, LIMITS).is_ok());
}

#[test]
fn an_owner_that_takes_over_keeps_the_references_of_what_it_recognises() {
    let text = "[allow]\nnames = [\"a.test\", \"b.test:22\"]\naddresses = [\"192.0.2.1:443\", \"192.0.2.0/24:443\"]\n\
                inbound = [\"192.0.2.9\"]\n[deny]\naddresses = [\"192.0.2.7\"]";
    let mut ids = RuleIds::new(0..64);
    let image = compile(&policy(text), &facts(true), SLOT, &mut ids, LIMITS).unwrap();
    let mut next = RuleIds::resume(0..64, image.rules.keys().map(|rule| rule.index), ids.next_tag());
    for (rule, (content, text)) in &image.rules {
        next.recognise(*rule, content, text);
    }
    assert_eq!(compile(&policy(text), &facts(true), SLOT, &mut next, LIMITS).unwrap(), image);
    let other = compile(&policy(&text.replace("b.test", "c.test")), &facts(true), SLOT, &mut next, LIMITS).unwrap();
    assert_eq!(other.name_rules[0], image.name_rules[0]);
    assert_eq!(other.name_rules[1].tag, ids.next_tag());
}

#[test]
fn prefixes_know_each_other() {
    let prefix = |text: &str| Prefix::from(&text.parse::<ipnet::IpNet>().unwrap());
    assert_eq!((prefix("10.0.0.0/8").length(), prefix("2001:db8::/32").length()), (104, 32));
    assert!(prefix("10.0.0.0/8").spans(prefix("10.1.0.0/16")) && !prefix("10.1.0.0/16").spans(prefix("10.0.0.0/8")));
    assert!(prefix("::/0").spans(prefix("10.0.0.0/8")));
    assert!(prefix("10.0.0.0/8").holds(ip("10.9.9.9").into()) && !prefix("10.0.0.0/8").holds(ip("11.0.0.0").into()));
    assert!(prefix("10.0.0.1/32").is_single() && prefix("10.0.0.1/32").addr() == Addr::from(ip("10.0.0.1")));
    assert_eq!(prefix("10.0.0.0/8").to_string(), "10.0.0.0/8");
}

#[test]
fn addresses_that_say_the_same_share_a_rule() {
    let many = |from: u32, ports: &str| {
        let lines: Vec<String> =
            (from..from + 300).map(|n| format!("\"10.0.{}.{}{ports}\"", n / 256, n % 256)).collect();
        lines.join(", ")
    };
    let text = format!(
        "[allow]\naddresses = [{}, {}, \"10.9.0.0/16\"]\n[deny]\naddresses = [{}]",
        many(0, ":443"),
        many(300, ":22/tcp"),
        many(600, "")
    );
    let image = image(&text, true);
    // Loopback and own addresses beside them.
    assert_eq!(image.rules.len(), 4 + 2);
    assert_eq!((image.permits.len(), image.networks.len()), (600, 300 + 1));
    let line = |addr: &str, port| {
        let rule = asks(&image, addr, port).rule();
        image.explain(rule.tag, ip(addr), Protocols::TCP, Some(port)).map(|origin| origin.text.clone())
    };
    assert_eq!(line("10.0.0.7", 443).as_deref(), Some("10.0.0.7:443"));
    assert_eq!(line("10.0.1.50", 22).as_deref(), Some("10.0.1.50:22/tcp"));
    assert_eq!(line("10.0.2.100", 443).as_deref(), Some("10.0.2.100"));
    assert_eq!(line("10.9.2.100", 443).as_deref(), Some("10.9.0.0/16"));
    assert_eq!(line("10.0.0.7", 22), None);
}

//! What holds of the verdict whatever the policy: order means nothing, a deny only closes, and taking away never opens.

#![allow(clippy::unwrap_used, reason = "everything here is a test or is called by tests alone")]

use egress_common::{
    addr::Addr,
    destination::{PortRange, Protocols},
    permit::{
        GRANTS, Grant, Match, NEVER_NS, Network, Permit, PermitKey, RANGES, Rule, RuleRef, match_rule, rule_flags,
    },
    question::{Asked, Path, Question},
    sandbox::{Sandbox, flags},
    verdict::{ListenerKey, Reason, Tables, Verdict, decide},
};
use proptest::{collection::vec, prelude::*, sample::select};
use std::net::IpAddr;

const SLOT: u32 = 3;
const NOW_NS: u64 = 1_000;
const RULES: usize = 6;

/// All that is known of one address, and the rules.
#[derive(Clone, Debug)]
struct World {
    sandbox: Sandbox,
    rules: Vec<Rule>,
    permit: Option<Permit>,
    network: Option<Network>,
    own: bool,
    listener: bool,
}

impl Tables for World {
    fn permit(&self, _: &PermitKey) -> Option<&Permit> {
        self.permit.as_ref()
    }

    fn network(&self, _: &PermitKey) -> Option<&Network> {
        self.network.as_ref()
    }

    fn matches(&self, rule: RuleRef, slot: u32, asked: Asked) -> Match {
        match_rule(self.rules.get(rule.index as usize), rule.tag, slot, asked)
    }

    fn is_own(&self, _: &PermitKey) -> bool {
        self.own
    }

    fn listener(&self, _: &ListenerKey) -> Option<u64> {
        self.listener.then_some(1)
    }

    fn now_ns(&self) -> u64 {
        NOW_NS
    }
}

impl World {
    fn decide(&self, question: Question) -> Verdict {
        decide(SLOT, &self.sandbox, question, self)
    }
}

fn range() -> impl Strategy<Value = PortRange> {
    let ports = select(&[0_u16, 53, 80, 443, 853, 8080, u16::MAX][..]);
    let protocols = select(&[Protocols::TCP, Protocols::UDP, Protocols::ANY][..]);
    prop_oneof![
        1 => Just(PortRange::ALL),
        5 => (ports.clone(), ports, protocols).prop_map(|(one, other, protocols)| PortRange {
            first: one.min(other),
            last: one.max(other),
            protocols,
        }),
    ]
}

fn rule(index: u32) -> impl Strategy<Value = Rule> {
    let flags = select(&[0, rule_flags::STATIC, rule_flags::DENY, rule_flags::INBOUND][..]);
    (flags, vec(range(), 0..=RANGES)).prop_map(move |(flags, mut given)| {
        // As it is compiled: a deny of every port holds that one range alone.
        if flags == rule_flags::DENY && given.contains(&PortRange::ALL) {
            given = vec![PortRange::ALL];
        }
        let mut ranges = [PortRange { first: 0, last: 0, protocols: Protocols::NONE }; RANGES];
        ranges[..given.len()].copy_from_slice(&given);
        Rule { tag: index + 1, slot: SLOT, flags, len: given.len() as u32, ranges }
    })
}

fn reference() -> impl Strategy<Value = RuleRef> {
    prop_oneof![1 => Just(RuleRef::NONE), 4 => existing()]
}

fn existing() -> impl Strategy<Value = RuleRef> {
    (0..RULES as u32).prop_map(|index| RuleRef { index, tag: index + 1 })
}

fn deny() -> impl Strategy<Value = RuleRef> {
    prop_oneof![3 => Just(RuleRef::NONE), 1 => existing()]
}

prop_compose! {
    fn grant()(expires_ns in select(&[NEVER_NS, NOW_NS, NOW_NS + 1][..]), rule in reference()) -> Grant {
        Grant { expires_ns, rule }
    }
}

prop_compose! {
    fn world()(
        flags in select(&[0, flags::ICMP_ECHO, flags::OWN_NETNS][..]),
        (loopback, own_rule) in (reference(), reference()),
        rules in (0..RULES as u32).map(rule).collect::<Vec<_>>(),
        permit in proptest::option::weighted(0.8, (deny(), [grant(), grant(), grant(), grant()])),
        network in proptest::option::of((reference(), deny(), reference())),
        (own, listener) in any::<(bool, bool)>(),
    ) -> World {
        let sandbox = Sandbox { nonce: 1, netns_cookie: 2, flags, listener_port: 999, loopback, own: own_rule };
        let permit = permit.map(|(deny, grants)| Permit { deny, grants });
        let network = network.map(|(allow, deny, inbound)| Network { allow, deny, inbound });
        World { sandbox, rules, permit, network, own, listener }
    }
}

prop_compose! {
    fn question()(
        text in select(&["192.0.2.1", "127.0.0.1", "0.0.0.0", "169.254.169.254", "::1", "2001:db8::1", "fe80::1",
            "64:ff9b::c000:201", "2002:c000:201::1"][..]),
        path in select(&[Path::Socket, Path::Loopback, Path::Wire][..]),
        protocol in select(&[1_u8, 6, 6, 17, 17, 58][..]),
        port in proptest::option::weighted(0.9, select(&[0_u16, 53, 80, 443, 853, 999, 8080, u16::MAX][..])),
        icmp_type in select(&[8_u8, 128, 0][..]),
    ) -> Question {
        let ip: IpAddr = text.parse().unwrap();
        Question { dst: ip.into(), asked: Asked::new(path, protocol, port, icmp_type) }
    }
}

proptest! {
    #[test]
    fn the_order_of_grants_and_ranges_means_nothing(
        world in world(),
        question in question(),
        grants in Just((0..GRANTS).collect::<Vec<_>>()).prop_shuffle(),
        ranges in Just((0..RANGES).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut shuffled = world.clone();
        if let (Some(to), Some(from)) = (&mut shuffled.permit, world.permit) {
            to.grants = std::array::from_fn(|index| from.grants[grants[index]]);
        }
        for (to, from) in shuffled.rules.iter_mut().zip(&world.rules) {
            let kept: Vec<_> = ranges.iter().filter(|&&index| index < from.len as usize).collect();
            for (place, &&index) in kept.iter().enumerate() {
                to.ranges[place] = from.ranges[index];
            }
        }
        let (before, after) = (world.decide(question), shuffled.decide(question));
        prop_assert_eq!(before.reason_number(), after.reason_number());
    }

    #[test]
    fn a_deny_never_opens(world in world(), question in question(), rule in existing(), on_permit: bool) {
        let mut denied = world.clone();
        if on_permit {
            denied.permit.get_or_insert_default().deny = rule;
        } else {
            denied.network.get_or_insert_default().deny = rule;
        }
        prop_assume!(on_permit && world.permit.is_none_or(|permit| permit.deny.is_none())
            || !on_permit && world.network.is_none_or(|network| network.deny.is_none()));
        if denied.decide(question).allows() {
            prop_assert!(world.decide(question).allows());
        }
    }

    #[test]
    fn taking_an_allow_away_never_opens(world in world(), question in question(), which in 0..GRANTS + 5 + RULES) {
        let mut less = world.clone();
        match which {
            index if index < GRANTS => {
                if let Some(permit) = &mut less.permit {
                    permit.grants[index] = Grant::default();
                }
            }
            4 => { if let Some(network) = &mut less.network { network.allow = RuleRef::NONE } }
            5 => less.sandbox.loopback = RuleRef::NONE,
            6 => less.sandbox.own = RuleRef::NONE,
            7 => less.sandbox.flags &= !flags::ICMP_ECHO,
            8 => less.own = false,
            index => less.rules[index - GRANTS - 5].tag = 0,
        }
        // An own address that is no longer known as one is judged as any other, whose misses are denials too.
        if less.decide(question).allows() {
            prop_assert!(world.decide(question).allows(), "{world:?}");
        }
    }

    #[test]
    fn every_form_of_an_address_has_one_verdict(world in world(), question in question(), word in 0x0100_0000_u32..) {
        let v4 = std::net::Ipv4Addr::from(word);
        let nat64 = std::net::Ipv6Addr::from((0x0064_ff9b_u128 << 96) | u128::from(word));
        let of = |dst: IpAddr| world.decide(Question { dst: Addr::from(dst), ..question });
        prop_assert_eq!(of(v4.into()), of(v4.to_ipv6_mapped().into()));
        prop_assert_eq!(of(v4.into()), of(nat64.into()));
    }

    #[test]
    fn a_question_keeps_what_it_was_asked(
        path in select(&[Path::Socket, Path::Loopback, Path::Wire][..]),
        protocol: u8,
        port in proptest::option::of(any::<u16>()),
        icmp_type: u8,
        other: u16,
    ) {
        let asked = Asked::new(path, protocol, port, icmp_type);
        let has_port = matches!(protocol, 6 | 17) && port.is_some();
        prop_assert_eq!(asked.has_port(), has_port);
        prop_assert_eq!(asked.port(), if has_port { port.unwrap_or_default() } else { 0 });
        prop_assert_eq!(asked.protocol(), Protocols::of(protocol));
        prop_assert_eq!(asked.is_icmp(), matches!(protocol, 1 | 58));
        prop_assert_eq!(asked.is_echo(), matches!(protocol, 1 | 58) && matches!(icmp_type, 8 | 128));
        prop_assert_eq!(asked.is_known(), matches!(protocol, 1 | 6 | 17 | 58));
        prop_assert_eq!(asked.is_dns(), has_port && port == Some(53));
        prop_assert!(!asked.opens_connection());
        for also in [Path::Socket, Path::Loopback, Path::Wire] {
            prop_assert_eq!(asked.is_on(also), also == path);
        }
        let moved = if has_port { Asked::new(path, protocol, Some(other), icmp_type) } else { asked };
        prop_assert_eq!(asked.to_port(other), moved);
    }
}

#[test]
fn misses_say_together_what_each_says() {
    let of = |reason: Reason| Verdict::from(reason);
    for (one, other, both) in [
        (Reason::NotPermitted, Reason::NotPermitted, Reason::NotPermitted),
        (Reason::NotPermitted, Reason::PortNotPermitted, Reason::PortNotPermitted),
        (Reason::NotPermitted, Reason::Expired, Reason::Expired),
        (Reason::PortNotPermitted, Reason::Expired, Reason::ExpiredElsewhere),
        (Reason::ExpiredElsewhere, Reason::NotPermitted, Reason::ExpiredElsewhere),
    ] {
        assert_eq!(of(one).or_miss(of(other)), of(both));
        assert_eq!(of(other).or_miss(of(one)), of(both));
    }
    for number in 0..=u8::MAX {
        let verdict = Verdict(number.into());
        let misses = [Reason::NotPermitted, Reason::PortNotPermitted, Reason::Expired, Reason::ExpiredElsewhere];
        assert_eq!(verdict.is_miss(), misses.iter().any(|&miss| verdict.is(miss)), "{number}");
        assert_eq!(
            verdict.is_expired(),
            verdict.is(Reason::Expired) || verdict.is(Reason::ExpiredElsewhere),
            "{number}"
        );
    }
}

/// A permit that ran out still speaks for live flows where a network names the address for other ports.
#[test]
fn an_expired_permit_is_seen_behind_a_network() {
    let port = |port| PortRange { first: port, last: port, protocols: Protocols::TCP };
    let mut ranges = [PortRange { first: 0, last: 0, protocols: Protocols::NONE }; RANGES];
    ranges[0] = port(8080);
    let of = |index| RuleRef { index, tag: index + 1 };
    let rule = |index: u32, ranges| Rule { tag: index + 1, slot: SLOT, flags: 0, len: 1, ranges };
    let mut world = World {
        sandbox: Sandbox { nonce: 1, ..Sandbox::default() },
        rules: vec![rule(0, ranges), rule(1, [PortRange::ALL; RANGES])],
        permit: Some(Permit { grants: [Grant { expires_ns: NOW_NS, rule: of(1) }; GRANTS], ..Permit::default() }),
        network: Some(Network { allow: of(0), ..Network::default() }),
        own: false,
        listener: false,
    };
    let question =
        Question { dst: "192.0.2.1".parse::<IpAddr>().unwrap().into(), asked: Asked::new(Path::Wire, 6, Some(443), 0) };
    assert!(world.decide(question).is(Reason::ExpiredElsewhere));
    assert!(world.decide(question).is_expired());
    world.permit = None;
    assert!(world.decide(question).is(Reason::PortNotPermitted));
}

/// Events, counters and metrics carry these numbers out of the process: none ever changes.
#[test]
fn reasons_keep_their_numbers() {
    for (reason, number) in [
        (Reason::Permitted, 0),
        (Reason::Loopback, 1),
        (Reason::Own, 2),
        (Reason::Listener, 3),
        (Reason::Established, 4),
        (Reason::Reply, 5),
        (Reason::Neighbour, 6),
        (Reason::Translated, 7),
        (Reason::NoSandbox, 16),
        (Reason::DeniedByRule, 17),
        (Reason::Restricted, 18),
        (Reason::Tunnel, 19),
        (Reason::NotPermitted, 20),
        (Reason::PortNotPermitted, 21),
        (Reason::Expired, 22),
        (Reason::ExpiredElsewhere, 23),
        (Reason::ForeignListener, 24),
        (Reason::LoopbackClosed, 25),
        (Reason::Icmp, 26),
        (Reason::Protocol, 27),
        (Reason::IpOptions, 28),
        (Reason::ExtensionHeader, 29),
        (Reason::Truncated, 30),
        (Reason::Malformed, 31),
        (Reason::EtherType, 32),
        (Reason::Source, 33),
        (Reason::Inbound, 34),
        (Reason::NeighbourForm, 35),
        (Reason::ListenerPort, 36),
        (Reason::DnsBypass, 37),
        (Reason::Budget, 38),
    ] {
        assert_eq!(reason as u8, number, "{reason:?}");
        assert_eq!(reason.allows(), number < 16, "{reason:?}");
        assert_eq!(Verdict::from(reason).allows(), reason.allows());
        assert_eq!(Verdict::from(reason).is_miss(), reason.is_miss());
    }
}

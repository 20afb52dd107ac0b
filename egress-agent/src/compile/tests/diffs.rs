//! From image to image: what is open on the way, and where it ends.

use super::lab::{LIMITS, SLOT, facts, image, lines, policy, question, questions};
use crate::compile::{Change, Facts, Image, ImageTables, RuleIds, compile, diff, undo};
use egress_common::{addr::Addr, permit::Grant, sandbox::flags};
use proptest::prelude::*;
use std::net::IpAddr;

const HOUR_NS: u64 = 3_600_000_000_000;

/// Applies the changes one by one and asks everything after each.
fn walk(old: &Image, new: &Image, learned: &[(Addr, Grant)]) -> Result<ImageTables, TestCaseError> {
    let mut tables = ImageTables::from(old);
    let mut target = ImageTables::from(new);
    for &(addr, grant) in learned {
        tables.learn(old, addr, [grant]);
        target.learn(new, addr, [grant]);
    }
    let before = tables.clone();
    let asked: Vec<_> = questions().map(|(dst, protocol, port, path)| question(dst, protocol, port, path)).collect();
    for change in diff(old, new) {
        tables.apply(&change, new);
        for &question in &asked {
            let opens = tables.decide(question).allows();
            let may = before.decide(question).allows() || target.decide(question).allows();
            prop_assert!(!opens || may, "{:?} opened {:?}\n{:#?}", change, question.dst.to_ip(), diff(old, new));
        }
    }
    for &question in &asked {
        prop_assert_eq!(tables.decide(question), target.decide(question), "{:?}", question.dst.to_ip());
    }
    Ok(tables)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn nothing_opens_on_the_way_that_neither_policy_opens(
        from in lines(), to in lines(), from_netns: bool, to_netns: bool, gone in 0_usize..4,
        addresses in prop::collection::vec(0_usize..32, 0..4),
    ) {
        let (Some(from), Some(to)) = (from.policy(), to.policy()) else { return Ok(()) };
        let mut ids = RuleIds::new(0..4096);
        let Ok(old) = compile(&from, &facts(from_netns), SLOT, &mut ids, LIMITS) else { return Ok(()) };
        let mut less = facts(to_netns);
        less.own_addresses = less.own_addresses.into_iter().skip(gone).collect();
        let Ok(new) = compile(&to, &less, SLOT, &mut ids, LIMITS) else { return Ok(()) };
        let learned: Vec<(Addr, Grant)> = addresses
            .into_iter()
            .zip(old.name_rules.iter().cycle())
            .map(|(addr, &rule)| {
                let addr: IpAddr = super::lab::ADDRESSES[addr].parse().unwrap();
                (Addr::from(addr).routed(), Grant { expires_ns: HOUR_NS, rule })
            })
            .collect();
        walk(&old, &new, &learned)?;
        walk(&Image::empty(SLOT), &old, &[])?;
        walk(&old, &Image::empty(SLOT), &learned)?;
    }

    #[test]
    fn a_diff_that_breaks_off_anywhere_is_taken_back(from in lines(), to in lines(), own_netns: bool, at in 0_usize..40) {
        let (Some(from), Some(to)) = (from.policy(), to.policy()) else { return Ok(()) };
        let mut ids = RuleIds::new(0..4096);
        let Ok(old) = compile(&from, &facts(own_netns), SLOT, &mut ids, LIMITS) else { return Ok(()) };
        let Ok(new) = compile(&to, &facts(own_netns), SLOT, &mut ids, LIMITS) else { return Ok(()) };
        let (before, target) = (ImageTables::from(&old), ImageTables::from(&new));
        let mut tables = before.clone();
        let mut changes = diff(&old, &new);
        changes.truncate(at);
        for change in &changes {
            tables.apply(change, &new);
        }
        // The one that failed may have been carried out or not.
        changes.extend(diff(&old, &new).into_iter().nth(at).filter(|_| at % 2 == 0));
        let asked: Vec<_> = questions().map(|(dst, protocol, port, path)| question(dst, protocol, port, path)).collect();
        for change in undo(&old, &changes) {
            tables.apply(&change, &old);
            for &question in &asked {
                let may = before.decide(question).allows() || target.decide(question).allows();
                prop_assert!(may || !tables.decide(question).allows(), "{:?} opened {:?}", change, question.dst.to_ip());
            }
        }
        for &question in &asked {
            prop_assert_eq!(tables.decide(question), before.decide(question));
        }
    }

    #[test]
    fn equal_policies_differ_by_nothing(lines in lines(), own_netns: bool) {
        let Some(policy) = lines.policy() else { return Ok(()) };
        let mut ids = RuleIds::new(0..4096);
        let Ok(old) = compile(&policy, &facts(own_netns), SLOT, &mut ids, LIMITS) else { return Ok(()) };
        let new = compile(&policy, &facts(own_netns), SLOT, &mut ids, LIMITS).unwrap();
        prop_assert_eq!(diff(&old, &new), vec![]);
    }
}

fn compiled(texts: &[&str]) -> Vec<Image> {
    let mut ids = RuleIds::new(0..64);
    texts.iter().map(|text| compile(&policy(text), &facts(true), SLOT, &mut ids, LIMITS).unwrap()).collect()
}

#[test]
fn only_what_changed_is_written_and_references_stay() {
    let images = compiled(&[
        "[allow]\nnames = [\"a.test\"]\naddresses = [\"10.0.0.0/8:443\", \"198.51.100.7\"]",
        "[allow]\nnames = [\"b.test\", \"a.test\"]\naddresses = [\"198.51.100.7\", \"10.0.0.0/8:443\"]",
    ]);
    let changes = diff(&images[0], &images[1]);
    assert!(matches!(changes.as_slice(), [Change::SetRule(..), Change::Restamp]), "{changes:#?}");
    assert_eq!(images[0].name_rules[0], images[1].name_rules[1]);
}

#[test]
fn rules_come_first_and_go_last_and_closing_comes_before_opening() {
    let images = compiled(&[
        "[allow]\naddresses = [\"10.0.0.0/8\"]",
        "[allow]\naddresses = [\"192.0.2.0/24:443\"]\n[deny]\naddresses = [\"203.0.113.0/24\"]",
    ]);
    let kinds: Vec<&str> = diff(&images[0], &images[1])
        .iter()
        .map(|change| match change {
            Change::SetRule(..) => "rule",
            Change::SetNetwork(prefix, network) => {
                match (prefix.to_string().as_str(), network.allow.is_none() && network.deny.is_none()) {
                    (_, true) => "same or closed",
                    ("203.0.113.0/24", _) => "deny",
                    _ => "allow",
                }
            }
            Change::RemoveNetwork(_) => "remove",
            Change::ClearRule(_) => "clear",
            Change::Restamp => "restamp",
            _ => "other",
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "rule",
            "rule",
            "same or closed",
            "same or closed",
            "same or closed",
            "deny",
            "restamp",
            "allow",
            "remove",
            "clear"
        ]
    );
}

#[test]
fn e08_a_learned_permit_is_stamped_and_loses_what_is_gone() {
    let images = compiled(&[
        "[allow]\nnames = [\"a.test\", \"b.test\"]",
        "[allow]\nnames = [\"b.test\"]\n[deny]\naddresses = [\"198.51.100.0/24:443\"]",
    ]);
    let addr = Addr::from("198.51.100.7".parse::<IpAddr>().unwrap());
    let grant = |rule| Grant { expires_ns: HOUR_NS, rule };
    let [a, b] = images[0].name_rules[..] else { panic!("two names") };
    let mut tables = ImageTables::from(&images[0]);
    tables.learn(&images[0], addr, [grant(a), grant(b)]);
    let asks = |tables: &ImageTables, port| {
        tables.decide(question("198.51.100.7", 6, Some(port), egress_common::question::Path::Wire)).allows()
    };
    assert!(asks(&tables, 443) && asks(&tables, 80));
    for change in diff(&images[0], &images[1]) {
        tables.apply(&change, &images[1]);
    }
    assert!(!asks(&tables, 443) && asks(&tables, 80));
    let permit = images[1].permit_with(addr, [grant(a), grant(b)]).unwrap();
    assert_eq!(permit.grants[0], grant(b));
    assert!(permit.grants[1].rule.is_none());
    assert_eq!(permit.deny, images[1].deny_for(addr));
    assert!(!permit.deny.is_none());
    tables.set_now(HOUR_NS);
    assert!(!asks(&tables, 80));
}

#[test]
fn a_learned_permit_does_not_hide_what_the_policy_names() {
    let image =
        image("[allow]\nnames = [\"a.test:443\"]\naddresses = [\"198.51.100.7:22\", \"203.0.113.0/24:25\"]", true);
    for (addr, port) in [("198.51.100.7", 22), ("203.0.113.9", 25)] {
        let ip: IpAddr = addr.parse().unwrap();
        let mut tables = ImageTables::from(&image);
        let grant = Grant { expires_ns: HOUR_NS, rule: image.name_rules[0] };
        let ask = |tables: &ImageTables, port| {
            tables.decide(question(addr, 6, Some(port), egress_common::question::Path::Wire)).allows()
        };
        assert!(ask(&tables, port) && !ask(&tables, 443));
        tables.learn(&image, ip, [grant]);
        assert!(ask(&tables, port) && ask(&tables, 443) && !ask(&tables, 80), "{addr}");
        tables.learn(&image, ip, []);
        assert!(ask(&tables, port) && !ask(&tables, 443), "{addr}");
    }
    assert!(image.static_grant_for("198.51.100.7".parse::<IpAddr>().unwrap()).is_some());
    assert!(image.static_grant_for("203.0.113.9".parse::<IpAddr>().unwrap()).is_none());
}

#[test]
fn what_widens_comes_last_and_what_narrows_comes_first() {
    let images =
        compiled(&["mode = \"observe\"\n[allow]\nicmp = \"echo\"\nloopback = [80]", "[allow]\nloopback = [443]"]);
    let settings = |old: &Image, new: &Image| -> Vec<(usize, u32)> {
        let changes = diff(old, new);
        let last = changes.iter().rposition(|change| !matches!(change, Change::ClearRule(_))).unwrap();
        let written = changes.iter().enumerate().filter_map(|(index, change)| match change {
            Change::SetSandbox(settings) => Some((last - index, settings.flags & (flags::OBSERVE | flags::ICMP_ECHO))),
            _ => None,
        });
        written.collect()
    };
    let narrowing = settings(&images[0], &images[1]);
    assert!(matches!(narrowing.as_slice(), [(_, 0), (0, 0)]), "{narrowing:?}");
    let widening = settings(&images[1], &images[0]);
    assert_eq!(widening, [(0, flags::OBSERVE | flags::ICMP_ECHO)]);
}

#[test]
fn facts_that_change_make_a_diff_of_their_own() {
    let policy = policy("[allow]\nself = [80]\naddresses = [\"198.51.100.0/24\"]");
    let mut ids = RuleIds::new(0..64);
    let old = compile(&policy, &facts(false), SLOT, &mut ids, LIMITS).unwrap();
    let mut moved: Facts = facts(false);
    moved.own_addresses = ["198.51.100.31".parse().unwrap()].into();
    let new = compile(&policy, &moved, SLOT, &mut ids, LIMITS).unwrap();
    let changes = diff(&old, &new);
    let own = |change: &&Change| matches!(change, Change::SetOwn(_) | Change::RemoveOwn(_));
    assert_eq!(changes.iter().filter(own).count(), 4);
    assert!(!changes.iter().any(|change| matches!(change, Change::SetRule(..) | Change::ClearRule(_))));
}

use super::*;
use proptest::{collection::vec, prelude::*};
use std::net::Ipv4Addr;

const MINUTE: u64 = 60_000_000_000;

fn ip(number: u32) -> IpAddr {
    Ipv4Addr::from(0xc633_0000 + number).into()
}

/// An answer whose permits the kernel took.
fn learn(learned: &mut Learned, name: &str, addresses: &[IpAddr], expires_ns: u64, now: u64) -> Result<Admitted, Full> {
    let admitted = learned.admit(name, addresses, now)?;
    for &address in addresses {
        learned.note(address, name, expires_ns);
    }
    Ok(admitted)
}

/// How many addresses lead to a name now.
fn live(learned: &Learned, now: u64) -> usize {
    learned.by_address.keys().filter(|address| learned.live_names(**address, now).next().is_some()).count()
}

#[test]
fn e10_a_name_that_rotates_keeps_its_latest_256_and_touches_nobody_elses() {
    let mut learned = Learned::default();
    learn(&mut learned, "other.test", &[ip(100_000), ip(3)], MINUTE, 0).unwrap();
    let mut gone = 0;
    for number in 0..5000 {
        let now = u64::from(number);
        let admitted = learn(&mut learned, "pool.test", &[ip(number)], MINUTE + now, now).unwrap();
        assert!(admitted.new && !admitted.gone.contains(&ip(number)));
        gone += admitted.gone.len();
    }
    assert_eq!(learned.by_name["pool.test"].len(), PER_NAME);
    // An address that two names lead to is still the other one's.
    assert_eq!(gone, 5000 - PER_NAME - 1);
    for number in 5000 - 256..5000 {
        assert_eq!(learned.live_names(ip(number), MINUTE).collect::<Vec<_>>(), ["pool.test"], "{number}");
    }
    for kept in [ip(3), ip(100_000)] {
        assert_eq!(learned.live_names(kept, 0).collect::<Vec<_>>(), ["other.test"]);
    }
    // What is asked for again and again is not the oldest.
    for number in 5000..5300 {
        learn(&mut learned, "pool.test", &[ip(4999), ip(number)], 2 * MINUTE + u64::from(number), 5000).unwrap();
    }
    assert_eq!(learned.live_names(ip(4999), MINUTE).count(), 1);
}

#[test]
fn e10_a_sandbox_has_4096_and_live_ones_of_other_names_stay() {
    let mut learned = Learned::default();
    for number in 0..4096 {
        learn(&mut learned, &format!("n{number}.test"), &[ip(number)], MINUTE, 0).unwrap();
    }
    assert_eq!(learn(&mut learned, "late.test", &[ip(9000)], 2 * MINUTE, 1), Err(Full));
    // Known addresses are nothing more.
    assert_eq!(learn(&mut learned, "late.test", &[ip(7)], 2 * MINUTE, 1), Ok(Admitted { new: true, gone: vec![] }));
    assert_eq!(live(&learned, 1), AT_MOST);
    let admitted = learn(&mut learned, "late.test", &[ip(9000)], 2 * MINUTE, MINUTE).unwrap();
    assert_eq!(admitted.gone.len(), 4095, "what expired gives way");
    assert_eq!(learned.live_names(ip(7), MINUTE).collect::<Vec<_>>(), ["late.test"]);
    assert_eq!(live(&learned, MINUTE), 2);
}

#[test]
fn e10_a_full_sandbox_rotates_a_names_own() {
    let mut learned = Learned::default();
    for number in 0..4095 {
        learn(&mut learned, &format!("n{number}.test"), &[ip(number)], MINUTE, 0).unwrap();
    }
    learn(&mut learned, "own.test", &[ip(5000)], MINUTE, 0).unwrap();
    let admitted = learn(&mut learned, "own.test", &[ip(5001)], 2 * MINUTE, 1).unwrap();
    assert_eq!(admitted, Admitted { new: true, gone: vec![ip(5000)] });
    assert_eq!(learn(&mut learned, "own.test", &[ip(5001), ip(5002)], 2 * MINUTE, 1), Err(Full));
    assert_eq!(learned.live_names(ip(5001), 1).count(), 1, "a refusal takes nothing");
    assert_eq!(live(&learned, 1), AT_MOST);
}

#[test]
fn e11_one_sandboxs_flood_is_its_own() {
    let (mut a, mut b) = (Learned::default(), Learned::default());
    for number in 0..5000 {
        drop(learn(&mut a, &format!("n{number}.test"), &[ip(number)], MINUTE, 0));
    }
    assert_eq!(learn(&mut a, "last.test", &[ip(9000)], MINUTE, 0), Err(Full));
    assert!(learn(&mut b, "last.test", &[ip(9000)], MINUTE, 0).is_ok());
}

#[test]
fn a_name_is_news_once_and_again_after_its_end() {
    let mut learned = Learned::default();
    let pair = [ip(1), ip(2)];
    assert!(learn(&mut learned, "a.test", &pair, MINUTE, 0).unwrap().new);
    assert!(!learn(&mut learned, "a.test", &pair, MINUTE + 5, 5).unwrap().new);
    assert!(learn(&mut learned, "b.test", &pair, MINUTE, 5).unwrap().new);
    assert!(learn(&mut learned, "a.test", &pair, 3 * MINUTE, 2 * MINUTE).unwrap().new);
    learned.sweep(2 * MINUTE);
    assert_eq!(learned.pairs().map(|(_, name)| name).collect::<Vec<_>>(), ["a.test", "a.test"]);
    assert_eq!(learned.by_name.len(), 1);
}

#[test]
fn e02_what_the_kernel_refuses_was_never_learned() {
    let mut learned = Learned::default();
    learn(&mut learned, "a.test", &[ip(1)], MINUTE, 0).unwrap();
    for addresses in [&[ip(1)][..], &[ip(1), ip(2)]] {
        assert!(learned.admit("a.test", addresses, 2 * MINUTE).unwrap().new);
        assert_eq!(live(&learned, MINUTE), 0, "nor does an old one live longer");
        assert_eq!(learned.pairs().collect::<Vec<_>>(), [(ip(1), "a.test")]);
    }
}

proptest! {
    /// Kept twice, for two questions: what names lead to an address, and when each ends.
    #[test]
    fn what_is_kept_by_name_and_by_address_is_the_same(
        steps in vec((0..6_u32, vec(0..400_u32, 1..300), 1..50_u64, 0..20_u64), 1..40)
    ) {
        let (mut learned, mut now) = (Learned::default(), 0);
        for (name, addresses, life, pause) in steps {
            now += pause;
            let addresses: Vec<IpAddr> = addresses.into_iter().map(ip).collect();
            match name {
                0 => learned.sweep(now),
                1 => learned.age(life),
                _ => drop(learn(&mut learned, &format!("n{name}.test"), &addresses, now + life, now)),
            }
            let by_name: BTreeSet<(IpAddr, &str)> =
                learned.by_name.iter().flat_map(|(name, own)| own.keys().map(|address| (*address, &**name))).collect();
            let by_address: Vec<(IpAddr, &str)> = learned.pairs().collect();
            prop_assert_eq!(by_address.len(), by_name.len());
            prop_assert_eq!(by_address.into_iter().collect::<BTreeSet<_>>(), by_name);
            prop_assert!(learned.by_address.values().all(|names| !names.is_empty()));
        }
    }
}

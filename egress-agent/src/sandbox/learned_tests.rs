use super::*;
use std::net::Ipv4Addr;

const MINUTE: u64 = 60_000_000_000;

fn ip(number: u32) -> IpAddr {
    Ipv4Addr::from(0xc633_0000 + number).into()
}

/// How many addresses lead to a name now.
fn live(learned: &Learned, now: u64) -> usize {
    learned.by_address.keys().filter(|address| learned.live_names(**address, now).next().is_some()).count()
}

#[test]
fn e10_a_name_that_rotates_keeps_its_latest_256_and_touches_nobody_elses() {
    let mut learned = Learned::default();
    learned.admit("other.test", &[ip(100_000), ip(3)], MINUTE, 0).unwrap();
    let mut gone = 0;
    for number in 0..5000 {
        let now = u64::from(number);
        let admitted = learned.admit("pool.test", &[ip(number)], MINUTE + now, now).unwrap();
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
        learned.admit("pool.test", &[ip(4999), ip(number)], 2 * MINUTE + u64::from(number), 5000).unwrap();
    }
    assert_eq!(learned.live_names(ip(4999), MINUTE).count(), 1);
}

#[test]
fn e10_a_sandbox_has_4096_and_live_ones_of_other_names_stay() {
    let mut learned = Learned::default();
    for number in 0..4096 {
        learned.admit(&format!("n{number}.test"), &[ip(number)], MINUTE, 0).unwrap();
    }
    assert_eq!(learned.admit("late.test", &[ip(9000)], 2 * MINUTE, 1), Err(Full));
    // Known addresses are nothing more.
    assert_eq!(learned.admit("late.test", &[ip(7)], 2 * MINUTE, 1), Ok(Admitted { new: true, gone: vec![] }));
    assert_eq!(live(&learned, 1), AT_MOST);
    let admitted = learned.admit("late.test", &[ip(9000)], 2 * MINUTE, MINUTE).unwrap();
    assert_eq!(admitted.gone.len(), 4095, "what expired gives way");
    assert_eq!(learned.live_names(ip(7), MINUTE).collect::<Vec<_>>(), ["late.test"]);
    assert_eq!(live(&learned, MINUTE), 2);
}

#[test]
fn e10_a_full_sandbox_rotates_a_names_own() {
    let mut learned = Learned::default();
    for number in 0..4095 {
        learned.admit(&format!("n{number}.test"), &[ip(number)], MINUTE, 0).unwrap();
    }
    learned.admit("own.test", &[ip(5000)], MINUTE, 0).unwrap();
    let admitted = learned.admit("own.test", &[ip(5001)], 2 * MINUTE, 1).unwrap();
    assert_eq!(admitted, Admitted { new: true, gone: vec![ip(5000)] });
    assert_eq!(learned.admit("own.test", &[ip(5001), ip(5002)], 2 * MINUTE, 1), Err(Full));
    assert_eq!(learned.live_names(ip(5001), 1).count(), 1, "a refusal takes nothing");
    assert_eq!(live(&learned, 1), AT_MOST);
}

#[test]
fn e11_one_sandboxs_flood_is_its_own() {
    let (mut a, mut b) = (Learned::default(), Learned::default());
    for number in 0..5000 {
        drop(a.admit(&format!("n{number}.test"), &[ip(number)], MINUTE, 0));
    }
    assert_eq!(a.admit("last.test", &[ip(9000)], MINUTE, 0), Err(Full));
    assert!(b.admit("last.test", &[ip(9000)], MINUTE, 0).is_ok());
}

#[test]
fn a_name_is_news_once_and_again_after_its_end() {
    let mut learned = Learned::default();
    let pair = [ip(1), ip(2)];
    assert!(learned.admit("a.test", &pair, MINUTE, 0).unwrap().new);
    assert!(!learned.admit("a.test", &pair, MINUTE + 5, 5).unwrap().new);
    assert!(learned.admit("b.test", &pair, MINUTE, 5).unwrap().new);
    assert!(learned.admit("a.test", &pair, 3 * MINUTE, 2 * MINUTE).unwrap().new);
    learned.sweep(2 * MINUTE);
    assert_eq!(learned.pairs().map(|(_, name)| name).collect::<Vec<_>>(), ["a.test", "a.test"]);
    assert_eq!(learned.by_name.len(), 1);
}

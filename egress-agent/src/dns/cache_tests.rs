use super::*;

fn key(name: &str) -> Key {
    Key { name: name.parse().unwrap(), qtype: 1 }
}

fn addresses(ttl: u32) -> Arc<Known> {
    let found =
        Found::Addresses { addresses: vec!["198.51.100.7".parse().unwrap()], server: "192.0.2.53:53".parse().unwrap() };
    Arc::new(Known { hops: Vec::new(), found, ttl })
}

fn negative(found: Found, ttl: u32) -> Arc<Known> {
    Arc::new(Known { hops: Vec::new(), found, ttl })
}

fn fresh(cache: &mut Cache, name: &str, now: Instant) -> Option<u32> {
    match cache.get(&key(name), now) {
        Some(Cached::Fresh { ttl, .. }) => Some(ttl),
        _ => None,
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn a_ttl_counts_down_to_its_end() {
    let (mut cache, start) = (Cache::new(), Instant::now());
    cache.put(key("a.test"), addresses(60), start);
    for (age, left) in [(0, Some(60)), (1, Some(59)), (59, Some(1)), (60, None)] {
        assert_eq!(fresh(&mut cache, "a.test", start + secs(age)), left, "{age}");
    }
    for (ttl, life) in [(0, 1), (1, 1), (86_400, 3600)] {
        cache.put(key("a.test"), addresses(ttl), start);
        assert!(fresh(&mut cache, "a.test", start + Duration::from_millis(life * 1000 - 1)).is_some(), "{ttl}");
        assert_eq!(fresh(&mut cache, "a.test", start + secs(life)), None, "{ttl}");
    }
}

#[test]
fn e16_old_addresses_help_out_for_15_minutes_and_nothing_else_does() {
    let (mut cache, start) = (Cache::new(), Instant::now());
    cache.put(key("a.test"), addresses(60), start);
    let end = 60_u64 + 15 * 60;
    let before = |seconds| start + secs(end - seconds);
    assert!(matches!(cache.get(&key("a.test"), before(1)), Some(Cached::Stale { ask: true, .. })));
    cache.failed(&key("a.test"), before(10));
    assert!(matches!(cache.get(&key("a.test"), before(6)), Some(Cached::Stale { ask: false, .. })));
    assert!(matches!(cache.get(&key("a.test"), before(5)), Some(Cached::Stale { ask: true, .. })));
    assert!(cache.get(&key("a.test"), before(0)).is_none());
    assert!(!cache.holds(&key("a.test")));
    for found in [Found::NoData, Found::NxDomain] {
        cache.put(key("a.test"), negative(found, 600), start);
        assert_eq!(fresh(&mut cache, "a.test", start), Some(600));
        assert!(fresh(&mut cache, "a.test", start + secs(59)).is_some(), "at most a minute");
        assert!(cache.get(&key("a.test"), start + secs(60)).is_none());
    }
    cache.put(key("a.test"), negative(Found::TooLong, 60), start);
    assert!(cache.get(&key("a.test"), start).is_none());
}

#[test]
fn what_was_used_longest_ago_gives_way() {
    let (mut cache, start) = (Cache::new(), Instant::now());
    for number in 0..1024 {
        cache.put(key(&format!("n{number}.test")), addresses(60), start);
    }
    assert!(fresh(&mut cache, "n0.test", start).is_some());
    cache.put(key("late.test"), addresses(60), start);
    assert!(cache.holds(&key("n0.test")) && cache.holds(&key("late.test")));
    assert!(!cache.holds(&key("n1.test")));
    assert_eq!(cache.entries.len(), 1024);
}

#[test]
fn e15_a_used_answer_is_renewed_once_at_four_fifths_of_its_life() {
    let (mut cache, start) = (Cache::new(), Instant::now());
    cache.put(key("a.test"), addresses(100), start);
    let renewed = |cache: &mut Cache| match cache.get(&key("a.test"), start) {
        Some(Cached::Fresh { renewed, .. }) => renewed,
        _ => panic!("not fresh"),
    };
    assert!(!renewed(&mut cache));
    assert_eq!(cache.renewal(&key("a.test"), start + secs(10), 0.0), Some(secs(70)));
    assert!(renewed(&mut cache));
    assert_eq!(cache.renewal(&key("a.test"), start, 0.0), None);
    cache.put(key("a.test"), addresses(100), start);
    assert_eq!(cache.renewal(&key("a.test"), start, 1.0), Some(secs(70)), "with all its jitter");
    cache.put(key("b.test"), negative(Found::NoData, 60), start);
    assert_eq!(cache.renewal(&key("b.test"), start, 0.0), None);
}

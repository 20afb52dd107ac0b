//! The bucket never gives more than it promises, whatever packets and clocks come.

use egress_common::bucket::{
    BURST_MAX_NS, BURST_MIN_NS, Limit, PACKET_MAX, RATE_MAX_BITS, RATE_MIN_BITS, boost, debt, debt_ns, ip_bytes, pace,
    segments, share,
};
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const YEAR_NS: u64 = 365 * 24 * 3600 * 1000 * MS;

fn rate() -> impl Strategy<Value = u64> {
    // Even over the orders of magnitude.
    (RATE_MIN_BITS.ilog2()..=RATE_MAX_BITS.ilog2())
        .prop_flat_map(|bits| (1 << bits)..=(2_u64 << bits))
        .prop_map(|rate| rate.clamp(RATE_MIN_BITS, RATE_MAX_BITS))
}

fn steps() -> impl Strategy<Value = Vec<(u64, u32)>> {
    let pause = prop_oneof![Just(0), 0..MS, 0..300 * MS, 0..YEAR_NS];
    let bytes = prop_oneof![Just(0), 28_u32..1500, 1500_u32..70_000, Just(PACKET_MAX), Just(u32::MAX)];
    prop::collection::vec((pause, bytes), 1..200)
}

proptest! {
    #[test]
    fn no_window_holds_more_than_rate_burst_and_one_packet(
        bits in rate(),
        burst in BURST_MIN_NS..=BURST_MAX_NS,
        start in 0..10 * YEAR_NS,
        steps in steps(),
    ) {
        let limit = Limit::new(bits, burst);
        let (mut now, mut paid) = (start, 0);
        let mut passed: Vec<(u64, u64)> = Vec::new();
        for (pause, bytes) in steps {
            now += pause;
            if let Some(next) = limit.pay(paid, now, bytes) {
                prop_assert!(next >= paid);
                paid = next;
                passed.push((now, u64::from(bytes.min(PACKET_MAX))));
            }
        }
        for (from, (begun, _)) in passed.iter().enumerate() {
            let mut sum = 0;
            for (ended, bytes) in &passed[from..] {
                // The packet that goes into debt is the window's last.
                let may = u128::from(ended - begun + burst) * u128::from(bits) / 8_000_000_000;
                prop_assert!(sum <= may, "{sum} bytes before the last packet in {} ns, {may} may pass", ended - begun);
                sum += u128::from(*bytes);
            }
        }
    }

    #[test]
    fn a_sender_without_pause_gets_its_rate(bits in rate(), bytes in 64_u32..70_000) {
        const PACKETS: u64 = 1000;
        let limit = Limit::new(bits, BURST_MIN_NS);
        let (mut now, mut paid) = (YEAR_NS, 0);
        while let Some(next) = limit.pay(paid, now, PACKET_MAX) {
            paid = next;
        }
        let mut passed = Vec::new();
        while passed.len() as u64 <= PACKETS {
            // As soon as it may.
            now = now.max(now + debt_ns(paid, now) - BURST_MIN_NS);
            match limit.pay(paid, now, bytes) {
                Some(next) => { paid = next; passed.push(now); }
                None => now += 1,
            }
        }
        let took = u128::from(now - passed[0]);
        let ideal = u128::from(PACKETS * u64::from(bytes)) * 8_000_000_000 / u128::from(bits);
        // Each packet is rounded up to a sixteenth of a nanosecond, and the price of a byte by next to nothing.
        let rounded = u128::from(PACKETS.div_ceil(16)) + ideal / 10_000 + 2;
        prop_assert!(took <= ideal + rounded, "{took} ns for what is due in {ideal}");
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing(
        bits in rate(),
        now in YEAR_NS..2 * YEAR_NS,
        back in 0..YEAR_NS,
        bytes in 1_u32..70_000,
    ) {
        let limit = Limit::new(bits, BURST_MIN_NS);
        let paid = limit.pay(0, now, bytes).unwrap();
        if let Some(next) = limit.pay(paid, now - back, bytes) {
            prop_assert_eq!(next, paid + limit.cost(bytes));
        }
    }

    #[test]
    fn a_packet_passes_an_idle_bucket_whatever_its_size(bits in rate(), now in YEAR_NS..10 * YEAR_NS, bytes: u32) {
        let limit = Limit::new(bits, BURST_MIN_NS);
        prop_assert!(limit.pay(0, now, bytes).is_some());
        // And one that was idle for a year.
        prop_assert!(limit.pay(now - YEAR_NS, now, bytes).is_some());
    }

    #[test]
    fn segments_cover_what_they_are_of(len in 60_u32..1 << 19, size in 1_u32..9000, headers in 28_u32..100) {
        let count = segments(len, 0, size, headers);
        prop_assert!(count >= 1);
        prop_assert!(len <= headers || count * size >= len - headers);
        prop_assert!(ip_bytes(len, count, headers) >= len);
        prop_assert_eq!(segments(len, 17, size, headers), 17);
    }

    #[test]
    fn datagrams_leave_room_for_tcp(bits in rate(), protocol: u8, now in YEAR_NS..10 * YEAR_NS, bytes: u32) {
        let burst = Limit::new(bits, BURST_MIN_NS);
        let limit = burst.of(protocol);
        prop_assert_eq!(limit, Limit { depth: limit.depth, ..burst });
        let most = (now << 4) + if protocol == 6 { burst.depth } else { burst.depth / 4 * 3 };
        prop_assert!(limit.pay(most, now, bytes).is_some());
        prop_assert!(limit.pay(most + 1, now, bytes).is_none());
    }

    #[test]
    fn sockets_share_no_more_than_there_is(bits in rate(), sockets in 1_u64..10_000, boosted in 0_u64..70, mss in 1_u32..=u32::MAX) {
        let limit = Limit::new(bits, BURST_MIN_NS);
        // Whatever they were given before: a quarter of the bucket ends it.
        let each = u64::from(pace(share(limit, sockets, boosted, limit.depth / 4 + limit.depth / 256, 0), mss, 52));
        prop_assert!(each >= 1);
        prop_assert!(each == 1 || each * sockets <= bits / 8);
    }

    #[test]
    fn a_share_is_between_three_quarters_of_the_even_one_and_all_of_it(bits in rate(), sockets in 0_u64..10_000, boosted in 0_u64..70, debt: u64, found: u64) {
        let limit = Limit::new(bits, BURST_MIN_NS);
        let one = share(limit, sockets, boosted, debt, found);
        let even = bits / sockets.max(1);
        prop_assert!(one <= bits && one >= even - even / 4);
        prop_assert!(found > limit.depth / 4 || one >= even);
        // The more was sent, the less.
        prop_assert!(share(limit, sockets, boosted, debt.saturating_add(1 << 20), found) <= one);
        prop_assert!(share(limit, sockets, boosted, debt, found.saturating_add(1 << 20)) <= one);
    }

    #[test]
    fn a_boost_comes_and_goes_one_by_one(bits in rate(), sockets in 0_u64..10_000, last in 0_u64..70, sent: u64, debt: u64) {
        let limit = Limit::new(bits, BURST_MIN_NS);
        let next = boost(last, limit, sent, debt, sockets);
        prop_assert!(next.abs_diff(last) <= 1);
        prop_assert!(next <= last || (debt <= limit.depth / 4 && sockets >> last > 1));
    }
}

#[test]
fn what_a_socket_leaves_is_the_others() {
    let limit = Limit::new(20_000_000, BURST_MIN_NS);
    // 20 Mbit/s are 335 544 bytes in an epoch. Of 21 sockets one has much to say.
    let mut doubled = 0;
    for (sent, then) in [(20_000, 1), (40_000, 2), (80_000, 3), (170_000, 4), (170_000, 4), (320_000, 4), (0, 4)] {
        doubled = boost(doubled, limit, sent, 0, 21);
        assert_eq!(doubled, then, "{sent}");
    }
    let even = 20_000_000 / 21;
    assert_eq!(share(limit, 21, 4, 0, 0), 20_000_000 - (20_000_000 - even) % 64);
    assert_eq!(share(limit, 21, 4, limit.depth / 8, 0), share(limit, 21, 4, 0, 0));
    assert_eq!(share(limit, 21, 4, limit.depth / 4 + limit.depth / 256, 0), even);
    // Who finds it half full sends less than his part, so that it empties.
    assert_eq!(share(limit, 21, 0, limit.depth, limit.depth / 2 + limit.depth / 256), even - even / 64 * 8);
    assert_eq!(share(limit, 21, 4, limit.depth, limit.depth), even - even / 64 * 16);
    // All of them do: what they have is taken back.
    for then in [3, 2, 1, 0, 0] {
        doubled = boost(doubled, limit, 335_544, limit.depth / 4, 21);
        assert_eq!(doubled, then);
    }
}

#[test]
fn ip_bytes_are_those_of_the_wire() {
    // 10 segments of 1448 behind 52 bytes of headers each.
    let len = 52 + 10 * 1448;
    assert_eq!(segments(len, 10, 1448, 52), 10);
    assert_eq!(segments(len, 0, 1448, 52), 10);
    assert_eq!(ip_bytes(len, 10, 52), 15_000);
    assert_eq!(segments(1500, 0, 0, 52), 1);
    assert_eq!(ip_bytes(1500, 1, 52), 1500);
    // BIG TCP: longer than any length field of IP.
    assert_eq!(ip_bytes(400_052, 277, 52), 400_052 + 276 * 52);
    assert_eq!(ip_bytes(u32::MAX, u32::MAX, 60), PACKET_MAX);
}

#[test]
fn a_packet_larger_than_the_bucket_passes_into_debt() {
    // 200 ms at 1 Mbit/s are 25 000 bytes.
    let limit = Limit::new(1_000_000, BURST_MIN_NS);
    let paid = limit.pay(0, YEAR_NS, 65_536).unwrap();
    assert_eq!(debt_ns(paid, YEAR_NS) / MS, 524);
    assert_eq!(limit.pay(paid, YEAR_NS + 324 * MS, 1500), None);
    assert!(limit.pay(paid, YEAR_NS + 325 * MS, 1500).is_some());
    assert_eq!(debt_ns(paid, YEAR_NS + 1000 * MS), 0);
}

/// Packets of 64 KiB, as TCP makes them where the way is short: each is paced by what the answer to the one before found.
#[test]
fn a_flow_of_long_packets_has_the_rate_and_leaves_room() {
    const PACKETS: u64 = 200;
    const PAYLOAD: u32 = 45 * 1448;
    let bytes = ip_bytes(52 + PAYLOAD, 45, 52);
    for bits in [200_000, 1_000_000, 3_000_000] {
        let limit = Limit::new(bits, BURST_MIN_NS);
        let (mut now, mut paid, mut found, mut passed, mut fullest) = (YEAR_NS, 0, 0, 0, 0);
        while passed < PACKETS {
            let Some(next) = limit.pay(paid, now, bytes) else {
                now += 200 * MS;
                continue;
            };
            // The first windows go out at once.
            fullest = if passed > 10 { debt(paid, now).max(fullest) } else { 0 };
            // The answer is there before the next one may depart.
            let pace = u64::from(pace(share(limit, 1, 0, u64::MAX, found), 1448, 52));
            found = debt(paid, now);
            (paid, passed, now) = (next, passed + 1, now + u64::from(PAYLOAD) * 1_000_000_000 / pace);
        }
        let (due, took) = (PACKETS * u64::from(bytes) * 8_000_000_000 / bits, now - YEAR_NS);
        assert!((due / 100 * 98..=due / 100 * 105).contains(&took), "{bits} bit/s: {took} ns for what takes {due}");
        assert!(fullest < limit.depth / 2, "{bits} bit/s: whoever comes finds {fullest} of {}", limit.depth);
    }
}

#[test]
fn a_pace_leaves_room_for_headers() {
    assert_eq!(pace(10_000_000, 1448, 52), 1_206_666);
    assert_eq!(pace(1_000_000, 1448, 52), 120_666);
    assert_eq!(pace(10_000_000, 0, 52), 1_139_455);
    assert_eq!(pace(100_000_000_000, 1448, 52), u32::MAX);
    assert_eq!(pace(0, 1448, 52), 1);
}

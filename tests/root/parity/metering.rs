//! Buckets and budgets as the kernel runs them: two CPUs at once, segments that the device will make, and what it costs.

use super::{
    frames::{Family, Frame},
    install, on_device, policies, probe, with_device,
};
use egress_agent::datapath::probe::{Hook, NONCE, Probe, SLOT};
use egress_common::{
    bucket::{BURST_MAX_NS, BURST_MIN_NS, Limit, Limits, Place, RATE_MIN_BITS, debt_ns},
    sandbox::flags,
    verdict::Reason,
};
use std::time::{Duration, Instant};

const SECOND_BITS: u64 = 1_000_000_000;

/// A probe whose sandbox may send one datagram anywhere, within these limits.
fn limited(limits: Limits) -> (Probe, Vec<u8>) {
    let (mut probe, mut world) = (probe(), policies::one_permit());
    world.sandbox.flags |= flags::METERED_EGRESS;
    install(&mut probe, &world).expect("a world in the maps");
    probe.set_limits(limits).expect("limits");
    (probe, Frame::datagram(Family::V4, policies::PERMITTED, 443).bytes())
}

#[test]
fn two_cpus_lose_no_update() {
    const RUNS: u32 = 200_000;
    let limit = Limit::new(SECOND_BITS, BURST_MAX_NS);
    let (spent, debt, took, each) = with_device(|ifindex| {
        let (probe, frame) = limited(Limits { egress: limit, ..Limits::default() });
        let start = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| assert!(probe.run(Hook::Egress, &frame, ifindex, RUNS).expect("a run").passed));
            }
        });
        let took = start.elapsed();
        let meter = probe.meters().expect("meters").at[Place::Egress as usize];
        assert_eq!(meter.dropped_packets, 0);
        (meter.bytes, debt_ns(meter.paid, crate::job::now_ns()), took, frame.len() as u64 - 14)
    });
    let runs = 2 * u64::from(RUNS);
    assert_eq!(spent, runs * each);
    // All of them are paid for one after the other, from the first on: what is owed and what has gone by is their price.
    let price = limit.cost(each as u32) * runs / 16;
    let gone = Duration::from_nanos(price.saturating_sub(debt));
    assert!(debt < price && gone <= took + Duration::from_millis(20), "{debt} of {price} ns are owed after {took:?}");
}

#[test]
fn segments_count_with_their_headers_and_no_packet_goes_beyond_a_budget() {
    with_device(|ifindex| {
        let (probe, frame) = limited(Limits { budget: 200, ..Limits::default() });
        let run = |segments| {
            let outcome = probe.run_segmented(Hook::Egress, &frame, ifindex, 1, segments).expect("a run");
            (outcome.denied, probe.meters().expect("meters").at[Place::Egress as usize].bytes)
        };
        let spent = Some(Reason::Budget as u8);
        // 60 bytes of IP, 32 of them behind the headers.
        assert_eq!(run((0, 0)), (None, 60));
        assert_eq!(run((4, 8)), (spent, 60), "144 bytes as four packets");
        assert_eq!(run((2, 16)), (None, 60 + 88));
        assert_eq!(run((0, 16)), (spent, 148), "two packets, which the kernel did not count");
        assert_eq!((run((0, 0)), run((0, 0))), ((spent, 148), (spent, 148)));
    });
}

/// Where nobody's sockets are seen, as those of a guest behind its tap: frames from it and to it each have a bucket at the device.
#[test]
fn a_device_meters_both_directions() {
    with_device(|ifindex| {
        let (mut probe, mut world) = (probe(), policies::one_permit());
        world.sources.insert(policies::source("192.0.2.1"));
        world.sandbox.flags |= flags::METERED_EGRESS | flags::METERED_INGRESS;
        install(&mut probe, &world).expect("a world in the maps");
        probe.set_device(ifindex, on_device(SLOT, NONCE)).expect("a device");
        // 60 bytes of IP are 60 ms of this rate, and for datagrams the bucket holds 150.
        let limit = Limit::new(RATE_MIN_BITS, BURST_MIN_NS);
        probe.set_limits(Limits { egress: limit, ingress: limit, budget: 0 }).expect("limits");
        let frame = Frame::datagram(Family::V4, policies::PERMITTED, 443).bytes();
        for (hook, place) in [(Hook::DeviceEgress, Place::DeviceEgress), (Hook::DeviceIngress, Place::DeviceIngress)] {
            let passed = (0..10).filter(|_| probe.run(hook, &frame, ifindex, 1).expect("a run").passed).count();
            let meter = probe.meters().expect("meters").at[place as usize];
            // A slow machine may earn a packet or two meanwhile.
            assert!((3..=5).contains(&passed), "{hook:?}: {passed} passed");
            assert_eq!((meter.bytes, meter.dropped_packets), (passed as u64 * 60, 10 - passed as u64), "{hook:?}");
        }
        let cgroups = probe.meters().expect("meters").at[Place::Egress as usize];
        assert_eq!((cgroups.bytes, cgroups.dropped_packets), (0, 0));
    });
}

/// Numbers for docs/benchmarks.md, as those of `parity::cost`.
#[test]
fn cost_of_a_limit() {
    let best = |limits: Option<Limits>| {
        with_device(|ifindex| {
            let (probe, frame) = if let Some(limits) = limits {
                limited(limits)
            } else {
                let mut probe = probe();
                install(&mut probe, &policies::one_permit()).expect("a world in the maps");
                (probe, Frame::datagram(Family::V4, policies::PERMITTED, 443).bytes())
            };
            let run = |_| probe.run(Hook::Egress, &frame, ifindex, 20_000).expect("a run").per_run;
            (0..20).map(run).min().expect("runs")
        })
    };
    let without = best(None);
    let with = best(Some(Limits { egress: Limit::new(100 * SECOND_BITS, BURST_MAX_NS), ..Limits::default() }));
    println!("egress hook, allowed IPv4 UDP packet: {without:?} without a limit, {with:?} with one");
    assert!(with < without + Duration::from_micros(1), "{with:?} {without:?}");
}

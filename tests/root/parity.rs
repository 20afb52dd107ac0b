//! The kernel and the host decide alike: the same packets and the same policy, by `BPF_PROG_TEST_RUN` of the real programs
//! and by [`egress_common`] over plain collections.
//!
//! Nothing is sent: the programs run on frames in memory, and the device is a pair of ends in a namespace of its own.

mod frames;
mod host;
mod metering;
mod policies;

use egress_agent::datapath::{
    load::Capacity,
    probe::{Hook, NONCE, Probe, ProbeError, SLOT},
};
use egress_common::{
    permit::RANGES,
    sandbox::{Identity, OnDevice, Sandbox, flags},
    verdict::{FLOW_LIFE_NS, FlowState, Reason},
};
use frames::{Family, Frame};
use host::Host;
use lab::Netns;
use nix::net::if_::if_nametoindex;
use policies::World;
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use std::{collections::BTreeMap, time::Duration};

const LOOPBACK: u32 = 1;
const WORLDS: usize = 60;
const FRAMES: usize = 60;
const SECOND_NS: u64 = 1_000_000_000;

/// Runs `work` in a namespace with a device, whose index it is given.
fn with_device<R: Send>(work: impl FnOnce(u32) -> R + Send) -> R {
    let netns = Netns::new();
    netns.ip("link add probe0 type veth peer name probe1");
    netns.enter(|| work(if_nametoindex("probe0").expect("the device that was just made")))
}

fn probe() -> Probe {
    Probe::load(Capacity { rules: policies::RULES as u32, permits: 256, networks: 256 }).expect("the programs load")
}

/// The same sequence on every run, so that a failure can be looked at again.
fn runner(seed: u8) -> TestRunner {
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]))
}

fn install(probe: &mut Probe, world: &World) -> Result<(), ProbeError> {
    probe.set_sandbox(SLOT, world.sandbox)?;
    for (index, rule) in world.rules.iter().enumerate() {
        probe.set_rule(index as u32, *rule)?;
    }
    probe.set_permits(&world.permits.iter().map(|(key, permit)| (*key, *permit)).collect::<Vec<_>>())?;
    probe.set_networks(&world.networks)?;
    probe.set_own(&world.own.iter().copied().collect::<Vec<_>>())?;
    probe.set_sources(&world.sources.iter().copied().collect::<Vec<_>>())?;
    Ok(())
}

fn on_device(slot: u32, nonce: u64) -> OnDevice {
    OnDevice { identity: Identity { slot, depth: 0, nonce }, ..OnDevice::default() }
}

/// What was decided how often, so that a test that decides nothing fails.
type Tally = BTreeMap<u8, usize>;

fn compare(seed: u8, hook: Hook, judge: impl Fn(&Host<'_>, &[u8], bool) -> Reason + Sync) -> Tally {
    with_device(|ifindex| {
        let (mut probe, mut runner, mut tally) = (probe(), runner(seed), Tally::new());
        let frames = proptest::collection::vec(frames::strategy(), FRAMES);
        probe.add_listener(policies::foreign_listener()).expect("a listener");
        for number in 0..WORLDS {
            let mut world = policies::strategy().new_tree(&mut runner).expect("a world").current();
            if hook == Hook::DeviceEgress {
                // Flows of an earlier world are of another nonce.
                world.sandbox.nonce = NONCE + number as u64;
                // Half of them with a source that needs no look into the table, which must change nothing.
                let own = world.sources.iter().filter(|key| key.slot == SLOT && number % 2 == 0);
                let usual = own.map(|key| key.addr).min();
                let on = OnDevice { usual_source: usual.unwrap_or_default(), ..on_device(SLOT, world.sandbox.nonce) };
                probe.set_device(ifindex, on).expect("a device");
            }
            install(&mut probe, &world).expect("a world in the maps");
            let host = Host::new(&world);
            for frame in frames.new_tree(&mut runner).expect("frames").current() {
                let on_loopback = hook == Hook::Egress && frame.on_loopback;
                let bytes = frame.bytes();
                let device = if on_loopback { LOOPBACK } else { ifindex };
                let Ok(kernel) = probe.run(hook, &bytes, device, 1) else {
                    // The kernel itself refuses to make a packet of less than its header says.
                    assert!(bytes.len() < 14 + 40, "not run: {frame:?}");
                    continue;
                };
                let expected = judge(&host, &bytes, on_loopback);
                let denied = (!expected.allows()).then_some(expected as u8);
                let observed = world.sandbox.flags & flags::OBSERVE != 0;
                assert_eq!(kernel.denied, denied, "{expected:?} on the host: {frame:?}\n{bytes:02x?}\n{world:#?}");
                assert_eq!(kernel.passed, expected.allows() || observed, "{expected:?}: {frame:?}\n{world:#?}");
                *tally.entry(expected as u8).or_default() += 1;
            }
        }
        tally
    })
}

#[test]
fn the_egress_hook_decides_as_the_host_does() {
    let tally = compare(1, Hook::Egress, |host, bytes, on_loopback| host.judge_packet(bytes, on_loopback));
    for reason in [
        Reason::Permitted,
        Reason::Loopback,
        Reason::Own,
        Reason::Listener,
        Reason::DeniedByRule,
        Reason::Restricted,
        Reason::Tunnel,
        Reason::NotPermitted,
        Reason::PortNotPermitted,
        Reason::Expired,
        Reason::DnsBypass,
        Reason::ForeignListener,
        Reason::LoopbackClosed,
        Reason::Icmp,
        Reason::Protocol,
        Reason::IpOptions,
        Reason::ExtensionHeader,
        Reason::Truncated,
        Reason::Malformed,
        Reason::EtherType,
    ] {
        assert!(tally.contains_key(&(reason as u8)), "{reason:?} never came up: {tally:?}");
    }
    assert!(tally.values().sum::<usize>() >= 2000, "{tally:?}");
}

#[test]
fn the_device_hook_decides_as_the_host_does() {
    let tally = compare(2, Hook::DeviceEgress, |host, bytes, _| host.judge_frame(bytes));
    for reason in [
        Reason::Permitted,
        Reason::Neighbour,
        Reason::NeighbourForm,
        Reason::Source,
        Reason::DeniedByRule,
        Reason::NotPermitted,
        Reason::PortNotPermitted,
        Reason::Expired,
        Reason::Icmp,
        Reason::LoopbackClosed,
        Reason::IpOptions,
        Reason::ExtensionHeader,
        Reason::EtherType,
    ] {
        assert!(tally.contains_key(&(reason as u8)), "{reason:?} never came up: {tally:?}");
    }
    assert!(tally.values().sum::<usize>() >= 2000, "{tally:?}");
}

/// At a device a live flow outlives its permit, but not for ever: whoever keeps talking to it keeps it no longer than a day.
#[test]
fn a_flow_at_a_device_ends_by_itself() {
    with_device(|ifindex| {
        let (mut probe, mut world) = (probe(), policies::one_permit());
        world.sources.insert(policies::source("192.0.2.1"));
        let frame = Frame::datagram(Family::V4, policies::PERMITTED, 443).bytes();
        probe.set_device(ifindex, on_device(SLOT, NONCE)).expect("a device");
        install(&mut probe, &world).expect("a world in the maps");
        let run = |probe: &mut Probe| probe.run(Hook::DeviceEgress, &frame, ifindex, 1).expect("a run");
        let key = policies::flow("192.0.2.1:40000", "198.51.100.7:443");
        let before = Host::new(&world).now_ns();
        assert!(run(&mut probe).passed);
        let state = probe.flow(&key).expect("a flow that rests on a permit is on record");
        assert!((before..before + FLOW_LIFE_NS + SECOND_NS).contains(&state.ends_ns), "{before} {state:?}");

        world.permits.values_mut().for_each(|permit| permit.grants[0].expires_ns = 1);
        install(&mut probe, &world).expect("a world in the maps");
        assert!(run(&mut probe).passed, "it goes on without its permit");
        let now = Host::new(&world).now_ns();
        probe.set_flow(key, FlowState { heard_ns: now, ends_ns: now, ..state }).expect("a flow");
        let ended = run(&mut probe);
        assert_eq!((ended.passed, ended.denied), (false, Some(Reason::Expired as u8)), "heard just now");
    });
}

/// Slot 0, a slot that is free, and one that has gone to somebody else, let nothing pass: not even what only observes.
#[test]
fn an_identity_that_is_not_of_its_slot_is_nobody() {
    with_device(|ifindex| {
        let mut probe = probe();
        let frame = Frame::datagram(Family::V4, policies::PERMITTED, 443).bytes();
        let mut passes = |slot, nonce, found| {
            let sandbox = Sandbox { nonce: found, flags: flags::OBSERVE, ..Sandbox::default() };
            probe.set_sandbox(slot, sandbox).expect("a sandbox");
            probe.set_device(ifindex, on_device(slot, nonce)).expect("a device");
            probe.run(Hook::DeviceEgress, &frame, ifindex, 1).expect("a run").passed
        };
        assert!(passes(SLOT, NONCE, NONCE));
        assert!(!passes(SLOT, NONCE, NONCE + 1), "somebody else's");
        assert!(!passes(SLOT, 0, 0), "a free slot");
        assert!(!passes(0, NONCE, NONCE), "slot 0");
    });
}

/// Numbers for docs/benchmarks.md: `cargo xtask test -- parity::cost --nocapture`. The bound is far above what a quiet machine
/// reads (about 100 ns), so that only a change of kind turns it red.
#[test]
fn cost_of_an_allowed_datagram() {
    let best = with_device(|ifindex| {
        let mut probe = probe();
        let world = policies::one_permit();
        install(&mut probe, &world).expect("a world in the maps");
        let frame = Frame::datagram(Family::V4, policies::PERMITTED, 443).bytes();
        (0..20)
            .map(|_| {
                let outcome = probe.run(Hook::Egress, &frame, ifindex, 20_000).expect("a run");
                assert!(outcome.passed && outcome.denied.is_none(), "{outcome:?}");
                outcome.per_run
            })
            .min()
            .expect("runs")
    });
    println!("egress hook, allowed IPv4 UDP packet: {best:?}");
    assert!(best < Duration::from_micros(2), "{best:?}");
    const { assert!(RANGES == 16, "the benchmark's rule fills the ranges") };
}

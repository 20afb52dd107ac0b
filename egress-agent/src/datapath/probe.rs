//! The kernel half on packets of a test's own (BPF_PROG_TEST_RUN), without a cgroup, a device or a packet that leaves.

use super::load::{Capacity, LoadError, Programs, Room};
use aya::{
    maps::{Array, HashMap, LpmTrie, MapData, MapError, PerCpuArray, lpm_trie::Key},
    programs::{CgroupSkb, ProgramError, SchedClassifier, TestRun as _, TestRunAttrs, TestRunOptions},
};
use bytemuck::Zeroable as _;
use egress_common::{
    bucket::{Limits, Meters},
    event::Counters,
    names::map,
    packet::FlowKey,
    permit::{NETWORK_SLOT_BITS, Network, NetworkKey, Permit, PermitKey, Rule},
    sandbox::{Identity, OnDevice, Sandbox, Station},
    verdict::{FlowState, ListenerKey, REASONS},
};
use std::time::Duration;

/// The slot that every program runs for.
pub const SLOT: u32 = 1;
/// Its nonce.
pub const NONCE: u64 = 0x6567_7265_7373_0001;

/// Which program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    /// cgroup_skb/egress.
    Egress,
    /// cgroup_skb/ingress.
    Ingress,
    /// tc, frames from the sandbox.
    DeviceEgress,
    /// tc, frames to the sandbox.
    DeviceIngress,
}

/// What came of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// The packet passed.
    pub passed: bool,
    /// Number of the reason under which a denial was counted; `None` where nothing was denied.
    pub denied: Option<u8>,
    /// Mean time of one run.
    pub per_run: Duration,
}

/// Errors of a probe.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Loading failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel half has no such program, or would not run it on this packet.
    #[error("cannot run the BPF program {0} on a packet of our own")]
    Run(&'static str, #[source] ProgramError),
    /// A map could not be read or written.
    #[error("cannot use a BPF map of the probe")]
    Map(#[from] MapError),
}

/// Programs loaded for [`SLOT`], and their maps.
pub struct Probe {
    programs: Programs,
    sandboxes: Array<MapData, Sandbox>,
    rules: Array<MapData, Rule>,
    permits: HashMap<MapData, PermitKey, Permit>,
    networks: LpmTrie<MapData, NetworkKey, Network>,
    own: HashMap<MapData, PermitKey, u32>,
    listeners: HashMap<MapData, ListenerKey, u64>,
    devices: HashMap<MapData, u32, OnDevice>,
    sources: HashMap<MapData, PermitKey, Station>,
    flows: HashMap<MapData, FlowKey, FlowState>,
    counters: PerCpuArray<MapData, Counters>,
    limits: Array<MapData, Limits>,
    meters: Array<MapData, Meters>,
}

impl Probe {
    /// Loads every program.
    pub fn load(capacity: Capacity) -> Result<Self, ProbeError> {
        let identity = Identity { slot: SLOT, depth: 0, nonce: NONCE };
        let mut programs = Programs::load(Room::shared(1, capacity), None, Some(identity))?;
        programs.load_device_programs(super::tc::Behind::Sandbox)?;
        Ok(Self {
            sandboxes: programs.map(map::SANDBOXES)?,
            rules: programs.map(map::RULES)?,
            permits: programs.map(map::PERMITS)?,
            networks: programs.map(map::NETWORKS)?,
            own: programs.map(map::OWN)?,
            listeners: programs.map(map::LISTENERS)?,
            devices: programs.map(map::DEVICES)?,
            sources: programs.map(map::SOURCES)?,
            flows: programs.map(map::FLOWS)?,
            counters: programs.map(map::COUNTERS)?,
            limits: programs.map(map::LIMITS)?,
            meters: programs.map(map::METERS)?,
            programs,
        })
    }

    /// Writes the sandbox of a slot, 0 or [`SLOT`]. The cgroup hooks run for that of [`SLOT`] if its nonce is [`NONCE`].
    pub fn set_sandbox(&mut self, slot: u32, sandbox: Sandbox) -> Result<(), ProbeError> {
        Ok(self.sandboxes.set(slot, &sandbox, 0)?)
    }

    /// Writes a rule.
    pub fn set_rule(&mut self, index: u32, rule: Rule) -> Result<(), ProbeError> {
        Ok(self.rules.set(index, &rule, 0)?)
    }

    /// Replaces all permits.
    pub fn set_permits(&mut self, permits: &[(PermitKey, Permit)]) -> Result<(), ProbeError> {
        let old: Vec<PermitKey> = self.permits.keys().collect::<Result<_, _>>()?;
        old.iter().try_for_each(|key| self.permits.remove(key))?;
        Ok(permits.iter().try_for_each(|(key, permit)| self.permits.insert(key, permit, 0))?)
    }

    /// Replaces all networks; each with the length of its prefix in bits of the 16-byte address.
    pub fn set_networks(&mut self, networks: &[(NetworkKey, u32, Network)]) -> Result<(), ProbeError> {
        let old: Vec<Key<NetworkKey>> = self.networks.keys().collect::<Result<_, _>>()?;
        old.iter().try_for_each(|key| self.networks.remove(key))?;
        Ok(networks.iter().try_for_each(|(key, prefix, network)| {
            self.networks.insert(&Key::new(NETWORK_SLOT_BITS + prefix, *key), network, 0)
        })?)
    }

    /// Replaces the sandbox's own addresses.
    pub fn set_own(&mut self, own: &[PermitKey]) -> Result<(), ProbeError> {
        Ok(replace(&mut self.own, own, 1)?)
    }

    /// Replaces the source addresses that the device may send from.
    pub fn set_sources(&mut self, sources: &[PermitKey]) -> Result<(), ProbeError> {
        Ok(replace(&mut self.sources, sources, 0)?)
    }

    /// Lists a port as that of some sandbox's DNS listener.
    pub fn add_listener(&mut self, key: ListenerKey) -> Result<(), ProbeError> {
        Ok(self.listeners.insert(&key, &NONCE, 0)?)
    }

    /// Makes a device a sandbox's, by an entry of the device table.
    pub fn set_device(&mut self, ifindex: u32, on: OnDevice) -> Result<(), ProbeError> {
        Ok(self.devices.insert(&ifindex, &on, 0)?)
    }

    /// Puts a flow on record.
    pub fn set_flow(&mut self, key: FlowKey, state: FlowState) -> Result<(), ProbeError> {
        Ok(self.flows.insert(&key, &state, 0)?)
    }

    /// A flow on record.
    pub fn flow(&self, key: &FlowKey) -> Result<FlowState, ProbeError> {
        Ok(self.flows.get(key, 0)?)
    }

    /// Writes the limits of [`SLOT`], and forgets what was metered.
    pub fn set_limits(&mut self, limits: Limits) -> Result<(), ProbeError> {
        self.meters.set(SLOT, &Meters::zeroed(), 0)?;
        Ok(self.limits.set(SLOT, &limits, 0)?)
    }

    /// What was metered.
    pub fn meters(&self) -> Result<Meters, ProbeError> {
        Ok(self.meters.get(&SLOT, 0)?)
    }

    /// Runs a program on an Ethernet frame, as if on the device of the caller's network namespace that has this `ifindex`.
    pub fn run(&self, hook: Hook, frame: &[u8], ifindex: u32, repeat: u32) -> Result<Outcome, ProbeError> {
        self.run_segmented(hook, frame, ifindex, repeat, (0, 0))
    }

    /// [`Probe::run`] on a GSO packet of so many segments of such a size.
    pub fn run_segmented(
        &self,
        hook: Hook,
        frame: &[u8],
        ifindex: u32,
        repeat: u32,
        (segments, size): (u32, u32),
    ) -> Result<Outcome, ProbeError> {
        let before = self.denied()?;
        // struct __sk_buff (linux/bpf.h): ifindex, gso_segs, gso_size.
        let mut context = [0_u8; 192];
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        context[164..168].copy_from_slice(&segments.to_ne_bytes());
        context[176..180].copy_from_slice(&size.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: None,
            ctx_in: Some(&context),
            ctx_out: None,
            repeat,
            attrs: TestRunAttrs::new(),
        };
        let (name, pass) = match hook {
            Hook::Egress => ("egress", 1),
            Hook::Ingress => ("ingress", 1),
            Hook::DeviceEgress => ("device_egress", u32::MAX),
            Hook::DeviceIngress => ("device_ingress", u32::MAX),
        };
        let program = self.programs.program(name).ok_or(LoadError::MissingMap { map: name })?;
        let result = match hook {
            Hook::Egress | Hook::Ingress => {
                <&CgroupSkb>::try_from(program).and_then(|program| program.test_run(options))
            }
            Hook::DeviceEgress | Hook::DeviceIngress => {
                <&SchedClassifier>::try_from(program).and_then(|program| program.test_run(options))
            }
        };
        let result = result.map_err(|source| ProbeError::Run(name, source))?;
        let after = self.denied()?;
        let denied = (0..REASONS).find(|&reason| after[reason] != before[reason]).map(|reason| reason as u8);
        Ok(Outcome { passed: result.return_value == pass, denied, per_run: result.duration })
    }

    fn denied(&self) -> Result<[u64; REASONS], MapError> {
        let mut sum = [0; REASONS];
        for counters in self.counters.get(&SLOT, 0)?.iter() {
            sum.iter_mut().zip(counters.denied).for_each(|(sum, count)| *sum += count);
        }
        Ok(sum)
    }
}

fn replace<V: aya::Pod>(
    set: &mut HashMap<MapData, PermitKey, V>,
    keys: &[PermitKey],
    value: V,
) -> Result<(), MapError> {
    let old: Vec<PermitKey> = set.keys().collect::<Result<_, _>>()?;
    old.iter().try_for_each(|key| set.remove(key))?;
    keys.iter().try_for_each(|key| set.insert(key, &value, 0))
}

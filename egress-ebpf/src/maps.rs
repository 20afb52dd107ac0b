//! The maps, and how the verdict looks things up in them. Sizes are defaults: the loader sets what a policy needs.

#![expect(
    deprecated,
    reason = "CGRP_STORAGE, the successor of CGROUP_STORAGE, follows the current task instead of the socket's cgroup and needs 6.2"
)]

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::SkStorage,
    helpers::generated::bpf_ktime_get_coarse_ns,
    macros::{btf_map, map},
    maps::{Array, CgroupStorage, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
};
use core::mem::MaybeUninit;
use egress_common::{
    addr::{Addr, Class},
    bucket::{Limits, Meters},
    event::{Client, ClientKey, Connected, Counters, Denial, DenialKey, Origin, PassedByRules},
    packet::FlowKey,
    permit::{
        Grant, Match, NETWORK_SLOT_BITS, NEVER_NS, Network, NetworkKey, Permit, PermitKey, Rule, RuleRef, match_rule_by,
    },
    question::{Asked, Question},
    sandbox::{Identity, OnDevice, Sandbox, Station},
    verdict::{
        FlowState, ListenerKey, Reason, Tables, Verdict, decide, judge_grant_by, judge_loopback, judge_network, route,
    },
};

#[map]
pub(crate) static IDENTITY: CgroupStorage<Identity> = CgroupStorage::new();
#[map]
pub(crate) static SANDBOXES: Array<Sandbox> = Array::with_max_entries(2, 0);
#[map]
pub(crate) static RULES: Array<Rule> = Array::with_max_entries(64, 0);
#[map]
pub(crate) static PERMITS: HashMap<PermitKey, Permit> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static NETWORKS: LpmTrie<NetworkKey, Network> = LpmTrie::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static OWN: HashMap<PermitKey, u32> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static LISTENERS: HashMap<ListenerKey, u64> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static DEVICES: HashMap<u32, OnDevice> = HashMap::with_max_entries(64, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static SOURCES: HashMap<PermitKey, Station> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
pub(crate) static FLOWS: LruHashMap<FlowKey, FlowState> = LruHashMap::with_max_entries(1024, 0);
#[map]
pub(crate) static CLIENTS: LruHashMap<ClientKey, Client> = LruHashMap::with_max_entries(256, 0);
#[map]
pub(crate) static DENIALS: LruHashMap<DenialKey, Denial> = LruHashMap::with_max_entries(1024, 0);
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(2, 0);
#[map]
pub(crate) static PASSED: PerCpuArray<PassedByRules> = PerCpuArray::with_max_entries(2, 0);
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);
#[btf_map]
pub(crate) static ORIGINS: SkStorage<Origin> = SkStorage::new();
#[map]
pub(crate) static LIMITS: Array<Limits> = Array::with_max_entries(2, 0);
#[map]
pub(crate) static METERS: Array<Meters> = Array::with_max_entries(2, 0);
#[btf_map]
pub(crate) static CONNECTED: SkStorage<Connected> = SkStorage::new();
#[btf_map]
pub(crate) static PACED: SkStorage<u64> = SkStorage::new();

/// Stands in for cgroup storage under BPF_PROG_TEST_RUN, where storage is zero. All zero in production, where the
/// verifier sees a frozen constant and drops the branch.
// SAFETY: the name is the loader's handle on this global, and no other item has it.
#[unsafe(no_mangle)]
static TEST_IDENTITY: Identity = Identity { slot: 0, depth: 0, nonce: 0 };

/// The sandbox that a hook runs for, with the slot at which it was found.
#[derive(Clone, Copy)]
pub(crate) struct Tenant {
    pub(crate) slot: u32,
    pub(crate) sandbox: &'static Sandbox,
}

/// The identity of the cgroup to which the running program is attached.
#[inline(always)]
pub(crate) fn identity() -> Identity {
    // SAFETY: the kernel gives the storage of the attached cgroup, or of nobody, but always memory of this size.
    let mut identity = unsafe { IDENTITY.get_ptr_mut().read() };
    if identity.slot == 0 {
        // SAFETY: a valid static; volatile, because the loader may have given it another value than the source shows.
        identity = unsafe { core::ptr::read_volatile(&raw const TEST_IDENTITY) };
    }
    identity
}

/// The sandbox of the cgroup to which the running program is attached; `None` = nobody, denied.
#[inline(always)]
pub(crate) fn tenant() -> Option<Tenant> {
    tenant_of(&identity())
}

/// The sandbox that an identity names, if its slot still belongs to it.
#[inline(always)]
pub(crate) fn tenant_of(identity: &Identity) -> Option<Tenant> {
    if identity.slot == 0 {
        return None;
    }
    let sandbox = SANDBOXES.get(identity.slot)?;
    if sandbox.nonce == 0 || sandbox.nonce != identity.nonce {
        return None;
    }
    Some(Tenant { slot: identity.slot, sandbox })
}

/// Coarse monotonic nanoseconds (5.11): a plain clock read costs more than the rest of the verdict.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: takes nothing and touches nothing.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// A key placed so that the addresses behind its first word lie on eight bytes, and each half is stored at once.
#[repr(C, align(8))]
pub(crate) struct Placed<K> {
    gap: MaybeUninit<u32>,
    pub(crate) key: K,
}

impl<K> Placed<K> {
    #[inline(always)]
    pub(crate) fn new(key: K) -> Self {
        Self { gap: MaybeUninit::uninit(), key }
    }
}

/// A key that begins with an address, or has it behind two words.
#[repr(C, align(8))]
pub(crate) struct Aligned<K>(pub(crate) K);

// The steps of a verdict as global BPF functions of plain numbers: the verifier checks each once, instead of once for
// every path that leads to each of its calls, and whoever calls one sees numbers that it cannot tell apart. All are 64
// bits wide: narrower ones are cut to size, by two instructions each, on both sides of a call.

/// The number that a caller widened: the compiler drops the cut and the widening that would follow.
#[inline(always)]
pub(crate) fn narrow(number: u64) -> u32 {
    // SAFETY: every call of the functions below passes a widened u32.
    unsafe { core::hint::assert_unchecked(number <= u32::MAX as u64) };
    number as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn covers_at(index: u64, start: u64, asked: u64) -> u64 {
    RULES.get(narrow(index)).is_some_and(|rule| rule.covers_at(start as usize, Asked(asked))).into()
}

/// [`egress_common::verdict::judge_grant`] and [`egress_common::permit::match_rule`] in one, because each call costs the
/// packet more than the code of this. Whoever asks a rule alone asks for a grant that lasts.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_grant_at(slot: u64, expires_ns: u64, index: u64, tag: u64, asked: u64) -> u64 {
    let (rule, asked) = (RuleRef { index: narrow(index), tag: narrow(tag) }, Asked(asked));
    // Nearly every rule is answered by the first look.
    let covers = |rule: &Rule, start| {
        if start == 0 { rule.covers_at(0, asked) } else { covers_at(index, start as u64, asked.0) != 0 }
    };
    judge_grant_by(Grant { expires_ns, rule }, now_ns, || {
        match_rule_by(RULES.get(rule.index), rule.tag, narrow(slot), asked, covers)
    })
    .0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn class_at(high: u64, low: u64) -> u64 {
    Addr::unpack(high, low).class() as u64
}

#[inline(always)]
fn key(slot: u64, high: u64, low: u64) -> PermitKey {
    PermitKey { slot: narrow(slot), addr: Addr::unpack(high, low) }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_network_at(slot: u64, high: u64, low: u64, asked: u64) -> u64 {
    judge_network(&key(slot, high, low), Asked(asked), &KernelTables).0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_loopback_at(slot: u64, high: u64, low: u64, asked: u64) -> u64 {
    let Some(sandbox) = SANDBOXES.get(narrow(slot)) else { return Verdict::from(Reason::NoSandbox).0 };
    judge_loopback(narrow(slot), sandbox, Addr::unpack(high, low), Asked(asked), &KernelTables).0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn route_at(high: u64, low: u64) -> u64 {
    route(Addr::unpack(high, low), &KernelTables)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn decide_at(slot: u64, high: u64, low: u64, asked: u64) -> u64 {
    let Some(sandbox) = SANDBOXES.get(narrow(slot)) else { return Verdict::from(Reason::NoSandbox).0 };
    decide(narrow(slot), sandbox, Question { dst: Addr::unpack(high, low), asked: Asked(asked) }, &KernelTables).0
}

/// Decides one destination for the tenant.
#[inline(always)]
pub(crate) fn judge(tenant: Tenant, question: Question) -> Verdict {
    let (high, low) = question.dst.pack();
    Verdict(decide_at(tenant.slot.into(), high, low, question.asked.0))
}

/// The maps as the verdict sees them.
pub(crate) struct KernelTables;

impl Tables for KernelTables {
    #[inline(always)]
    fn permit(&self, key: &PermitKey) -> Option<&Permit> {
        // SAFETY: the value may change under us; each grant is judged by its own rule's tag, so a torn read opens
        // nothing that some permit of this sandbox does not open.
        unsafe { PERMITS.get(&Placed::new(*key).key) }
    }

    #[inline(always)]
    fn network(&self, key: &PermitKey) -> Option<&Network> {
        NETWORKS.get(&Aligned(Key::new(NETWORK_SLOT_BITS + 128, NetworkKey { slot: key.slot, addr: key.addr })).0)
    }

    #[inline(always)]
    fn class(&self, addr: Addr) -> Class {
        let (high, low) = addr.pack();
        Class::from_number(class_at(high, low))
    }

    #[inline(always)]
    fn route(&self, addr: Addr) -> u64 {
        let (high, low) = addr.pack();
        route_at(high, low)
    }

    #[inline(always)]
    fn judge_loopback(&self, slot: u32, _: &Sandbox, dst: Addr, asked: Asked) -> Verdict {
        let (high, low) = dst.pack();
        Verdict(judge_loopback_at(slot.into(), high, low, asked.0))
    }

    #[inline(always)]
    fn judge_grant(&self, slot: u32, grant: Grant, asked: Asked) -> Verdict {
        Verdict(judge_grant_at(slot.into(), grant.expires_ns, grant.rule.index.into(), grant.rule.tag.into(), asked.0))
    }

    #[inline(always)]
    fn judge_network(&self, key: &PermitKey, asked: Asked) -> Verdict {
        let (high, low) = key.addr.pack();
        Verdict(judge_network_at(key.slot.into(), high, low, asked.0))
    }

    #[inline(always)]
    fn matches(&self, rule: RuleRef, slot: u32, asked: Asked) -> Match {
        let verdict = self.judge_grant(slot, Grant { expires_ns: NEVER_NS, rule }, asked);
        if verdict.is(Reason::Permitted) {
            Match::Hit
        } else if verdict.is(Reason::PortNotPermitted) {
            Match::OtherPort
        } else {
            Match::Missing
        }
    }

    #[inline(always)]
    fn is_own(&self, key: &PermitKey) -> bool {
        OWN.get_ptr(&Placed::new(*key).key).is_some()
    }

    #[inline(always)]
    fn listener(&self, key: &ListenerKey) -> Option<u64> {
        // SAFETY: a single word, read once.
        unsafe { LISTENERS.get(key) }.copied()
    }

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        now_ns()
    }
}

//! What the kernel half reports, and how it keeps a flood of denials from becoming a flood of events.

use crate::{addr::Addr, verdict::REASONS};
use bytemuck::{Pod, Zeroable};

/// The hook that decided. The numbers are stable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Hook {
    /// cgroup/connect4
    Connect4 = 0,
    /// cgroup/connect6
    Connect6 = 1,
    /// cgroup/sendmsg4
    Sendmsg4 = 2,
    /// cgroup/sendmsg6
    Sendmsg6 = 3,
    /// cgroup/bind4
    Bind4 = 4,
    /// cgroup/bind6
    Bind6 = 5,
    /// cgroup/sock_create
    SockCreate = 6,
    /// cgroup_skb/egress
    Egress = 7,
    /// cgroup_skb/ingress
    Ingress = 8,
    /// tc on the host side of the sandbox's device, packets from the sandbox
    Device = 9,
    /// The same, packets to a guest
    DeviceIngress = 10,
    /// lsm_cgroup/socket_create
    SocketCreate = 11,
    /// lsm_cgroup/socket_connect
    SocketConnect = 12,
    /// lsm_cgroup/socket_sendmsg
    SocketSendmsg = 13,
    /// lsm_cgroup/socket_recvmsg
    SocketRecvmsg = 14,
    /// lsm_cgroup/file_receive
    FileReceive = 15,
    /// lsm_cgroup/file_permission
    FilePermission = 16,
    /// lsm_cgroup/socket_setsockopt
    SocketSetsockopt = 17,
    /// lsm_cgroup/socket_getsockopt
    SocketGetsockopt = 18,
}

/// One event in the ring buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Record {
    /// Coarse monotonic clock.
    pub time_ns: u64,
    /// Nonce of the sandbox.
    pub nonce: u64,
    /// Destination address as written (source for [`Hook::Ingress`]).
    pub addr: Addr,
    /// Name of the calling thread; zero where the hook has no caller.
    pub comm: [u8; 16],
    /// Tag of the rule that decided; 0 = none.
    pub rule_tag: u32,
    /// Process of the caller; 0 = unknown.
    pub pid: u32,
    /// User of the caller; `u32::MAX` = unknown.
    pub uid: u32,
    /// How many like this one, this one included, since the last report.
    pub count: u32,
    /// Events of this sandbox that were not reported since the last report.
    pub lost: u32,
    /// Destination port, host order.
    pub dst_port: u16,
    /// Source port, host order; 0 = unknown.
    pub src_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`Hook`] as a number.
    pub hook: u8,
    /// [`crate::verdict::Reason`] as a number.
    pub reason: u8,
    /// 1 where the sandbox only observes: it would have been denied, and passed.
    pub observed: u8,
    /// Zero.
    pub reserved: u32,
}

/// Folds denials: one report per key and [`FOLD_NS`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct DenialKey {
    /// Destination address.
    pub addr: Addr,
    /// Slot of the sandbox.
    pub slot: u32,
    /// Destination port, host order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`crate::verdict::Reason`] as a number.
    pub reason: u8,
}

/// Value behind a [`DenialKey`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Denial {
    /// When it was last reported.
    pub reported_ns: u64,
    /// How often since.
    pub count: u64,
}

/// A denial of the same destination is reported once in this time, with a count.
pub const FOLD_NS: u64 = 1_000_000_000;
/// Events of one sandbox in one second; the rest is counted as lost.
pub const EVENTS_PER_SECOND: u64 = 200;

/// Key of the table of DNS clients: who is behind a source port of a sandbox.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct ClientKey {
    /// Slot of the sandbox.
    pub slot: u32,
    /// Source port, host order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u16,
}

/// The caller behind a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Client {
    /// Process.
    pub pid: u32,
    /// User.
    pub uid: u32,
    /// Name of the thread.
    pub comm: [u8; 16],
}

/// Socket storage of a redirected socket: the server that the application asked for, to show it as the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Origin {
    /// The server's address as the application wrote it.
    pub addr: Addr,
    /// Its port, in network order, as the kernel wants it back.
    pub port_be: u32,
    /// Who asked.
    pub client: Client,
}

/// Socket storage of a connected socket: the rule that allowed it, for as long as the socket stays what it was. A socket
/// never changes its network namespace, so that is no part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Connected {
    /// Nonce of the sandbox.
    pub nonce: u64,
    /// Destination as written, which is how the socket holds it.
    pub addr: Addr,
    /// The rule.
    pub rule: crate::permit::RuleRef,
    /// Destination port, host order.
    pub port: u32,
    /// IP protocol number.
    pub protocol: u32,
}

/// What passed the egress hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Passed {
    /// Packets, before a device cuts them into segments.
    pub packets: u64,
    /// Their bytes, IP header included.
    pub bytes: u64,
}

/// Rules that one entry of the per-CPU array of [`Passed`] counts for: a CPU's part of an entry is an allocation of its own.
pub const RULES_AT_ONCE: usize = 32;

/// What rules let pass on one CPU. Written by the kernel half alone, and never reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct PassedByRules {
    /// By the rule's index, less the entry's times [`RULES_AT_ONCE`].
    pub rules: [Passed; RULES_AT_ONCE],
}

/// Counters of one sandbox on one CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Counters {
    /// What passed by no rule: to the sandbox's DNS listener, replies to peers.
    pub passed: Passed,
    /// Denials by reason number.
    pub denied: [u64; REASONS],
    /// Second in which `window_events` were reported.
    pub window_s: u64,
    /// Events reported in that second.
    pub window_events: u64,
    /// Events that were not reported since the last that was.
    pub lost: u64,
}

crate::abi!(
    Record = 80,
    DenialKey = 24,
    Denial = 16,
    ClientKey = 8,
    Client = 24,
    Origin = 44,
    Connected = 40,
    Passed = 16,
    PassedByRules = 512,
    Counters = 552
);

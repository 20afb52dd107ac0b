//! The same decisions on the host: the shared functions over plain collections.

use super::policies::{World, foreign_listener, octets};
use egress_agent::datapath::probe::SLOT;
use egress_common::{
    addr::Addr,
    neighbour::{self, ETHERNET_LEN},
    packet::{Flow, ethertype, is_icmp_error, parse},
    permit::{Match, Network, Permit, PermitKey, RuleRef, match_rule},
    question::{Asked, Path, Question},
    verdict::{ListenerKey, Reason, Tables, Verdict, decide},
};
use nix::time::{ClockId, clock_gettime};

/// A world, and the moment at which it is asked.
pub struct Host<'a> {
    world: &'a World,
    now_ns: u64,
}

impl<'a> Host<'a> {
    pub fn new(world: &'a World) -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).expect("the clock of the kernel half");
        Self { world, now_ns: now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64 }
    }

    /// The moment, as the kernel half reads it.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// The egress hook's verdict on a frame, whose network header it sees.
    pub fn judge_packet(&self, frame: &[u8], on_loopback: bool) -> Reason {
        let path = if on_loopback { Path::Loopback } else { Path::Wire };
        match parse(&&frame[14..], 0, ethertype(frame)) {
            Ok(flow) => self.decide(flow.dst, Asked::of(&flow, path)),
            Err(reason) => reason,
        }
    }

    /// The device hook's verdict on a frame.
    pub fn judge_frame(&self, frame: &[u8]) -> Reason {
        let len = frame.len() as u32;
        if ethertype(frame) == ethertype::ARP {
            return match neighbour::arp(&frame, len) {
                Ok(sender) if sender == Addr::v4(0) || self.is_source(sender) => Reason::Neighbour,
                Ok(_) => Reason::Source,
                Err(reason) => reason,
            };
        }
        let flow = match parse(&frame, ETHERNET_LEN, ethertype(frame)) {
            Ok(flow) => flow,
            Err(reason) => return reason,
        };
        if neighbour::is_discovery(&flow) {
            return match neighbour::discovery(&frame, &flow, len) {
                Ok(own) if own.is_none_or(|own| self.is_source(own)) => Reason::Neighbour,
                Ok(_) => Reason::Source,
                Err(reason) => reason,
            };
        }
        if !self.is_source(flow.src) {
            return Reason::Source;
        }
        if is_icmp_error(&flow) {
            return if self.quotes_permitted(frame, &flow) { Reason::Permitted } else { Reason::Icmp };
        }
        self.decide(flow.dst, Asked::of(&flow, Path::Wire))
    }

    fn quotes_permitted(&self, frame: &[u8], flow: &Flow) -> bool {
        let header = if flow.src.is_v4() { 20 } else { 40 };
        let Ok(inner) = parse(&frame, ETHERNET_LEN + header + 8, ethertype(frame)) else { return false };
        let asked = Asked::of(&inner, Path::Wire).to_port(inner.src_port);
        inner.src == flow.dst && !inner.tail && self.is_source(inner.dst) && self.decide(inner.src, asked).allows()
    }

    fn decide(&self, dst: Addr, asked: Asked) -> Reason {
        reason(decide(SLOT, &self.world.sandbox, Question { dst, asked }, self))
    }

    fn is_source(&self, addr: Addr) -> bool {
        self.world.sources.contains(&PermitKey { slot: SLOT, addr })
    }
}

fn ethertype(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[12], frame[13]])
}

fn reason(verdict: Verdict) -> Reason {
    const ALL: [Reason; 15] = [
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
        Reason::ExpiredElsewhere,
        Reason::DnsBypass,
        Reason::ForeignListener,
        Reason::LoopbackClosed,
        Reason::Icmp,
    ];
    ALL.into_iter().find(|&reason| verdict.is(reason)).expect("a reason that a verdict can have")
}

impl Tables for Host<'_> {
    fn permit(&self, key: &PermitKey) -> Option<&Permit> {
        self.world.permits.get(key)
    }

    fn network(&self, key: &PermitKey) -> Option<&Network> {
        let bits = |addr: Addr| u128::from_be_bytes(octets(addr));
        let covers =
            |network: Addr, prefix: u32| prefix == 0 || (bits(network) ^ bits(key.addr)) >> (128 - prefix) == 0;
        let mut found: Vec<_> = self.world.networks.iter().collect();
        found.retain(|(network, prefix, _)| network.slot == key.slot && covers(network.addr, *prefix));
        found.into_iter().max_by_key(|(_, prefix, _)| *prefix).map(|(_, _, network)| network)
    }

    fn matches(&self, rule: RuleRef, slot: u32, asked: Asked) -> Match {
        match_rule(self.world.rules.get(rule.index as usize), rule.tag, slot, asked)
    }

    fn is_own(&self, key: &PermitKey) -> bool {
        self.world.own.contains(key)
    }

    fn listener(&self, key: &ListenerKey) -> Option<u64> {
        (*key == foreign_listener()).then_some(1)
    }

    fn now_ns(&self) -> u64 {
        self.now_ns
    }
}

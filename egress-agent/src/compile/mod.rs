//! stub until the real one lands
use crate::policy::{Local, Mode, Policy, Ports, Icmp};
use egress_common::{addr::Addr, destination::PortRange, permit::*, sandbox::{Sandbox, flags}};
use std::{collections::{BTreeMap, BTreeSet}, net::IpAddr};
#[derive(Clone, Debug, Default)] pub struct Facts { pub own_netns: bool, pub netns_cookie: u64, pub own_addresses: BTreeSet<IpAddr>, pub protected: BTreeSet<IpAddr>, pub listener_port: u16 }
#[derive(Clone, Copy, Debug)] pub struct Limits { pub rules: u32, pub networks: u32, pub permits: u32 }
impl Default for Limits { fn default() -> Self { Self { rules: 1024, networks: 4096, permits: 8192 } } }
#[derive(Clone, Debug, Default)] pub struct RuleIds { next: u32 }
impl RuleIds { pub fn new() -> Self { Self { next: 0 } } fn get(&mut self) -> RuleRef { self.next += 1; RuleRef { index: self.next, tag: self.next } } }
#[derive(Debug, thiserror::Error)] #[error("stub")] pub struct CompileError;
#[derive(Clone, Debug)] pub struct Image { pub flags: u32, pub loopback: RuleRef, pub own_rule: RuleRef, pub facts: Facts, pub rules: BTreeMap<RuleRef, (Rule, String)>, pub networks: BTreeMap<(Addr, u32), Network>, pub permits: BTreeMap<Addr, Permit>, pub own: BTreeSet<Addr>, pub name_rules: Vec<RuleRef> }
impl Image { pub fn sandbox(&self, nonce: u64) -> Sandbox { Sandbox { nonce, netns_cookie: self.facts.netns_cookie, flags: self.flags, listener_port: self.facts.listener_port.into(), loopback: self.loopback, own: self.own_rule, veil: 0 } }
 pub fn text_of(&self, tag: u32) -> Option<&str> { self.rules.iter().find(|(r, _)| r.tag == tag).map(|(_, (_, t))| t.as_str()) }
 pub fn deny_for(&self, _a: Addr) -> RuleRef { RuleRef::NONE } }
fn rule(slot: u32, r: RuleRef, f: u32, p: &[PortRange]) -> Rule { let mut ranges = [PortRange{first:0,last:0,protocols:egress_common::destination::Protocols::NONE}; RANGES]; ranges[..p.len()].copy_from_slice(p); Rule { tag: r.tag, slot, flags: f, len: p.len() as u32, ranges } }
pub fn compile(p: &Policy, facts: &Facts, slot: u32, ids: &mut RuleIds, _l: Limits) -> Result<Image, CompileError> {
 let mut i = Image { flags: 0, loopback: RuleRef::NONE, own_rule: RuleRef::NONE, facts: facts.clone(), rules: BTreeMap::new(), networks: BTreeMap::new(), permits: BTreeMap::new(), own: facts.own_addresses.iter().map(|a| Addr::from(*a).routed()).collect(), name_rules: vec![] };
 if p.mode == Mode::Observe { i.flags |= flags::OBSERVE } if facts.own_netns { i.flags |= flags::OWN_NETNS } if p.allow.icmp == Icmp::Echo { i.flags |= flags::ICMP_ECHO }
 let mut local = |l: &Local, ids: &mut RuleIds, i: &mut Image, t: &str| -> RuleRef { match l { Local::Closed => RuleRef::NONE, Local::Open => { let r = ids.get(); i.rules.insert(r, (rule(slot, r, rule_flags::STATIC, &[PortRange::ALL]), t.into())); r } Local::Ports(v) => { let r = ids.get(); let ps: Vec<_> = v.iter().map(|p| PortRange{first:*p,last:*p,protocols:egress_common::destination::Protocols::ANY}).collect(); i.rules.insert(r, (rule(slot, r, rule_flags::STATIC, &ps), t.into())); i.flags |= flags::LOOPBACK_PORTS; r } } };
 i.loopback = local(&p.allow.loopback, ids, &mut i.clone(), ""); let lb = i.loopback; if !lb.is_none() { i.rules.insert(lb, (rule(slot, lb, rule_flags::STATIC, &[PortRange::ALL]), "loopback".into())); }
 let own = p.allow.own.clone().unwrap_or(if facts.own_netns { Local::Open } else { Local::Closed });
 if own == Local::Open { let r = ids.get(); i.own_rule = r; i.rules.insert(r, (rule(slot, r, rule_flags::STATIC, &[PortRange::ALL]), "self".into())); }
 for a in p.allow.proxy.iter().chain(&p.allow.gateway).chain(&p.allow.addresses) { let r = ids.get(); i.rules.insert(r, (rule(slot, r, rule_flags::STATIC, a.ports.ranges()), a.text.clone()));
  let base = if a.net.addr().is_ipv4() { 96 } else { 0 }; let e = i.networks.entry((Addr::from(a.net.network()), base + u32::from(a.net.prefix_len()))).or_default(); e.allow = r; }
 for a in &p.deny.addresses { let r = ids.get(); i.rules.insert(r, (rule(slot, r, rule_flags::STATIC|rule_flags::DENY, a.ports.ranges()), a.text.clone()));
  let base = if a.net.addr().is_ipv4() { 96 } else { 0 }; let e = i.networks.entry((Addr::from(a.net.network()), base + u32::from(a.net.prefix_len()))).or_default(); e.deny = r; }
 for n in &p.allow.names { let r = ids.get(); i.rules.insert(r, (rule(slot, r, 0, n.ports.ranges()), n.text.clone())); i.name_rules.push(r); }
 let _ = Ports::all(); Ok(i) }

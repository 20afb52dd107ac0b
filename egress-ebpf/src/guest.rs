//! TC on the host side of a guest's device: no cgroup stands behind it, so what these programs say is all that is said. And
//! the way of its DNS: what it asks of port 53, of whatever server, is handed to the device that leads to the sandbox's own
//! resolver, and the answers, which bear that server's address, are handed back.

use crate::{
    context::{Packet, Room},
    device::{DROP, NEXT, conclude, device_tenant, judge_frame, keeps_to_rate},
    flows,
    maps::{Placed, SOURCES, Tenant, narrow},
    packet::admit,
    report::{self, Subject},
};
use aya_ebpf::{macros::classifier, programs::TcContext};
use egress_common::{
    addr::Addr,
    destination::DNS_PORT,
    event::Hook,
    neighbour::ETHERNET_LEN,
    packet::{Bytes as _, protocol},
    permit::PermitKey,
    sandbox::{RESOLVER_MAC, Station, flags},
    verdict::Reason,
};

/// Frames from the guest.
#[classifier]
pub(crate) fn guest_egress(ctx: TcContext) -> i32 {
    let packet = Packet::from(&ctx);
    let Some((tenant, on)) = device_tenant(packet) else { return DROP };
    let mut room = Room::new();
    let headers = room.clear();
    let verdict = judge_frame(tenant, &on, packet, headers);
    // Its source is the guest's own: that was asked first.
    if verdict.is(Reason::DnsBypass) && on.resolver != 0 {
        let Some(mac) = sender(packet) else { return DROP };
        set_station(tenant, headers.flow.src, mac);
        return packet.hand_over(on.resolver, as_station(RESOLVER_MAC)).unwrap_or(DROP);
    }
    let done = conclude(tenant, packet, headers, verdict);
    if verdict.allows() && done == NEXT {
        report::passed(tenant.slot, verdict.rule(), packet.len().wrapping_sub(ETHERNET_LEN));
    }
    done
}

/// Frames to the guest.
#[classifier]
pub(crate) fn guest_ingress(ctx: TcContext) -> i32 {
    let packet = Packet::from(&ctx);
    let Some((tenant, _)) = device_tenant(packet) else { return DROP };
    let mut room = Room::new();
    let headers = room.clear();
    // What comes in cannot leak anything out.
    if !packet.read(ETHERNET_LEN, headers).allows() {
        return NEXT;
    }
    let flow = &headers.flow;
    if tenant.sandbox.flags & flags::INBOUND == 0 {
        flows::hear(tenant, flow);
    }
    let verdict = admit(tenant, headers);
    if !verdict.allows() {
        let subject = Subject {
            hook: Hook::DeviceIngress,
            addr: flow.src,
            dst_port: flow.dst_port,
            src_port: flow.src_port,
            protocol: flow.protocol,
        };
        return if report::denied_packet(tenant, verdict, &subject) { NEXT } else { DROP };
    }
    if keeps_to_rate(tenant, packet, headers) { NEXT } else { DROP }
}

/// Frames from the resolver: answers to the guest, and nothing else.
#[classifier]
pub(crate) fn guest_answers(ctx: TcContext) -> i32 {
    let packet = Packet::from(&ctx);
    let Some((tenant, on)) = device_tenant(packet) else { return DROP };
    let mut room = Room::new();
    let headers = room.clear();
    if !packet.read(ETHERNET_LEN, headers).allows() {
        return DROP;
    }
    let flow = &headers.flow;
    if flow.src_port != DNS_PORT || !matches!(flow.protocol, protocol::TCP | protocol::UDP) {
        return DROP;
    }
    match station(tenant.slot.into(), flow.dst) {
        0 => DROP,
        mac => packet.hand_over(on.resolver, mac).unwrap_or(DROP),
    }
}

/// The MAC address that the frame is from.
#[inline(always)]
fn sender(packet: Packet) -> Option<Station> {
    let [first, rest] = packet.words::<2>(6)?;
    Some(u64::from(first) | u64::from(rest & 0xffff) << 32)
}

const fn as_station(mac: [u8; 6]) -> Station {
    let [a, b, c, d, e, f] = mac;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

#[inline(always)]
fn set_station(tenant: Tenant, addr: Addr, mac: Station) {
    let key = PermitKey { slot: tenant.slot, addr };
    if let Some(station) = SOURCES.get_ptr_mut(&Placed::new(key).key) {
        // SAFETY: a map value, one word.
        unsafe { station.write_volatile(mac) };
    }
}

/// Where a source address was last heard; 0 for one that is not the guest's, or was not heard yet.
#[inline(always)]
fn station(slot: u64, addr: Addr) -> Station {
    let key = PermitKey { slot: narrow(slot), addr };
    // SAFETY: a map value, one word.
    SOURCES.get_ptr(&Placed::new(key).key).map_or(0, |station| unsafe { station.read_volatile() })
}

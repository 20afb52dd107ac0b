//! Random frames: every header form that must pass or be refused, cut anywhere, with flipped bytes.

use super::policies::{PORTS, address};
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP version of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

/// What stands between the network header and the transport header, or how the network header is odd.
#[derive(Clone, Debug)]
pub enum Form {
    Plain,
    /// IPv4 options, or an IPv6 header of this number.
    Extra(u8),
    /// The jumbogram header, which the kernel puts there itself.
    Jumbo,
    /// Offset in units of eight bytes.
    Fragment(u16),
    /// Another version and length in the first byte.
    FirstByte(u8),
}

/// A frame to judge.
#[derive(Clone, Debug)]
pub struct Frame {
    pub on_loopback: bool,
    family: Family,
    ethertype: Option<u16>,
    src: IpAddr,
    dst: IpAddr,
    form: Form,
    hop_limit: u8,
    protocol: u8,
    /// Transport header and payload.
    body: Vec<u8>,
    /// A byte to change, and by what.
    flip: Option<(usize, u8)>,
    /// Length to cut it to.
    cut: Option<usize>,
    /// An ARP message, and the length of its frame, in place of a packet.
    arp: Option<(Vec<u8>, usize)>,
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

impl Frame {
    /// A plain UDP packet.
    pub fn datagram(family: Family, dst: &str, port: u16) -> Self {
        let src = match family {
            Family::V4 => IpAddr::from(Ipv4Addr::new(192, 0, 2, 1)),
            Family::V6 => IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        };
        let mut body = ports(40000, port);
        body.resize(40, 0);
        Self {
            on_loopback: false,
            family,
            ethertype: None,
            src,
            dst: dst.parse().expect("an address"),
            form: Form::Plain,
            hop_limit: 64,
            protocol: UDP,
            body,
            flip: None,
            cut: None,
            arp: None,
        }
    }

    /// As it lies on the wire, checksums aside: nobody looks at them.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 2];
        bytes.extend(MAC);
        let usual = match (&self.arp, self.family) {
            (Some(_), _) => 0x0806,
            (None, Family::V4) => 0x0800_u16,
            (None, Family::V6) => 0x86dd,
        };
        bytes.extend(self.ethertype.unwrap_or(usual).to_be_bytes());
        if let Some((message, len)) = &self.arp {
            bytes.extend(message);
            bytes.resize(*len, 0);
        } else {
            bytes.extend(self.packet());
        }
        // The kernel asks for an Ethernet header at least.
        bytes.truncate(self.cut.map_or(bytes.len(), |cut| cut.max(15)));
        if let Some((at, change)) = self.flip {
            let at = at % bytes.len();
            bytes[at] ^= change;
        }
        bytes
    }

    fn packet(&self) -> Vec<u8> {
        match self.family {
            Family::V4 => self.packet_v4(),
            Family::V6 => self.packet_v6(),
        }
    }

    fn packet_v4(&self) -> Vec<u8> {
        let options = matches!(self.form, Form::Extra(_));
        let first = match self.form {
            Form::FirstByte(byte) => byte,
            _ if options => 0x46,
            _ => 0x45,
        };
        let fragment = if let Form::Fragment(offset) = self.form { offset & 0x1fff } else { 0 };
        let mut packet = vec![first, 0];
        packet.extend((20 + self.body.len() as u16).to_be_bytes());
        packet.extend([0, 1]);
        packet.extend(fragment.to_be_bytes());
        packet.extend([self.hop_limit, self.protocol, 0, 0]);
        packet.extend(v4(self.src).octets());
        packet.extend(v4(self.dst).octets());
        if options {
            packet.extend([131, 3, 4, 0]);
        }
        packet.extend(&self.body);
        packet
    }

    fn packet_v6(&self) -> Vec<u8> {
        let mut header = Vec::new();
        let mut next = self.protocol;
        match self.form {
            Form::Extra(number) => {
                header.extend([self.protocol, 0, 0, 0, 0, 0, 0, 0]);
                next = number;
            }
            Form::Jumbo => {
                header.extend([self.protocol, 0, 0xc2, 4, 0, 1, 0, 0]);
                next = 0;
            }
            Form::Fragment(offset) => {
                header.extend([self.protocol, 0]);
                header.extend((offset << 3).to_be_bytes());
                header.extend([0, 0, 0, 1]);
                next = 44;
            }
            Form::Plain | Form::FirstByte(_) => {}
        }
        let first = if let Form::FirstByte(byte) = self.form { byte } else { 0x60 };
        let len = if let Form::Jumbo = self.form { 0 } else { header.len() + self.body.len() };
        let mut packet = vec![first, 0, 0, 0];
        packet.extend((len as u16).to_be_bytes());
        packet.extend([next, self.hop_limit]);
        packet.extend(v6(self.src).octets());
        packet.extend(v6(self.dst).octets());
        packet.extend(header);
        packet.extend(&self.body);
        packet
    }
}

/// An IPv6 address has no place in an IPv4 header: its last four bytes stand in.
fn v4(ip: IpAddr) -> Ipv4Addr {
    match ip {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => {
            let [.., a, b, c, d] = v6.octets();
            Ipv4Addr::new(a, b, c, d)
        }
    }
}

fn v6(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn ports(src: u16, dst: u16) -> Vec<u8> {
    [src.to_be_bytes(), dst.to_be_bytes()].concat()
}

fn body(protocol: u8) -> BoxedStrategy<Vec<u8>> {
    let rest = vec(any::<u8>(), 4..60);
    match protocol {
        TCP | UDP => (select(&PORTS), select(&PORTS), vec(any::<u8>(), 16..40))
            .prop_map(|(src, dst, rest)| [ports(src, dst), rest].concat())
            .boxed(),
        _ => (select(&[0_u8, 1, 2, 3, 4, 8, 11, 12, 128, 129, 133, 134, 135, 136, 137][..]), rest)
            .prop_map(|(kind, rest)| [std::vec![kind, 0, 0, 0], rest].concat())
            .boxed(),
    }
}

fn form() -> impl Strategy<Value = Form> {
    prop_oneof![
        16 => Just(Form::Plain),
        2 => select(&[0_u8, 43, 50, 51, 60, 135, 139][..]).prop_map(Form::Extra),
        1 => Just(Form::Jumbo),
        3 => select(&[0_u16, 1, 2, 185, 8191][..]).prop_map(Form::Fragment),
        1 => any::<u8>().prop_map(Form::FirstByte),
    ]
}

fn ip() -> impl Strategy<Value = Frame> {
    let protocol = prop_oneof![8 => Just(TCP), 8 => Just(UDP), 3 => Just(1_u8), 3 => Just(58_u8), 1 => any::<u8>()];
    let ethertype = prop_oneof![30 => Just(None), 1 => any::<u16>().prop_map(Some)];
    let flip = option::weighted(0.1, (0_usize..100, 1_u8..));
    let parts = (any::<bool>(), any::<bool>(), ethertype, address(), address(), form(), protocol, flip);
    let cut = option::weighted(0.1, 14_usize..90);
    (parts, select(&[64_u8, 255][..]), cut).prop_flat_map(
        |((on_loopback, mapped, ethertype, src, dst, form, protocol, flip), hop_limit, cut)| {
            // An IPv4 address is mostly written in an IPv4 header, and sometimes as a mapped one.
            let family = if dst.is_ipv4() && (src.is_ipv4() || !mapped) { Family::V4 } else { Family::V6 };
            body(protocol).prop_map(move |body| Frame {
                on_loopback,
                family,
                ethertype,
                src,
                dst,
                form: form.clone(),
                hop_limit,
                protocol,
                body,
                flip,
                cut,
                arp: None,
            })
        },
    )
}

/// A neighbour discovery message in form, or one byte off.
fn discovery() -> impl Strategy<Value = Frame> {
    let link = [[2_u8, 1].as_slice(), &MAC].concat();
    let option = option::of(Just(link));
    let flip = option::weighted(0.5, (0_usize..90, 1_u8..));
    let dst = select(&["ff02::1", "ff02::2", "fe80::1", "2001:db8::2", "2001:db8:1::1"][..]);
    let src = select(&["2001:db8::1", "::", "fe80::1"][..]);
    (select(&[133_u8, 135, 136, 134, 137][..]), src, dst, option, flip).prop_map(|(kind, src, dst, option, flip)| {
        let src: Ipv6Addr = src.parse().expect("an address");
        let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        if kind != 133 {
            body.extend(src.octets());
        }
        if let Some(mut option) = option {
            option[0] = if kind == 136 { 2 } else { 1 };
            body.extend(option);
        }
        Frame { body, hop_limit: 255, protocol: 58, src: src.into(), flip, ..Frame::datagram(Family::V6, dst, 0) }
    })
}

/// ARP in form, of both lengths that Ethernet gives it and of another, or one byte off.
fn arp() -> impl Strategy<Value = Frame> {
    let sender = select(&[[192_u8, 0, 2, 1], [0, 0, 0, 0], [203, 0, 113, 9]][..]);
    let len = prop_oneof![4 => Just(42_usize), 4 => Just(60), 1 => 15_usize..70];
    let flip = option::weighted(0.5, (0_usize..60, 1_u8..));
    (1_u8..4, sender, len, flip).prop_map(|(operation, sender, len, flip)| {
        let mut message = vec![0, 1, 8, 0, 6, 4, 0, operation];
        message.extend(MAC);
        message.extend(sender);
        message.extend([0, 0, 0, 0, 0, 0, 192, 0, 2, 2]);
        Frame { arp: Some((message, len)), flip, ..Frame::datagram(Family::V4, "192.0.2.2", 0) }
    })
}

/// An ICMP error that quotes a packet of the other side.
fn error() -> impl Strategy<Value = Frame> {
    (ip(), select(&[1_u8, 3, 11][..])).prop_map(|(mut inner, kind)| {
        inner.form = Form::Plain;
        let outer = Frame { src: inner.dst, dst: inner.src, flip: None, cut: None, ethertype: None, ..inner.clone() };
        let protocol = if outer.family == Family::V4 { 1 } else { 58 };
        let body = [vec![kind, 0, 0, 0, 0, 0, 0, 0], inner.packet()].concat();
        Frame { protocol, body, form: Form::Plain, ..outer }
    })
}

/// Any of them.
pub fn strategy() -> impl Strategy<Value = Frame> {
    prop_oneof![20 => ip(), 3 => discovery(), 2 => error(), 2 => arp()]
}

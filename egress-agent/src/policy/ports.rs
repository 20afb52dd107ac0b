//! Sets of ports in one canonical form, so that equal sets are equal values.

use egress_common::{
    destination::{PortRange, Protocols, is_name_service},
    permit::RANGES,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a rule speaks of at its addresses: at least one range, sorted, merged, at most [`RANGES`] of them.
///
/// A range that is one name-service port (137, 853, 5353, 5355) stays a range of its own, because only such a range opens
/// that port ([`PortRange::opens`]).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "Vec<(u16, u16, u32)>", try_from = "Vec<(u16, u16, u32)>")]
pub struct Ports(Vec<PortRange>);

impl From<Ports> for Vec<(u16, u16, u32)> {
    fn from(ports: Ports) -> Self {
        ports.0.iter().map(|range| (range.first, range.last, range.protocols.0)).collect()
    }
}

impl TryFrom<Vec<(u16, u16, u32)>> for Ports {
    type Error = TooManyRanges;

    fn try_from(ranges: Vec<(u16, u16, u32)>) -> Result<Self, TooManyRanges> {
        Self::union(ranges.into_iter().map(|(first, last, protocols)| PortRange {
            first,
            last,
            protocols: Protocols(protocols),
        }))
    }
}

/// More ranges than one rule holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} separate port ranges, and a rule holds {RANGES}: write ranges instead of single ports, or *")]
pub struct TooManyRanges(pub usize);

impl Ports {
    /// Every port of both protocols: what an address without ports means.
    pub fn all() -> Self {
        Self(vec![PortRange::ALL])
    }

    /// TCP 80 and 443, UDP 443: what a name without ports means.
    pub fn web() -> Self {
        Self(vec![
            PortRange { first: 80, last: 80, protocols: Protocols::TCP },
            PortRange { first: 443, last: 443, protocols: Protocols::ANY },
        ])
    }

    /// The given ports for both protocols; `None` for an empty list.
    pub fn of(ports: &[u16]) -> Result<Option<Self>, TooManyRanges> {
        if ports.is_empty() {
            return Ok(None);
        }
        Self::union(ports.iter().map(|&port| PortRange { first: port, last: port, protocols: Protocols::ANY }))
            .map(Some)
    }

    /// The union of the ranges, normalised. `ranges` must not be empty.
    pub fn union(ranges: impl IntoIterator<Item = PortRange>) -> Result<Self, TooManyRanges> {
        let ranges = normalised(ranges);
        if ranges.len() > RANGES { Err(TooManyRanges(ranges.len())) } else { Ok(Self(ranges)) }
    }

    /// Sorted, disjoint for each protocol.
    pub fn ranges(&self) -> &[PortRange] {
        &self.0
    }

    /// True for every port of both protocols.
    pub fn is_all(&self) -> bool {
        self.0.contains(&PortRange::ALL)
    }

    /// True where these ports, read as an allow, open the port.
    pub fn opens(&self, protocol: Protocols, port: u16) -> bool {
        self.0.iter().any(|range| range.opens(protocol, port))
    }

    /// True where these ports, read as a deny, close the port.
    pub fn closes(&self, protocol: Protocols, port: u16) -> bool {
        self.0.iter().any(|range| range.hit(protocol, port.into(), true))
    }

    /// True where these ports, read as a deny, close every port of `other`.
    pub fn covers(&self, other: &Self) -> bool {
        [Protocols::TCP, Protocols::UDP].into_iter().all(|protocol| {
            let have = merged(self.0.iter().copied(), protocol);
            merged(other.0.iter().copied(), protocol)
                .iter()
                .all(|&(first, last)| have.iter().any(|&(low, high)| low <= first && last <= high))
        })
    }
}

/// For people's eyes: `80/tcp 443`. DEST syntax has one protocol for all its ports.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            match (range.first, range.last) {
                (0, u16::MAX) => f.write_str("*")?,
                (first, last) if first == last => write!(f, "{first}")?,
                (first, last) => write!(f, "{first}-{last}")?,
            }
            match range.protocols {
                Protocols::TCP => f.write_str("/tcp")?,
                Protocols::UDP => f.write_str("/udp")?,
                _ => {}
            }
        }
        Ok(())
    }
}

fn normalised(ranges: impl IntoIterator<Item = PortRange>) -> Vec<PortRange> {
    let ranges: Vec<PortRange> = ranges.into_iter().collect();
    let of = |protocol| {
        let mut list = merged(ranges.iter().copied().filter(|range| !names_service(*range)), protocol);
        let named = ranges.iter().filter(|range| names_service(**range) && range.protocols.contains(protocol));
        list.extend(named.map(|range| (range.first, range.last)));
        list.sort_unstable();
        list.dedup();
        list
    };
    let (tcp, udp) = (of(Protocols::TCP), of(Protocols::UDP));
    // Only equal ranges become one of both protocols: cutting at the other protocol's borders could make a single
    // name-service port out of a wider range.
    let mut all: Vec<PortRange> = Vec::with_capacity(tcp.len() + udp.len());
    for &(first, last) in &tcp {
        let protocols = if udp.contains(&(first, last)) { Protocols::ANY } else { Protocols::TCP };
        all.push(PortRange { first, last, protocols });
    }
    for &(first, last) in udp.iter().filter(|range| !tcp.contains(range)) {
        all.push(PortRange { first, last, protocols: Protocols::UDP });
    }
    all.sort_unstable();
    all
}

fn names_service(range: PortRange) -> bool {
    range.first == range.last && is_name_service(range.first)
}

/// The intervals of one protocol, sorted, touching ones joined.
fn merged(ranges: impl Iterator<Item = PortRange>, protocol: Protocols) -> Vec<(u16, u16)> {
    let mut list: Vec<(u16, u16)> =
        ranges.filter(|range| range.protocols.contains(protocol)).map(|range| (range.first, range.last)).collect();
    list.sort_unstable();
    let mut out: Vec<(u16, u16)> = Vec::with_capacity(list.len());
    for (first, last) in list {
        match out.last_mut() {
            Some((_, high)) if u32::from(first) <= u32::from(*high) + 1 => *high = last.max(*high),
            _ => out.push((first, last)),
        }
    }
    // 1-65535 is every port that can be written, so it is the same as *.
    if let [(first @ 1, u16::MAX)] = out.as_mut_slice() {
        *first = 0;
    }
    out
}

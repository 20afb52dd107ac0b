//! How long an answer and its permit live.

use std::time::Duration;

/// A TTL as RFC 2181, 8 reads it: the high bit set means zero.
pub(super) fn ttl(field: u32) -> u32 {
    if field > i32::MAX as u32 { 0 } else { field }
}

/// TTL that the client gets: short, so that it asks again before its permit ends, and never zero, so that it may use the
/// answer twice.
pub(super) fn answer_ttl(ttl: u32) -> u32 {
    ttl.clamp(1, 300)
}

/// TTL in the SOA record of a negative answer from upstream.
pub(super) fn negative_ttl(ttl: u32) -> u32 {
    ttl.clamp(1, 60)
}

/// How long an address stays permitted. `min` wins over `max` where they contradict each other.
pub(super) fn permit_life(ttl: u32, min: Duration, max: Duration, grace: Duration) -> Duration {
    Duration::from_secs(ttl.into()).min(max).max(min).saturating_add(grace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e04_ttls_become_answers_and_permits() {
        let s = Duration::from_secs;
        for (field, answer, permit) in
            [(0, 1, 150), (1, 1, 150), (86400, 300, 3720), (0xff00_0000, 1, 150), (60, 60, 180)]
        {
            assert_eq!(answer_ttl(ttl(field)), answer, "{field}");
            assert_eq!(permit_life(ttl(field), s(30), s(3600), s(120)), s(permit), "{field}");
        }
        assert_eq!([negative_ttl(0), negative_ttl(30), negative_ttl(3600)], [1, 30, 60]);
    }
}

//! How large a sandbox's part of the maps is made, and the policies that find room in it.

use super::{MOST, permits::LEARNED_AT_MOST};
use crate::{
    compile::{Image, Limits},
    datapath::load::Capacity,
};

/// For the smallest policies: what each sandbox of a shared program set gets. A hash map without entries costs 16 bytes for each
/// that fits, so no map is made for more than its policy may need.
pub(super) const LEAST: Capacity = Capacity { rules: 256, networks: 512, permits: 256 + LEARNED_AT_MOST as u32 };

/// Room for this image, and for another of twice its size beside it while a reload is applied.
pub(super) fn for_image(image: &Image) -> Capacity {
    let twice = |len: usize, most: usize| u32::try_from((len * 2).min(most)).unwrap_or(u32::MAX);
    let policy = Capacity {
        rules: twice(image.rules.len(), MOST.rules) * 2,
        networks: twice(image.networks.len(), MOST.networks) * 2,
        permits: twice(image.permits.len(), MOST.permits) + LEARNED_AT_MOST as u32,
    };
    Capacity {
        rules: policy.rules.max(LEAST.rules),
        networks: policy.networks.max(LEAST.networks),
        permits: policy.permits.max(LEAST.permits),
    }
}

/// The largest policy that maps of this size take: while it is exchanged for another, both are in them.
pub(super) fn limits(capacity: Capacity) -> Limits {
    Limits {
        rules: capacity.rules as usize / 2,
        networks: capacity.networks as usize / 2,
        permits: (capacity.permits as usize).saturating_sub(LEARNED_AT_MOST),
    }
}

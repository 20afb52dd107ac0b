//! What this binary is made of.

use crate::datapath::load;
use serde::Serialize;

/// Version of the layouts that both halves share.
pub(super) const ABI: u32 = 6;

/// What this binary is made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Build {
    /// Version.
    pub version: &'static str,
    /// Git revision, or `unknown` outside a checkout.
    pub revision: &'static str,
    /// Whether the tree had changes.
    pub dirty: bool,
    /// Hash of the BPF object (FNV-1a, 64 bits): tells builds apart, proves nothing.
    pub object: String,
    /// Version of the ABI between the halves.
    pub abi: u32,
}

/// What this binary is made of.
pub fn build() -> Build {
    Build {
        version: env!("CARGO_PKG_VERSION"),
        revision: env!("EGRESSD_REVISION"),
        dirty: env!("EGRESSD_DIRTY") == "true",
        object: format!("{:016x}", load::object_hash()),
        abi: ABI,
    }
}

//! What this binary is made of.

use serde::Serialize;

/// Version of the layouts that both halves share.
pub(super) const ABI: u32 = 7;

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
    pub object: &'static str,
    /// Version of the ABI between the halves.
    pub abi: u32,
}

/// By whom a program set is kept: no other build takes it, for what it puts into programs and maps is its own too. A name for a
/// bpffs: letters, digits and `_`.
pub(super) fn kept_by() -> String {
    let Build { revision, object, .. } = build();
    format!("{object}_{revision}")
}

/// What this binary is made of.
pub fn build() -> Build {
    Build {
        version: env!("CARGO_PKG_VERSION"),
        revision: env!("EGRESSD_REVISION"),
        dirty: env!("EGRESSD_DIRTY") == "true",
        object: env!("EGRESSD_OBJECT"),
        abi: ABI,
    }
}

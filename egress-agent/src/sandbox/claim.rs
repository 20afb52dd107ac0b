//! The port of a DNS listener, in the one map that all owners share.

use crate::datapath::tables::{TableError, Tables};
use egress_common::verdict::ListenerKey;
use std::sync::Arc;

/// A port claimed for a sandbox that is being made; given back if it comes to nothing.
pub(super) struct Claim {
    tables: Arc<Tables>,
    key: Option<ListenerKey>,
}

impl Claim {
    pub(super) fn new(tables: &Arc<Tables>, key: ListenerKey, nonce: u64) -> Result<Self, TableError> {
        tables.set_listener(key, nonce)?;
        Ok(Self { tables: Arc::clone(tables), key: Some(key) })
    }

    /// A port that the sandbox has already, and keeps whatever comes of this.
    pub(super) fn again(tables: &Arc<Tables>, key: ListenerKey, nonce: u64) -> Result<Self, TableError> {
        tables.set_listener(key, nonce)?;
        Ok(Self { tables: Arc::clone(tables), key: None })
    }

    /// The sandbox is there; who takes it down gives the port back.
    pub(super) fn keep(mut self) {
        self.key = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        if let Err(error) = self.tables.remove_listener(key) {
            tracing::warn!(%error, port = key.port, "the port of a sandbox that was not made stays claimed");
        }
    }
}

//! A build without upstreams over TLS and HTTPS: a policy that names one is refused, never asked in the clear.

use super::{config::DnsError, exchange::UpstreamError};
use crate::policy::{Server, Transport};
use std::future::Ready;

/// There is none.
#[derive(Debug)]
pub(super) enum Encrypted {}

impl Encrypted {
    /// `None` for a server that is asked in the clear.
    pub(super) fn of(server: &Server) -> Result<Option<Self>, DnsError> {
        match server.transport {
            Transport::Plain => Ok(None),
            _ => Err(DnsError::NotBuilt { server: server.clone() }),
        }
    }

    pub(super) fn exchange(&self, _message: &[u8]) -> Ready<Result<Vec<u8>, UpstreamError>> {
        match *self {}
    }
}

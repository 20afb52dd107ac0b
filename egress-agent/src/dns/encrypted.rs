//! Upstreams over TLS (RFC 7858) and HTTPS (RFC 8484). One connection serves all questions to a server, and is made anew when
//! it is gone.
//!
//! The name in the policy is what the certificate has to bear; certificate authorities are the host's (SSL_CERT_FILE and
//! SSL_CERT_DIR name others).

use super::{config::DnsError, exchange::UpstreamError};
use crate::policy::{Server, Transport};
use hickory_net::{
    NetError,
    h2::HttpsClientStream,
    runtime::TokioRuntimeProvider,
    tls,
    xfer::{DnsExchange, DnsHandle as _, FirstAnswer as _},
};
use hickory_proto::op::{DnsRequest, DnsRequestOptions, Message};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::sync::Mutex;

/// Whoever asks gives up before.
const PATIENCE: Duration = Duration::from_secs(5);
/// ALPN of HTTP/2 (RFC 8484, 5.2).
const H2: &[u8] = b"h2";

type Connection = DnsExchange<TokioRuntimeProvider>;

/// The host's certificate authorities, as a client's settings.
fn trust() -> Result<ClientConfig, DnsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        return Err(DnsError::NoAuthorities);
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(tls::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|_| DnsError::NoAuthorities)?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// One server, and the connection to it.
pub(super) struct Encrypted {
    address: SocketAddr,
    transport: Transport,
    trust: ClientConfig,
    /// Its tasks end with it.
    runtime: TokioRuntimeProvider,
    open: Mutex<Option<Connection>>,
}

impl fmt::Debug for Encrypted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encrypted").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Encrypted {
    /// `None` for a server that is asked in the clear.
    pub(super) fn of(server: &Server) -> Result<Option<Self>, DnsError> {
        let Server { address, transport } = server.clone();
        let mut trust = match transport {
            Transport::Plain => return Ok(None),
            _ => trust()?,
        };
        if matches!(transport, Transport::Https { .. }) {
            trust.alpn_protocols = vec![H2.to_vec()];
        }
        Ok(Some(Self { address, transport, trust, runtime: TokioRuntimeProvider::new(), open: Mutex::default() }))
    }

    /// The reply to a message of ours, whatever it says.
    pub(super) async fn exchange(&self, message: &[u8]) -> Result<Vec<u8>, UpstreamError> {
        let message = Message::from_vec(message).map_err(|_| UpstreamError::Malformed)?;
        // A connection that was open may have been closed by the server since.
        if let Some(open) = self.open.lock().await.clone()
            && let Ok(reply) = ask(&open, message.clone()).await
        {
            return Ok(reply);
        }
        let made = self.connect().await?;
        *self.open.lock().await = Some(made.clone());
        ask(&made, message).await
    }

    async fn connect(&self) -> Result<Connection, UpstreamError> {
        let made = match &self.transport {
            Transport::Tls { name } => {
                let name = ServerName::try_from(name.clone()).map_err(|_| UpstreamError::Certificate)?;
                tls::tls_exchange(self.address, name, self.trust.clone(), PATIENCE, None, self.runtime.clone()).await
            }
            Transport::Https { name, path } => {
                let stream = HttpsClientStream::builder(Arc::new(self.trust.clone()), self.runtime.clone());
                stream.exchange(self.address, name.as_str().into(), path.as_str().into()).await
            }
            Transport::Plain => return Err(UpstreamError::Network(io::ErrorKind::Unsupported)),
        };
        made.map_err(|error| failure(&error))
    }
}

async fn ask(connection: &Connection, message: Message) -> Result<Vec<u8>, UpstreamError> {
    let request = DnsRequest::new(message, DnsRequestOptions::default());
    let reply = connection.send(request).first_answer().await.map_err(|error| failure(&error))?;
    Ok(reply.into_buffer())
}

fn failure(error: &NetError) -> UpstreamError {
    match error {
        NetError::Timeout => UpstreamError::Timeout,
        NetError::Io(error) => {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            if matches!(inner, Some(rustls::Error::InvalidCertificate(_))) {
                UpstreamError::Certificate
            } else {
                UpstreamError::Network(error.kind())
            }
        }
        NetError::Proto(_) | NetError::Decode(_) => UpstreamError::Malformed,
        _ => UpstreamError::Network(io::ErrorKind::ConnectionAborted),
    }
}

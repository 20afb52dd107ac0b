//! The sockets that clients reach: datagrams here, connections in `stream`.

use super::{
    config::DnsError,
    datagrams::{Asker, Datagrams},
    responder::{Peer, Responder, Step, UDP},
};
use std::{io, net::SocketAddr, sync::Arc};

/// No question and its options come near that (RFC 6891, 6.2.5). What is longer is cut, and so is no message; a hundred idle
/// sandboxes hold a buffer for each family.
const BUFFER: usize = 4096;

/// Tells the server when the task that holds it panics: a part of it is a defect of the whole.
pub(super) struct Alarm(pub(super) Arc<Responder>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.defect.notify_one();
        }
    }
}

/// Serves datagrams until the socket fails. Answers that need no upstream are sent from this loop.
pub(super) async fn datagrams(responder: Arc<Responder>, socket: Datagrams, listener: SocketAddr) -> DnsError {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; BUFFER];
    let mut out = Vec::with_capacity(512);
    loop {
        let (length, asker) = match socket.receive(&mut buffer).await {
            Ok(received) => received,
            Err(error) if is_about_a_peer(&error) => continue,
            Err(source) => return DnsError::Serve { listener, source },
        };
        let peer = Peer { protocol: UDP, port: asker.port() };
        match responder.receive(&buffer[..length], peer, &mut out) {
            Step::Silent => {}
            Step::Answered => send(&responder, &socket, &out, asker).await,
            Step::Ask(miss) => {
                let alarm = Alarm(Arc::clone(&responder));
                let socket = Arc::clone(&socket);
                tokio::spawn(async move {
                    let mut out = Vec::with_capacity(512);
                    alarm.0.finish(miss, &mut out).await;
                    send(&alarm.0, &socket, &out, asker).await;
                });
            }
        }
    }
}

async fn send(responder: &Responder, socket: &Datagrams, out: &[u8], to: Asker) {
    responder.sent(out.len());
    if socket.answer(out, to).await.is_err() {
        responder.counters.unsent.add(1);
    }
}

/// An ICMP error for an earlier answer: the socket itself is well.
fn is_about_a_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable | Interrupted)
}

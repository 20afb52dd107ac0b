//! The sockets that clients reach: datagrams here, connections in `stream`.

use super::{
    config::DnsError,
    datagrams::{Asker, Datagrams, Inbox, Outbox},
    responder::{MAX_QUEUED, Miss, Peer, Responder, Step, UDP},
};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::task::coop::consume_budget;

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
    let (mut inbox, mut outbox) = (Inbox::default(), Outbox::default());
    let mut out = Vec::with_capacity(512);
    loop {
        let taken = socket.receive(&mut inbox, |message, asker| {
            let peer = Peer { protocol: UDP, port: asker.port() };
            match responder.receive(message, peer, &mut out) {
                Step::Silent => {}
                Step::Answered => {
                    responder.sent(out.len());
                    outbox.push(&out, asker);
                }
                Step::Ask(miss) => finish(&responder, &socket, miss, asker),
            }
        });
        let taken = taken.await;
        responder.counters.unsent.add(socket.answer(&mut outbox).await);
        match taken {
            // Questions without end do not keep what was asked before them from its turn.
            Ok(count) => {
                for _ in 1..count {
                    consume_budget().await;
                }
            }
            Err(error) if is_about_a_peer(&error) => {}
            Err(source) => return DnsError::Serve { listener, source },
        }
    }
}

/// Answers in a task of its own. Apart: a frame that holds the task would be stack of every sandbox that is asked what it knows.
#[inline(never)]
fn finish(responder: &Arc<Responder>, socket: &Arc<Datagrams>, miss: Box<Miss>, asker: Asker) {
    let alarm = Alarm(Arc::clone(responder));
    let socket = Arc::clone(socket);
    // In a box, because tokio moves a task twice, and this one is large.
    tokio::spawn(Box::pin(async move {
        let mut out = Vec::with_capacity(512);
        let behind = alarm.0.finish(miss, &mut out).await;
        alarm.0.sent(out.len());
        let others = alarm.0.queue.available_permits() < MAX_QUEUED;
        alarm.0.counters.unsent.add(socket.answer_together(&out, asker, others).await);
        drop(behind);
        alarm.0.current().upstreams.tidy();
    }));
}

/// An ICMP error for an earlier answer: the socket itself is well.
fn is_about_a_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | HostUnreachable | NetworkUnreachable | Interrupted)
}

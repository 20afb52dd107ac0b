//! Sockets for the questions to one upstream. Making one, and having it watched, costs more than asking, so a socket whose
//! exchange is over serves the next one: connected anew, and so on another port.

use super::responder::MAX_IN_FLIGHT;
use crate::datapath::sockopt::disconnect;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::{
    io,
    net::{self, SocketAddr},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::net::UdpSocket;

/// Sockets that wait for a question: none is closed while questions come, however many are with upstreams.
const IDLE: usize = MAX_IN_FLIGHT;

/// Sockets whose exchange is over.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    /// As the exchange left them.
    used: Mutex<Vec<UdpSocket>>,
    /// On no port, and empty.
    idle: Mutex<Vec<UdpSocket>>,
}

fn lock(sockets: &Mutex<Vec<UdpSocket>>) -> MutexGuard<'_, Vec<UdpSocket>> {
    sockets.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives its port back, too (`__udp_disconnect` in net/ipv4/udp.c); then nothing comes any more, and what had come before is
/// no answer to the next question.
fn emptied(socket: UdpSocket) -> io::Result<UdpSocket> {
    disconnect(&socket)?;
    while socket.try_recv(&mut [0]).is_ok() {}
    Ok(socket)
}

impl Sockets {
    /// A socket that takes nothing but what comes from there. Its connect binds it, to the kernel's random choice of a port, which
    /// leaves reserved ones alone (`inet_autobind` in net/ipv4/af_inet.c).
    pub(super) async fn connected(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let idle = lock(&self.idle).pop();
        let used = if idle.is_none() { lock(&self.used).pop() } else { None };
        if let Some(socket) = idle.map(Ok).or_else(|| used.map(emptied)).transpose()? {
            socket.connect(to).await?;
            return Ok(socket);
        }
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = net::UdpSocket::from(socket(family, SockType::Datagram, flags, None)?);
        socket.connect(to)?;
        UdpSocket::from_std(socket)
    }

    /// Takes back a socket that got its answer: no error is under way to it.
    pub(super) fn give_back(&self, socket: UdpSocket) {
        let mut used = lock(&self.used);
        if used.len() + lock(&self.idle).len() < IDLE {
            used.push(socket);
        }
    }

    /// Makes one of them ready for the next question.
    pub(super) fn tidy(&self) {
        let used = lock(&self.used).pop();
        // One that cannot be used again is closed.
        if let Some(Ok(socket)) = used.map(emptied) {
            lock(&self.idle).push(socket);
        }
    }

    /// Nothing was asked for a while.
    pub(super) fn close(&self) {
        lock(&self.used).clear();
        lock(&self.idle).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    impl Sockets {
        fn len(&self) -> usize {
            lock(&self.used).len() + lock(&self.idle).len()
        }
    }

    #[tokio::test]
    async fn f05_a_socket_that_is_used_again_has_another_port_and_forgets_what_came() {
        used_again(|_| ()).await;
    }

    #[tokio::test]
    async fn f05_a_socket_that_waits_has_no_port_and_forgets_what_came() {
        used_again(|sockets| {
            let port = lock(&sockets.used)[0].local_addr().unwrap();
            net::UdpSocket::bind(port).unwrap_err();
            sockets.tidy();
            net::UdpSocket::bind(port).unwrap();
            assert_eq!((lock(&sockets.used).len(), lock(&sockets.idle).len()), (0, 1));
        })
        .await;
    }

    async fn used_again(meanwhile: impl Fn(&Sockets)) {
        let [first, second] = [(); 2].map(|()| net::UdpSocket::bind("127.0.0.1:0").unwrap());
        let sockets = Sockets::default();
        let socket = sockets.connected(first.local_addr().unwrap()).await.unwrap();
        let port = socket.local_addr().unwrap();
        first.send_to(b"answer", port).unwrap();
        let mut buffer = [0; 64];
        assert_eq!(socket.recv(&mut buffer).await.unwrap(), 6);
        first.send_to(b"late", port).unwrap();
        socket.readable().await.unwrap();
        sockets.give_back(socket);
        meanwhile(&sockets);

        let socket = sockets.connected(second.local_addr().unwrap()).await.unwrap();
        assert_eq!(sockets.len(), 0, "it is the same socket");
        let other = socket.local_addr().unwrap();
        assert_ne!(other.port(), port.port());
        // Neither what came before, nor what goes to the earlier port, nor what the earlier server sends.
        first.send_to(b"to the earlier port", port).unwrap();
        first.send_to(b"from another", other).unwrap();
        second.send_to(b"right", other).unwrap();
        let length = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(buffer[..length], *b"right");
        assert_eq!(socket.try_recv(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);

        sockets.give_back(socket);
        sockets.close();
        assert_eq!(sockets.len(), 0);
    }

    #[tokio::test]
    async fn f05_ports_of_one_socket_are_spread() {
        const EXCHANGES: usize = 500;
        let server = net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let sockets = Sockets::default();
        let mut ports = std::collections::BTreeSet::new();
        for _ in 0..EXCHANGES {
            let socket = sockets.connected(server.local_addr().unwrap()).await.unwrap();
            ports.insert(socket.local_addr().unwrap().port());
            sockets.give_back(socket);
        }
        // Of 28 000; by chance some four meet twice.
        assert!(ports.len() > EXCHANGES * 9 / 10, "{}", ports.len());
    }
}

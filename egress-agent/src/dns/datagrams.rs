//! A UDP socket that answers: from the one address that it is bound to, or from whichever was asked.

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg},
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::AsRawFd as _,
};
use tokio::{io::Interest, net::UdpSocket};

/// A socket that clients reach.
pub(super) struct Datagrams {
    socket: UdpSocket,
    every_address: bool,
}

/// Who asked, and whom.
#[derive(Clone, Copy)]
pub(super) struct Asker {
    from: SocketAddr,
    asked: Asked,
}

impl Asker {
    pub(super) fn port(&self) -> u16 {
        self.from.port()
    }
}

/// The address that was asked.
#[derive(Clone, Copy)]
enum Asked {
    /// The one that the socket is bound to.
    Bound,
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

impl Datagrams {
    /// The socket is non-blocking. The calling thread is in a runtime.
    pub(super) fn new(socket: std::net::UdpSocket, every_address: bool) -> io::Result<Self> {
        Ok(Self { socket: UdpSocket::from_std(socket)?, every_address })
    }

    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Asker)> {
        if self.every_address {
            return self.socket.async_io(Interest::READABLE, || self.receive_asked(buffer)).await;
        }
        let (length, from) = self.socket.recv_from(buffer).await?;
        Ok((length, Asker { from, asked: Asked::Bound }))
    }

    pub(super) async fn answer(&self, out: &[u8], to: Asker) -> io::Result<()> {
        let message = match &to.asked {
            Asked::Bound => return self.socket.send_to(out, to.from).await.map(drop),
            Asked::V4(asked) => ControlMessage::Ipv4PacketInfo(asked),
            Asked::V6(asked) => ControlMessage::Ipv6PacketInfo(asked),
        };
        let (fd, address) = (self.socket.as_raw_fd(), SockaddrStorage::from(to.from));
        let send = || sendmsg(fd, &[IoSlice::new(out)], &[message], MsgFlags::empty(), Some(&address));
        self.socket.async_io(Interest::WRITABLE, || Ok(send()?)).await.map(drop)
    }

    fn receive_asked(&self, buffer: &mut [u8]) -> io::Result<(usize, Asker)> {
        let mut room = nix::cmsg_space!(libc::in6_pktinfo);
        let mut slices = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let received = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut room), MsgFlags::empty())?;
        let from = received.address.as_ref().and_then(to_std).ok_or(Errno::EINVAL)?;
        let asked = received.cmsgs()?.find_map(|message| match message {
            // From that address, by whatever device the answer takes.
            ControlMessageOwned::Ipv4PacketInfo(it) => {
                Some(Asked::V4(libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: it.ipi_addr, ..it }))
            }
            ControlMessageOwned::Ipv6PacketInfo(it) => Some(Asked::V6(it)),
            _ => None,
        });
        Ok((received.bytes, Asker { from, asked: asked.unwrap_or(Asked::Bound) }))
    }
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{setsockopt, sockopt::Ipv4PacketInfo};
    use std::time::Duration;

    /// Every address of 127.0.0.0/8 is one's own, as every address is in a resolver's namespace.
    #[tokio::test]
    async fn an_answer_bears_the_address_that_was_asked() {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        setsockopt(&socket, Ipv4PacketInfo, &true).unwrap();
        let port = socket.local_addr().unwrap().port();
        let served = Datagrams::new(socket, true).unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for server in ["127.0.0.53", "127.9.8.7"] {
            client.send_to(b"question", (server, port)).unwrap();
            let mut buffer = [0; 64];
            let (length, asker) = served.receive(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..length], asker.port()), (&b"question"[..], client.local_addr().unwrap().port()));
            served.answer(b"answer", asker).await.unwrap();
            let (length, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (&b"answer"[..], format!("{server}:{port}").parse().unwrap()));
        }
    }
}

//! A UDP socket that answers: from the one address that it is bound to, or from whichever was asked.
//!
//! Questions are taken, and answers sent, as many at a time as there are: whoever waits for answers is woken, and takes the
//! processor, once for all of them.

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrStorage, recvmmsg, sendmmsg, sendto,
};
use std::{
    cell::RefCell,
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    ops::Range,
    os::fd::AsRawFd as _,
};
use tokio::{io::Interest, net::UdpSocket};

/// Questions that are taken at a time, once two came together.
const BATCH: usize = 16;
/// Room for a question, and to see that no other came with it.
const LONE: usize = 2;
/// No question and its options come near that (RFC 6891, 6.2.5). What is longer is cut, and so is no message.
const BUFFER: usize = 2048;

thread_local! {
    /// Of whichever socket of the thread is read. Small until questions come together: a hundred idle sandboxes hold one each.
    static INBOX: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A socket that clients reach.
pub(super) struct Datagrams {
    socket: UdpSocket,
    every_address: bool,
}

/// Who asked, and whom.
#[derive(Clone, Copy, Debug)]
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
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// The one that the socket is bound to.
    Bound,
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

impl Asked {
    /// By the addresses alone: the device of a V4 is none.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bound, Self::Bound) => true,
            (Self::V4(a), Self::V4(b)) => {
                (a.ipi_spec_dst.s_addr, a.ipi_addr.s_addr) == (b.ipi_spec_dst.s_addr, b.ipi_addr.s_addr)
            }
            (Self::V6(a), Self::V6(b)) => {
                (a.ipi6_addr.s6_addr, a.ipi6_ifindex) == (b.ipi6_addr.s6_addr, b.ipi6_ifindex)
            }
            _ => false,
        }
    }
}

/// What one system call took.
struct Taken {
    all: usize,
    /// There may be others.
    more: bool,
    /// One of them at least was answered at once.
    answered: bool,
}

/// Answers that are to be sent, in order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    octets: Vec<u8>,
    answers: Vec<(Range<usize>, Asker)>,
}

impl Outbox {
    pub(super) fn push(&mut self, answer: &[u8], to: Asker) {
        let start = self.octets.len();
        self.octets.extend(answer);
        self.answers.push((start..self.octets.len(), to));
    }

    fn clear(&mut self) {
        self.octets.clear();
        self.answers.clear();
    }
}

impl Datagrams {
    /// The socket is non-blocking. The calling thread is in a runtime.
    pub(super) fn new(socket: std::net::UdpSocket, every_address: bool) -> io::Result<Self> {
        Ok(Self { socket: UdpSocket::from_std(socket)?, every_address })
    }

    /// Waits for questions, and hands over what has come, at most [`BATCH`]; returns how many those were. `take` is true for
    /// what is answered at once.
    pub(super) async fn receive(&self, mut take: impl FnMut(&[u8], Asker) -> bool) -> io::Result<usize> {
        loop {
            self.socket.readable().await?;
            let mut count = 0;
            let result = self.socket.try_io(Interest::READABLE, || {
                let Taken { all, more, answered } =
                    INBOX.with_borrow_mut(|inbox| self.receive_now(inbox, &mut take))?;
                count = all;
                // Whoever gets an answer may ask again at once, and trying costs less than waiting; a miss should not wait for
                // the try.
                if answered || more { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
            });
            match result {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ if count > 0 => return Ok(count),
                _ => {}
            }
        }
    }

    fn receive_now(&self, inbox: &mut Vec<u8>, take: &mut impl FnMut(&[u8], Asker) -> bool) -> io::Result<Taken> {
        let room = (inbox.len() / BUFFER).max(LONE);
        inbox.resize(room * BUFFER, 0);
        let control = self.every_address.then(|| nix::cmsg_space!(libc::in6_pktinfo));
        let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(room, control);
        let mut slices: Vec<_> =
            inbox.as_chunks_mut::<BUFFER>().0.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let fd = self.socket.as_raw_fd();
        let (mut all, mut answered) = (0, false);
        for received in recvmmsg(fd, &mut headers, &mut slices, MsgFlags::empty(), None)? {
            all += 1;
            // From no address of the internet nobody asks.
            if let Some(asker) = asker(&received) {
                answered |= take(received.iovs().next().unwrap_or_default(), asker);
            }
        }
        // Where there was room for more, nothing is left.
        let more = all == room;
        if more {
            inbox.resize(BATCH * BUFFER, 0);
        }
        Ok(Taken { all, more, answered })
    }

    /// Sends all of them and empties the box; returns how many could not be sent.
    pub(super) async fn answer(&self, outbox: &mut Outbox) -> u64 {
        let mut unsent = 0;
        let mut rest = outbox.answers.as_slice();
        while let [(_, first), others @ ..] = rest {
            let alike = 1 + others.iter().take_while(|(_, to)| to.asked.is_same(&first.asked)).count();
            let send = || self.send_now(&outbox.octets, &rest[..alike], &first.asked);
            let sent = self.socket.async_io(Interest::WRITABLE, send).await.unwrap_or_else(|_| {
                // That of the first one. The others have a try of their own.
                unsent += 1;
                1
            });
            rest = &rest[sent..];
        }
        outbox.clear();
        unsent
    }

    /// How many were sent: at least one, or it is an error of the first.
    fn send_now(&self, octets: &[u8], answers: &[(Range<usize>, Asker)], asked: &Asked) -> io::Result<usize> {
        let fd = self.socket.as_raw_fd();
        // Most often, and with nothing to prepare.
        if let ([(range, to)], Asked::Bound) = (answers, asked) {
            let address = SockaddrStorage::from(to.from);
            return Ok(sendto(fd, &octets[range.clone()], &address, MsgFlags::empty()).map(|_| 1)?);
        }
        let (control, message) = match asked {
            Asked::Bound => (None, None),
            Asked::V4(asked) => (Some(nix::cmsg_space!(libc::in_pktinfo)), Some(ControlMessage::Ipv4PacketInfo(asked))),
            Asked::V6(asked) => {
                (Some(nix::cmsg_space!(libc::in6_pktinfo)), Some(ControlMessage::Ipv6PacketInfo(asked)))
            }
        };
        let addresses: Vec<_> = answers.iter().map(|(_, to)| Some(SockaddrStorage::from(to.from))).collect();
        let slices: Vec<_> = answers.iter().map(|(range, _)| [IoSlice::new(&octets[range.clone()])]).collect();
        let mut headers = MultiHeaders::preallocate(answers.len(), control);
        let sent = sendmmsg(fd, &mut headers, &slices, &addresses, message.as_slice(), MsgFlags::empty())?;
        Ok(sent.count())
    }
}

fn asker(received: &RecvMsg<'_, '_, SockaddrStorage>) -> Option<Asker> {
    let from = received.address.as_ref().and_then(to_std)?;
    let asked = received.cmsgs().ok()?.find_map(|message| match message {
        // From that address, by whatever device the answer takes.
        ControlMessageOwned::Ipv4PacketInfo(it) => {
            Some(Asked::V4(libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: it.ipi_addr, ..it }))
        }
        ControlMessageOwned::Ipv6PacketInfo(it) => Some(Asked::V6(it)),
        _ => None,
    });
    Some(Asker { from, asked: asked.unwrap_or(Asked::Bound) })
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{setsockopt, sockopt::Ipv4PacketInfo};
    use std::{net, time::Duration};

    fn served(address: &str, every_address: bool) -> (Datagrams, u16) {
        let socket = net::UdpSocket::bind(address).unwrap();
        socket.set_nonblocking(true).unwrap();
        if every_address {
            setsockopt(&socket, Ipv4PacketInfo, &true).unwrap();
        }
        let port = socket.local_addr().unwrap().port();
        (Datagrams::new(socket, every_address).unwrap(), port)
    }

    fn client(address: &str) -> net::UdpSocket {
        let client = net::UdpSocket::bind(address).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        client
    }

    /// Takes so many questions, and has an answer for each that repeats it.
    async fn take(served: &Datagrams, questions: usize) -> Outbox {
        let mut outbox = Outbox::default();
        let mut count = 0;
        while count < questions {
            let echo = |question: &[u8], asker: Asker| {
                outbox.push(question, asker);
                true
            };
            let room = INBOX.with_borrow(Vec::len).max(LONE * BUFFER) / BUFFER;
            let taken = served.receive(echo).await.unwrap();
            assert_eq!(taken, room.min(questions - count), "a batch is full while there are questions");
            assert!(taken < room || INBOX.with_borrow(Vec::len) == BATCH * BUFFER);
            count += taken;
        }
        outbox
    }

    /// Every address of 127.0.0.0/8 is one's own, as every address is in a resolver's namespace.
    #[tokio::test]
    async fn an_answer_bears_the_address_that_was_asked() {
        let (served, port) = served("0.0.0.0:0", true);
        let client = client("127.0.0.1:0");
        let servers = ["127.0.0.53", "127.9.8.7", "127.9.8.7", "127.0.0.53"];
        for (number, server) in (0_u8..).zip(servers) {
            client.send_to(&[number], (server, port)).unwrap();
        }
        let mut outbox = take(&served, servers.len()).await;
        assert_eq!(served.answer(&mut outbox).await, 0);
        for (number, server) in (0_u8..).zip(servers) {
            let mut buffer = [0; 64];
            let (length, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], from), (&[number][..], format!("{server}:{port}").parse().unwrap()));
        }
    }

    #[tokio::test]
    async fn answers_go_to_who_asked_in_their_order() {
        const QUESTIONS: u8 = 40;
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let (served, port) = served(address, false);
            let to = net::SocketAddr::new(address.parse::<net::SocketAddr>().unwrap().ip(), port);
            let clients = [(); 2].map(|()| client(address));
            for number in 0..QUESTIONS {
                clients[usize::from(number % 2)].send_to(&[7; 90][..usize::from(number)], to).unwrap();
            }
            let mut outbox = take(&served, QUESTIONS.into()).await;
            assert_eq!(served.answer(&mut outbox).await, 0);
            assert_eq!(served.answer(&mut outbox).await, 0, "it is empty");
            for number in 0..QUESTIONS {
                let mut buffer = [0; 64];
                let (length, from) = clients[usize::from(number % 2)].recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], from), (&[7; 90][..usize::from(number)], to), "{address}");
            }
        }
    }

    #[tokio::test]
    async fn an_answer_that_cannot_be_sent_takes_no_other_with_it() {
        for every_address in [false, true] {
            let (served, port) = served("127.0.0.1:0", every_address);
            let client = client("127.0.0.1:0");
            for number in 0..4 {
                client.send_to(&[number], ("127.0.0.1", port)).unwrap();
            }
            let mut outbox = take(&served, 4).await;
            for place in [0, 2] {
                // No datagram goes to port 0.
                outbox.answers[place].1.from.set_port(0);
            }
            assert_eq!(served.answer(&mut outbox).await, 2);
            for number in [1, 3] {
                let mut buffer = [0; 64];
                let length = client.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..length], [number]);
            }
        }
    }
}

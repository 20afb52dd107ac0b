//! A UDP socket that answers: from the one address that it is bound to, or from whichever was asked.
//!
//! Questions are taken, and answers sent, as many at a time as there are: whoever waits for answers is woken, and takes the
//! processor, once for all of them.

use nix::{
    errno::Errno,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, recvmsg, sendmmsg,
        sendto,
    },
};
use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice, IoSliceMut},
    net::{SocketAddr, SocketAddrV4, SocketAddrV6},
    ops::Range,
    os::fd::AsRawFd as _,
    pin::pin,
};
use tokio::{io::Interest, net::UdpSocket};

/// Questions that are taken at a time, behind a first one that was there already.
const BATCH: usize = 16;
/// The same before so many ever came together: who asks for A and AAAA at once needs no more.
const PAIR: usize = 2;
/// No question and its options come near that (RFC 6891, 6.2.5). What is longer is cut, and so is no message.
const BUFFER: usize = 4096;

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

/// Room for questions: for one, until two come together, and for a batch once more do. A hundred sandboxes hold one for each family.
pub(super) struct Inbox(Vec<u8>);

impl Default for Inbox {
    fn default() -> Self {
        Self(vec![0; BUFFER])
    }
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

    /// Waits for a question. Where it was there already there may be others, and those are taken with it; returns how many
    /// were. An error may come behind some that were taken.
    pub(super) async fn receive(&self, inbox: &mut Inbox, mut take: impl FnMut(&[u8], Asker)) -> io::Result<usize> {
        let (first, at_once) = whether_at_once(self.receive_one(&mut inbox.0[..BUFFER])).await;
        let (length, asker) = first?;
        take(&inbox.0[..length], asker);
        if at_once { Ok(1 + self.receive_others(inbox, take)?) } else { Ok(1) }
    }

    async fn receive_one(&self, buffer: &mut [u8]) -> io::Result<(usize, Asker)> {
        if self.every_address {
            return self.socket.async_io(Interest::READABLE, || self.receive_asked(buffer)).await;
        }
        let (length, from) = self.socket.recv_from(buffer).await?;
        Ok((length, Asker { from, asked: Asked::Bound }))
    }

    fn receive_asked(&self, buffer: &mut [u8]) -> io::Result<(usize, Asker)> {
        let mut room = nix::cmsg_space!(libc::in6_pktinfo);
        let mut slices = [IoSliceMut::new(buffer)];
        let fd = self.socket.as_raw_fd();
        let received = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut room), MsgFlags::empty())?;
        let asker = asker(received.address.as_ref(), received.cmsgs()?).ok_or(Errno::EINVAL)?;
        Ok((received.bytes, asker))
    }

    /// What is there now. Says nothing to tokio of a socket that is empty: the next wait tries it once more, and learns by that of
    /// an error that came meanwhile.
    #[inline(never)]
    fn receive_others(&self, inbox: &mut Inbox, mut take: impl FnMut(&[u8], Asker)) -> io::Result<usize> {
        let room = (inbox.0.len() / BUFFER).max(PAIR);
        inbox.0.resize(room * BUFFER, 0);
        let control = self.every_address.then(|| nix::cmsg_space!(libc::in6_pktinfo));
        let mut headers = MultiHeaders::preallocate(room, control);
        let mut slices: Vec<_> =
            inbox.0.as_chunks_mut::<BUFFER>().0.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let received = match recvmmsg(self.socket.as_raw_fd(), &mut headers, &mut slices, MsgFlags::MSG_DONTWAIT, None)
        {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let mut count = 0;
        for message in received {
            count += 1;
            // From no address of the internet nobody asks.
            if let Some(asker) = asker(message.address.as_ref(), message.cmsgs()?) {
                take(message.iovs().next().unwrap_or_default(), asker);
            }
        }
        if count == room {
            inbox.0.resize(BATCH * BUFFER, 0);
        }
        Ok(count)
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

/// What a future comes to, and whether it was so at once.
async fn whether_at_once<F: Future>(future: F) -> (F::Output, bool) {
    let (mut future, mut at_once) = (pin!(future), true);
    let output = poll_fn(|context| {
        let polled = future.as_mut().poll(context);
        at_once &= polled.is_ready();
        polled
    });
    let output = output.await;
    (output, at_once)
}

fn asker(from: Option<&SockaddrStorage>, messages: impl Iterator<Item = ControlMessageOwned>) -> Option<Asker> {
    let from = from.and_then(to_std)?;
    let asked = { messages }.find_map(|message| match message {
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
    use nix::{
        poll::{PollFd, PollFlags, poll},
        sys::socket::{
            setsockopt,
            sockopt::{Ipv4PacketInfo, Ipv4RecvErr},
        },
    };
    use std::{net, os::fd::AsFd as _, time::Duration};

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

    /// Takes so many questions, which are there already, and has an answer for each that repeats it.
    async fn take(served: &Datagrams, questions: usize) -> Outbox {
        let (mut inbox, mut outbox) = (Inbox::default(), Outbox::default());
        // Tokio does not know yet that the socket can be read, so the first one is waited for.
        assert_eq!(served.receive(&mut inbox, |question, asker| outbox.push(question, asker)).await.unwrap(), 1);
        assert_eq!(inbox.0.len(), BUFFER, "nobody has seen that they come together");
        let (mut count, mut room) = (1, PAIR);
        while count < questions {
            let taken = served.receive(&mut inbox, |question, asker| outbox.push(question, asker)).await.unwrap();
            assert_eq!(taken, (1 + room).min(questions - count), "a batch is full while there are questions");
            if taken == 1 + room {
                room = BATCH;
            }
            assert_eq!(inbox.0.len(), room * BUFFER, "there is room for more once it was full");
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

    #[tokio::test]
    async fn an_error_behind_questions_is_told() {
        let (served, port) = served("127.0.0.1:0", false);
        setsockopt(&served.socket, Ipv4RecvErr, &true).unwrap();
        let gone = client("127.0.0.1:0").local_addr().unwrap();
        let client = client("127.0.0.1:0");
        for number in 0..3 {
            client.send_to(&[number], ("127.0.0.1", port)).unwrap();
        }
        let (mut inbox, mut questions) = (Inbox::default(), Vec::new());
        served.receive(&mut inbox, |question, _| questions.push(question[0])).await.unwrap();
        let fails = |question: &[u8], _| {
            questions.push(question[0]);
            // Nobody is there, and the socket hears of it.
            sendto(served.socket.as_raw_fd(), b"answer", &SockaddrStorage::from(gone), MsgFlags::empty()).unwrap();
            let mut error = [PollFd::new(served.socket.as_fd(), PollFlags::empty())];
            assert_eq!(poll(&mut error, 5000_u16).unwrap(), 1);
        };
        let error = served.receive(&mut inbox, fails).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        served.receive(&mut inbox, |question, _| questions.push(question[0])).await.unwrap();
        assert_eq!(questions, [0, 1, 2]);
    }
}

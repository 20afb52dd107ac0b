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
    sync::{Mutex, PoisonError},
    task::Poll,
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
    /// Answers that leave together.
    together: Mutex<Outbox>,
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
        Ok(Self { socket: UdpSocket::from_std(socket)?, every_address, together: Mutex::default() })
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

    /// Sends an answer. Where others are expected, it leaves with those that are there once every task that is ready had its turn:
    /// what many upstreams' answers led to wakes the sandbox once. Returns how many could not be sent.
    pub(super) async fn answer_together(&self, answer: &[u8], to: Asker, others: bool) -> u64 {
        let together = || self.together.lock().unwrap_or_else(PoisonError::into_inner);
        let first = {
            let mut outbox = together();
            outbox.push(answer, to);
            outbox.answers.len() == 1
        };
        if !first {
            // Who was first sends it.
            return 0;
        }
        if others {
            in_turn().await;
        }
        let mut outbox = std::mem::take(&mut *together());
        self.answer(&mut outbox).await
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

/// Lets those have their turn that wait for it now.
async fn in_turn() {
    let mut waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
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
#[path = "datagrams_tests.rs"]
mod tests;

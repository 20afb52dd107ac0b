//! Blocking netlink: one request, all its replies. The kernel's rtnetlink and sock_diag speak it.
//!
//! Attributes are picked by hand instead of decoding whole messages: device names and address labels are bytes that root in
//! a sandbox's namespace chooses, and a strict decoder would let it break every dump with one name that is not UTF-8.

use netlink_packet_core::{
    DecodeError, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN, NetlinkBuffer, NlaBuffer,
};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::TimeVal,
};
use std::io;

/// A dump that the kernel marks as torn (`NLM_F_DUMP_INTR`) is asked for again this often.
const DUMP_ATTEMPTS: usize = 16;
/// The kernel fills at most 32 KiB per datagram of a dump (`netlink_dump` in `net/netlink/af_netlink.c`).
const DATAGRAM: usize = 64 * 1024;
/// Answers are queued while the request is sent; a wait this long means that the answer was lost.
const ANSWER_WITHIN_S: i64 = 5;
const HEADER: usize = 16;

/// Why the kernel could not be asked over netlink.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket: out of descriptors, or the protocol is not in this kernel.
    #[error("cannot open a netlink socket (protocol {protocol})")]
    Open {
        /// `NETLINK_ROUTE` = 0, `NETLINK_SOCK_DIAG` = 4.
        protocol: isize,
        /// What the system call said.
        source: io::Error,
    },
    /// The socket did not take the request or did not give the answer within 5 s.
    #[error("netlink {request} got no answer")]
    Transport {
        /// The request's name in the kernel's headers.
        request: &'static str,
        /// What the system call said.
        source: io::Error,
    },
    /// The kernel answered with an error.
    #[error("the kernel refused netlink {request}")]
    Refused {
        /// The request's name in the kernel's headers.
        request: &'static str,
        /// The kernel's error number.
        source: io::Error,
    },
    /// The answer is not netlink as the kernel's headers describe it.
    #[error("the kernel's answer to netlink {request} cannot be read")]
    Malformed {
        /// The request's name in the kernel's headers.
        request: &'static str,
        /// Where it goes wrong.
        source: DecodeError,
    },
    /// Somebody changes the table faster than it can be read.
    #[error(
        "the table behind netlink {request} changed during each of 16 readings: find what flaps there with `ip monitor`"
    )]
    Torn {
        /// The request's name in the kernel's headers.
        request: &'static str,
    },
    /// No watching thread: out of threads or descriptors.
    #[error("cannot start the thread that watches netlink events")]
    Watch(#[source] io::Error),
}

impl NetlinkError {
    /// The kernel's error number, where it answered with one.
    pub(super) fn refusal(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// A request: its name for messages, its type, and its body (fixed header and attributes).
#[derive(Clone, Copy, Debug)]
pub(super) struct Request<'a> {
    pub(super) name: &'static str,
    pub(super) kind: u16,
    pub(super) body: &'a [u8],
}

/// One message of an answer, without its netlink header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Reply {
    pub(super) kind: u16,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// The attributes behind a fixed header of `fixed` bytes.
    pub(super) fn attributes(&self, fixed: usize) -> impl Iterator<Item = Result<Attribute<'_>, DecodeError>> {
        attributes(self.body.get(fixed..).unwrap_or_default())
    }
}

/// Type (flag bits cut off) and value of one attribute.
pub(super) type Attribute<'a> = (u16, &'a [u8]);

/// Walks attributes; ends after the first that does not fit.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, DecodeError>> {
    std::iter::from_fn(move || {
        let rest = std::mem::take(&mut bytes);
        if rest.is_empty() {
            return None;
        }
        Some(NlaBuffer::new_checked(rest).map(|nla| {
            let end = usize::from(nla.length());
            bytes = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
            (nla.kind(), rest.get(NLA_HEADER_SIZE..end).unwrap_or_default())
        }))
    })
}

/// Appends one attribute, padded to 4 bytes. `value` is at most 65531 bytes.
pub(super) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A socket of the network namespace in which it was opened, wherever it is used.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace. `protocol` is a `NETLINK_*` number.
    pub(super) fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let open = |source| NetlinkError::Open { protocol, source };
        let mut socket = Socket::new(protocol).map_err(open)?;
        socket.bind_auto().map_err(open)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_WITHIN_S, 0)).map_err(|errno| open(errno.into()))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for a whole table.
    pub(super) fn dump(&mut self, request: Request<'_>) -> Result<Vec<Reply>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let (replies, torn) = self.ask(request, NLM_F_DUMP)?;
            if !torn {
                return Ok(replies);
            }
        }
        Err(NetlinkError::Torn { request: request.name })
    }

    /// Asks for one object, or for one change.
    pub(super) fn call(&mut self, request: Request<'_>) -> Result<Vec<Reply>, NetlinkError> {
        self.ask(request, NLM_F_ACK).map(|(replies, _)| replies)
    }

    /// Asks for something new; EEXIST where there is one.
    pub(super) fn create(&mut self, request: Request<'_>) -> Result<Vec<Reply>, NetlinkError> {
        self.ask(request, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(|(replies, _)| replies)
    }

    fn ask(&mut self, request: Request<'_>, flags: u16) -> Result<(Vec<Reply>, bool), NetlinkError> {
        let transport = |source| NetlinkError::Transport { request: request.name, source };
        self.sequence = self.sequence.wrapping_add(1);
        let message = encode(request, flags | NLM_F_REQUEST, self.sequence);
        self.socket.send_to(&message, &SocketAddr::new(0, 0), 0).map_err(transport)?;
        let mut answer = Answer::default();
        let mut buffer = Vec::with_capacity(DATAGRAM);
        while !answer.complete {
            buffer.clear();
            let sender = loop {
                match self.socket.recv_from(&mut buffer, libc::MSG_TRUNC) {
                    Ok((len, _)) if len > buffer.len() => {
                        return Err(transport(io::Error::from_raw_os_error(libc::EMSGSIZE)));
                    }
                    Ok((_, sender)) => break sender,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(transport(error)),
                }
            };
            // Root of the namespace may write to this socket too; the kernel alone is port 0.
            if sender.port_number() != 0 {
                continue;
            }
            answer
                .take(&buffer, self.sequence)
                .map_err(|source| NetlinkError::Malformed { request: request.name, source })?;
            if let Some(source) = answer.refused.take() {
                return Err(NetlinkError::Refused { request: request.name, source });
            }
        }
        Ok((answer.replies, answer.torn))
    }
}

fn encode(request: Request<'_>, flags: u16, sequence: u32) -> Vec<u8> {
    let mut message = vec![0; HEADER + request.body.len()];
    let length = message.len() as u32;
    let mut header = NetlinkBuffer::new(&mut message);
    header.set_length(length);
    header.set_message_type(request.kind);
    header.set_flags(flags);
    header.set_sequence_number(sequence);
    header.payload_mut().copy_from_slice(request.body);
    message
}

/// What has come so far.
#[derive(Default, Debug)]
struct Answer {
    replies: Vec<Reply>,
    torn: bool,
    complete: bool,
    refused: Option<io::Error>,
}

impl Answer {
    /// Adds the messages of one datagram that belong to `sequence`.
    fn take(&mut self, mut datagram: &[u8], sequence: u32) -> Result<(), DecodeError> {
        while !datagram.is_empty() {
            let message = NetlinkBuffer::new_checked(datagram)?;
            let length = message.length() as usize;
            if message.sequence_number() == sequence {
                self.torn |= message.flags() & NLM_F_DUMP_INTR != 0;
                self.message(message.message_type(), message.payload())?;
            }
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    fn message(&mut self, kind: u16, body: &[u8]) -> Result<(), DecodeError> {
        match kind {
            NLMSG_ERROR | NLMSG_DONE => {
                let code = body.first_chunk().copied().map_or(0, i32::from_ne_bytes);
                if kind == NLMSG_ERROR && body.len() < 4 {
                    return Err(DecodeError::buffer_too_small(body.len(), 4));
                }
                self.complete = true;
                if code < 0 {
                    self.refused = Some(io::Error::from_raw_os_error(code.wrapping_neg()));
                }
            }
            NLMSG_OVERRUN => self.torn = true,
            kind if kind < libc::NLMSG_MIN_TYPE as u16 => {}
            kind => self.replies.push(Reply { kind, body: body.to_vec() }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ASK: Request<'_> = Request { name: "TEST", kind: 18, body: &[7; 8] };

    fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = encode(Request { name: "TEST", kind, body }, flags, sequence);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_dump_is_the_replies_up_to_done() {
        let mut answer = Answer::default();
        let stale = message(16, 0, 4, b"old!");
        let datagram = [stale, message(16, 2, 5, b"first"), message(16, 2, 5, b"second")].concat();
        answer.take(&datagram, 5).unwrap();
        assert!(!answer.complete);
        answer.take(&message(NLMSG_DONE, 2, 5, &0_i32.to_ne_bytes()), 5).unwrap();
        assert!(answer.complete && !answer.torn && answer.refused.is_none());
        let bodies: Vec<_> = answer.replies.iter().map(|reply| reply.body.as_slice()).collect();
        assert_eq!(bodies, [&b"first"[..], b"second"]);
    }

    #[test]
    fn errors_and_torn_dumps_are_noticed() {
        let mut answer = Answer::default();
        answer.take(&message(NLMSG_ERROR, 0, 1, &(-libc::EPERM).to_ne_bytes()), 1).unwrap();
        assert_eq!(answer.refused.and_then(|error| error.raw_os_error()), Some(libc::EPERM));
        let mut answer = Answer::default();
        answer.take(&message(16, NLM_F_DUMP_INTR, 1, b"torn"), 1).unwrap();
        assert!(answer.torn && !answer.complete);
        answer.take(&message(NLMSG_ERROR, 0, 1, &0_i32.to_ne_bytes()), 1).unwrap();
        assert!(answer.complete && answer.refused.is_none());
        assert!(Answer::default().take(&message(NLMSG_ERROR, 0, 1, &[]), 1).is_err());
    }

    #[test]
    fn an_attribute_survives_the_round_trip() {
        let mut body = Vec::new();
        put(&mut body, 3, b"lo\0");
        put(&mut body, 5, &9_u32.to_ne_bytes());
        assert_eq!(body.len(), 16);
        let read: Vec<_> = attributes(&body).map(Result::unwrap).collect();
        assert_eq!(read, [(3, &b"lo\0"[..]), (5, &9_u32.to_ne_bytes()[..])]);
    }

    #[test]
    fn a_request_carries_its_length_type_and_sequence() {
        let bytes = encode(ASK, NLM_F_REQUEST, 9);
        let read = NetlinkBuffer::new_checked(&bytes).unwrap();
        assert_eq!((read.length(), read.message_type(), read.flags(), read.sequence_number()), (24, 18, 1, 9));
        assert_eq!(read.payload(), [7; 8]);
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes: Vec<u8>, sequence: u32) {
            let mut answer = Answer::default();
            if answer.take(&bytes, sequence).is_ok() {
                prop_assert!(answer.replies.len() <= bytes.len() / HEADER);
            }
            prop_assert!(attributes(&bytes).count() <= bytes.len() / 4 + 1);
        }
    }
}

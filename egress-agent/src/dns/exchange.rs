//! One question to one upstream: nothing of the client's message but name and type, on a port of its own.
//!
//! The kernel checks the source of every reply (the socket is connected) and picks a random port each time; the id and the case of
//! the name (0x20) come from a cryptographic generator. A reply that does not match is ignored, for one forged packet must
//! not end an exchange; after a few of them the exchange is finished over TCP.

use super::{
    config::DnsError,
    encrypted::Encrypted,
    name::{MAX_WIRE, Name},
    sockets::Sockets,
    wire::{HEADER, UDP_SIZE, rtype},
};
use crate::policy::Server;
use rand::Rng;
use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
};
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Replies that do not match before UDP is given up.
const MAX_MISMATCHES: usize = 5;
/// One more than what was asked for, so that a larger reply is seen.
const UDP_BUFFER: usize = UDP_SIZE as usize + 1;

/// Why an upstream gave no usable answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum UpstreamError {
    /// Nothing that matched came in time.
    #[error("no answer in time")]
    Timeout,
    /// The network or the host said no.
    #[error("not reachable: {0}")]
    Network(io::ErrorKind),
    /// An error code (IANA, DNS RCODEs) other than NXDOMAIN.
    #[error("answered with error code {0}")]
    Rcode(u8),
    /// Its certificate is not valid, or bears another name than the policy says.
    #[error("its certificate is not trusted: is the name behind # the server's, and its authority known to this host?")]
    Certificate,
    /// It could not be decoded, or over TCP was no answer to the question.
    #[error("answered with a malformed message")]
    Malformed,
}

impl From<io::Error> for UpstreamError {
    fn from(error: io::Error) -> Self {
        Self::Network(error.kind())
    }
}

/// One upstream and what was learned of it.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) address: SocketAddr,
    /// False once it was found, over TCP, to send names back in another case: then case says nothing about forgery.
    keeps_case: AtomicBool,
    encrypted: Option<Encrypted>,
    pub(super) sockets: Sockets,
}

impl Upstream {
    pub(super) fn new(server: &Server) -> Result<Self, DnsError> {
        let encrypted = Encrypted::of(server)?;
        Ok(Self { address: server.address, keeps_case: AtomicBool::new(true), encrypted, sockets: Sockets::default() })
    }

    /// The reply to a question: a message whose id and question match, NOERROR or NXDOMAIN, whole. Has no deadline of its
    /// own; it may be dropped at any point.
    pub(super) async fn ask(&self, name: &Name, qtype: u16) -> Result<Vec<u8>, UpstreamError> {
        for edns in [true, false] {
            let query = Outgoing::new(name, qtype, edns, self.keeps_case.load(Ordering::Relaxed));
            let reply = self.exchange(&query).await?;
            return match reply[3] & 0x0f {
                0 | 3 => Ok(reply),
                // FORMERR or NOTIMP: perhaps it has never heard of OPT records (RFC 6891, 7).
                1 | 4 if edns => continue,
                rcode => Err(UpstreamError::Rcode(rcode)),
            };
        }
        Err(UpstreamError::Malformed)
    }

    async fn exchange(&self, query: &Outgoing) -> Result<Vec<u8>, UpstreamError> {
        let reply = if let Some(encrypted) = &self.encrypted {
            let mut reply = encrypted.exchange(query.message()).await?;
            // The id is the connection's there, or 0 (RFC 8484, 4.1).
            if let (Some(id), Some(ours)) = (reply.first_chunk_mut::<2>(), query.message().first_chunk()) {
                *id = *ours;
            }
            reply
        } else if let Some(reply) = self.over_udp(query).await? {
            return Ok(reply);
        } else {
            self.over_tcp(query).await?
        };
        match query.judge(&reply) {
            Match::Whole | Match::Truncated => Ok(reply),
            Match::OtherCase => {
                self.keeps_case.store(false, Ordering::Relaxed);
                Ok(reply)
            }
            Match::Foreign => Err(UpstreamError::Malformed),
        }
    }

    /// `None` where TCP has to finish it.
    async fn over_udp(&self, query: &Outgoing) -> Result<Option<Vec<u8>>, UpstreamError> {
        let socket = self.sockets.connected(self.address).await?;
        socket.send(query.message()).await?;
        let mut buffer = [0; UDP_BUFFER];
        for _ in 0..MAX_MISMATCHES {
            let length = socket.recv(&mut buffer).await?;
            match query.judge(&buffer[..length]) {
                Match::Whole if length < UDP_BUFFER => {
                    self.sockets.give_back(socket);
                    return Ok(Some(buffer[..length].to_vec()));
                }
                Match::Whole | Match::Truncated | Match::OtherCase => return Ok(None),
                Match::Foreign => {}
            }
        }
        Ok(None)
    }

    async fn over_tcp(&self, query: &Outgoing) -> Result<Vec<u8>, UpstreamError> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        stream.write_all(query.frame()).await?;
        let length = stream.read_u16().await?;
        let mut reply = vec![0; length.into()];
        stream.read_exact(&mut reply).await?;
        Ok(reply)
    }
}

/// How a message relates to the question.
#[derive(PartialEq, Eq, Debug)]
enum Match {
    Whole,
    Truncated,
    /// It answers the question, with the name in another case.
    OtherCase,
    Foreign,
}

/// A query of ours behind its two octets of TCP length.
struct Outgoing {
    frame: [u8; 2 + HEADER + MAX_WIRE + 4 + 11],
    len: usize,
    question_end: usize,
}

impl Outgoing {
    fn new(name: &Name, qtype: u16, edns: bool, random_case: bool) -> Self {
        let mut random = rand::rng();
        let id = (random.next_u32() as u16).to_be_bytes();
        let mut query = Self { frame: [0; 2 + HEADER + MAX_WIRE + 4 + 11], len: 2, question_end: 0 };
        // RD; one question; an OPT record or not.
        query.put(&id);
        query.put(&[1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
        query.put(name.as_wire());
        if random_case {
            let mut bits = 0_u32;
            for (index, octet) in query.frame[2 + HEADER..query.len].iter_mut().enumerate() {
                if index % 32 == 0 {
                    bits = random.next_u32();
                }
                // A length octet is at most 63, below every letter.
                if octet.is_ascii_lowercase() && bits >> (index % 32) & 1 == 1 {
                    octet.make_ascii_uppercase();
                }
            }
        }
        query.put(&qtype.to_be_bytes());
        query.put(&[0, 1]);
        query.question_end = query.len - 2;
        if edns {
            query.put(&[0]);
            query.put(&rtype::OPT.to_be_bytes());
            query.put(&UDP_SIZE.to_be_bytes());
            query.put(&[0; 6]);
        }
        query.frame[..2].copy_from_slice(&((query.len - 2) as u16).to_be_bytes());
        query
    }

    fn put(&mut self, octets: &[u8]) {
        self.frame[self.len..self.len + octets.len()].copy_from_slice(octets);
        self.len += octets.len();
    }

    fn frame(&self) -> &[u8] {
        &self.frame[..self.len]
    }

    fn message(&self) -> &[u8] {
        &self.frame()[2..]
    }

    fn judge(&self, reply: &[u8]) -> Match {
        let ours = self.message();
        let Some(header) = reply.first_chunk::<HEADER>() else { return Match::Foreign };
        let response = header[2] & 0xf8 == 0x80;
        if header[..2] != ours[..2] || !response {
            return Match::Foreign;
        }
        // An old server that cannot read OPT records may send back nothing but a header.
        if reply.len() == HEADER && header[4..6] == [0, 0] && header[3] & 0x0f == 1 {
            return Match::Whole;
        }
        let question = &ours[HEADER..self.question_end];
        let theirs = reply.get(HEADER..self.question_end).filter(|_| header[4..6] == [0, 1]);
        match theirs {
            Some(theirs) if theirs == question && header[2] & 0x02 != 0 => Match::Truncated,
            Some(theirs) if theirs == question => Match::Whole,
            // Lengths and type are below every letter, or would have to be equal anyway: case is all that can differ.
            Some(theirs) if theirs.eq_ignore_ascii_case(question) => Match::OtherCase,
            _ => Match::Foreign,
        }
    }
}

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;

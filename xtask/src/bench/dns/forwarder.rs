//! A simple process that receives, sends, receives and sends: how much of a miss is the way through sockets. It sends all questions
//! from one port, under ids that are counted up, so anybody can forge their answers: nobody should use it.

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd as _,
};

/// Serves until it is killed.
pub(crate) fn forward(listen: SocketAddr, upstream: SocketAddr) -> Result<()> {
    let clients = UdpSocket::bind(listen).with_context(|| format!("cannot listen at {listen}"))?;
    let servers = UdpSocket::bind("127.0.0.1:0")?;
    servers.connect(upstream)?;
    for socket in [&clients, &servers] {
        socket.set_nonblocking(true)?;
    }
    // By the id under which a question goes on: who asked, and under which one.
    let mut asked = vec![None; usize::from(u16::MAX) + 1];
    let mut next = 0_u16;
    let mut message = [0; 1500];
    loop {
        let mut ready = [&clients, &servers].map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        poll(&mut ready, PollTimeout::NONE)?;
        while let Some((length, from)) = unless_empty(clients.recv_from(&mut message))? {
            let Some(id) = message[..length].first_chunk_mut::<2>() else { continue };
            asked[usize::from(next)] = Some((from, *id));
            *id = next.to_be_bytes();
            next = next.wrapping_add(1);
            servers.send(&message[..length])?;
        }
        while let Some(length) = unless_empty(servers.recv(&mut message))? {
            let Some(id) = message[..length].first_chunk_mut::<2>() else { continue };
            if let Some((from, theirs)) = asked[usize::from(u16::from_be_bytes(*id))].take() {
                *id = theirs;
                clients.send_to(&message[..length], from)?;
            }
        }
    }
}

fn unless_empty<T>(received: io::Result<T>) -> io::Result<Option<T>> {
    match received {
        Ok(received) => Ok(Some(received)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
